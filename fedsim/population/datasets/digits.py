"""scikit-learn's handwritten digits (Alpaydin and Kaynak 1998, UCI): 1,797 images of 8x8, 10 classes."""

from __future__ import annotations

import hashlib

import numpy as np

from fedsim.config import DigitsData, PartitionConfig
from fedsim.population.partition import split, stratified_test_mask
from fedsim.population.population import ArrayData, ArrayPopulation, Samples
from fedsim.types import Float32, Int64


def digits_population(config: DigitsData, partition: PartitionConfig, seed: int) -> ArrayPopulation:
    """The digits, dealt to clients by `partition`; a central test set of `test_fraction` of each class.

    x is float32 (N, 1, 8, 8) in [0, 1].
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x: Float32 = (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    y_N: Int64 = labels.astype(np.int64)
    test_N = stratified_test_mask(y_N, config.test_fraction, seed)
    train_part, test_part = _samples(x[~test_N], y_N[~test_N]), _samples(x[test_N], y_N[test_N])
    data = ArrayData(train_part, test_part, 10, lambda: _sha256(x, y_N))
    return ArrayPopulation(data, split(train_part.labels_N, partition, seed))


def _samples(x: Float32, y_N: Int64) -> Samples:
    return Samples(y_N, x.shape[1:], lambda: x)


def _sha256(x: Float32, y_N: Int64) -> str:
    return hashlib.sha256(x.astype("<f4").tobytes() + y_N.astype("<i8").tobytes()).hexdigest()
