"""Which data, and how they are dealt to clients."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedsim.config.base import Classes, Count, CountOrZero, NonNegative, OpenFraction, Positive, Section
from fedsim.config.user import UserData


class HeartData(Section):
    """UCI heart disease, four hospitals; shipped with fedsim.

    `standardize`: training samples by the mean and deviation of their own centre's, or of all of them pooled.
    """

    dataset: Literal["heart"]
    standardize: Literal["centre", "pooled"] = "centre"


class TcgaBrcaData(Section):
    """Survival of breast cancer patients in six regions, from the files of FLamby's Fed-TCGA-BRCA in `folder`."""

    dataset: Literal["tcga-brca"]
    folder: str


class DigitsData(Section):
    """scikit-learn's 8x8 handwritten digits (1,797 samples, 10 classes)."""

    dataset: Literal["digits"]
    test_fraction: OpenFraction = 0.2


class SyntheticImagesData(Section):
    """Class-conditional Gaussian images; any number of clients, each made on demand from its key."""

    dataset: Literal["synthetic-images"]
    clients: Count = 1000
    samples: Count = 40
    test_samples: Count = 1000
    classes: Annotated[int, Field(ge=2, le=100_000)] = 62
    classes_per_client: Count = 5
    shape: list[Count] = Field(default=[1, 28, 28], min_length=1, max_length=4)
    signal: NonNegative = 0.35

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.classes_per_client > self.classes:
            raise ValueError(f"classes_per_client is {self.classes_per_client}, above classes ({self.classes})")
        if math.prod(self.shape) > 2**24:
            raise ValueError(f"shape {self.shape} has more than {2**24} values a sample")
        return self


class SyntheticLeafData(Section):
    """LEAF's synthetic(alpha, beta) federation (Li et al. 2018): a logistic model and an input law a client."""

    dataset: Literal["synthetic-leaf"]
    clients: Count = 30
    alpha: NonNegative = 1.0
    beta: NonNegative = 1.0
    features: Count = 60
    classes: Annotated[int, Field(ge=2, le=10_000)] = 10
    min_samples: Count = 50
    max_samples: Count = 1000
    test_fraction: OpenFraction = 0.2

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.min_samples > self.max_samples:
            raise ValueError(f"min_samples is {self.min_samples}, above max_samples ({self.max_samples})")
        return self


class IdxData(Section):
    """Files of the MNIST family (IDX, plain or .gz): images and labels, of training and test set.

    `classes` is the number of classes; without it, the largest label of the training data tells.
    """

    dataset: Literal["idx"]
    images: str
    labels: str
    test_images: str
    test_labels: str
    classes: Classes | None = None


class NpzData(Section):
    """One NPZ file in MedMNIST's form: train_images, train_labels, test_images, test_labels (val_* unused)."""

    dataset: Literal["npz"]
    path: str
    classes: Classes | None = None


class Hdf5Data(Section):
    """HDF5 with a group a client (TensorFlow Federated's form: examples/<client>/<column>)."""

    dataset: Literal["hdf5"]
    path: str
    test_path: str | None = None
    x: str = "pixels"
    y: str = "label"
    classes: Classes | None = None


class CsvData(Section):
    """A CSV table with a column that names the client; every other column is a numeric feature.

    `targets` says what the label is: a class, or a value for the mean squared error.
    """

    dataset: Literal["csv"]
    path: str
    client: str
    label: str
    targets: Literal["classes", "values"] = "classes"
    test_fraction: OpenFraction = 0.2
    standardize: bool = True
    classes: Classes | None = None


DataConfig = Annotated[
    HeartData
    | TcgaBrcaData
    | DigitsData
    | SyntheticImagesData
    | SyntheticLeafData
    | IdxData
    | NpzData
    | Hdf5Data
    | CsvData
    | UserData,
    Field(discriminator="dataset"),
]


class NaturalPartition(Section):
    """The clients that the data set itself has; `only` some of them train, if any are named."""

    kind: Literal["natural"]
    only: list[CountOrZero] = Field(default=[], min_length=0, max_length=100_000)


class PooledPartition(Section):
    """All training samples of a data set with clients of its own with client 0: the centralised baseline."""

    kind: Literal["pooled"]


class IidPartition(Section):
    """A random permutation, cut into equal parts."""

    kind: Literal["iid"]
    clients: Count


class DirichletPartition(Section):
    """Label skew: each class is dealt to the clients by a Dirichlet(alpha) draw (Hsu et al. 2019)."""

    kind: Literal["dirichlet"]
    clients: Count
    alpha: Positive
    min_samples: CountOrZero = 1


class ShardsPartition(Section):
    """Samples sorted by label, cut into shards, some dealt to each client (McMahan et al. 2017)."""

    kind: Literal["shards"]
    clients: Count
    shards_per_client: Count = 2


class QuantityPartition(Section):
    """Quantity skew: sizes by a Dirichlet(alpha) draw, labels as they come."""

    kind: Literal["quantity"]
    clients: Count
    alpha: Positive
    min_samples: CountOrZero = 1


PartitionConfig = Annotated[
    NaturalPartition | PooledPartition | IidPartition | DirichletPartition | ShardsPartition | QuantityPartition,
    Field(discriminator="kind"),
]
