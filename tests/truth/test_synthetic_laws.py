"""Synthetic data against the laws that they are drawn from."""

import numpy as np

from fedsim.config import SyntheticImagesData, SyntheticLeafData
from fedsim.population.datasets.synthetic_images import SyntheticImages
from fedsim.population.datasets.synthetic_leaf import SyntheticLeaf


def leaf(**options: float) -> SyntheticLeaf:
    return SyntheticLeaf(SyntheticLeafData.model_validate({"dataset": "synthetic-leaf", **options}), 3)


def test_images_are_a_centre_plus_unit_noise() -> None:
    config = SyntheticImagesData(
        dataset="synthetic-images", clients=2, samples=4000, classes=2, classes_per_client=1, shape=[50], signal=0.5
    )
    people = SyntheticImages(config, 1)
    test = people.central_test()
    for label in (0, 1):
        x = test.x[test.y == label].astype(np.float64)
        assert abs(x.std(axis=0).mean() - 1.0) < 0.02
        # 50 values of a centre, standard normal times 0.5: their deviation within four standard errors
        assert abs(x.mean(axis=0).std() - 0.5) < 4 * 0.5 / np.sqrt(2 * 50)
    shard = people.shard(0)
    centre = test.x[test.y == shard.y[0]].mean(axis=0)
    assert np.abs(shard.x.mean(axis=0) - centre).max() < 5 * np.sqrt(1 / 4000 + 1 / 400)


def test_leaf_inputs_have_the_stated_covariance() -> None:
    people = leaf(clients=4, features=20, min_samples=40_000, max_samples=40_000)
    for client in range(4):
        x = people.shard(client).x.astype(np.float64)
        covariance = np.cov(x, rowvar=False)
        expected = np.arange(1, 21) ** -1.2
        np.testing.assert_allclose(np.diag(covariance), expected, rtol=0.05)
        correlation = covariance / np.sqrt(np.outer(expected, expected))
        assert np.abs(correlation - np.diag(np.diag(correlation))).max() < 0.03


def test_leaf_client_means_spread_by_beta() -> None:
    """A client's mean input, averaged over features, is B_k + mean of v_k: variance beta^2 + (1 + ...) / features."""
    spread = {}
    for beta in (0.0, 5.0):
        people = leaf(clients=400, features=60, beta=beta, min_samples=50, max_samples=50)
        spread[beta] = np.std([people.shard(client).x.mean() for client in range(400)])
    assert spread[0.0] < 0.2
    assert abs(spread[5.0] - 5.0) < 4 * 5.0 / np.sqrt(2 * 400)


def test_leaf_sizes_are_lognormal() -> None:
    people = leaf(clients=20_000, features=1, min_samples=1, max_samples=2**24, test_fraction=1e-9)
    # with next to no test fraction, every client of two samples or more keeps one sample for its test
    drawn = people.n_samples(np.arange(20_000))
    # the floor and the added sample cancel in the mean; they are felt at small sizes, so these are not compared
    for quantile, z in ((0.5, 0.0), (0.841345, 1.0), (0.977250, 2.0)):
        assert abs(np.quantile(np.log(drawn), quantile) - (4 + 2 * z)) < 0.15


def test_leaf_labels_are_learnable_and_differ_by_client() -> None:
    """A client's own linear model explains its test labels; another client's does not."""
    people = leaf(clients=2, features=10, classes=3, min_samples=4000, max_samples=4000)
    models = [_least_squares(*people.shard(client)) for client in (0, 1)]
    own, other = [], []
    for client in (0, 1):
        test = people.test_shard(client)
        inputs = np.c_[test.x, np.ones(test.y.size)]
        own.append((np.argmax(inputs @ models[client], axis=1) == test.y).mean())
        other.append((np.argmax(inputs @ models[1 - client], axis=1) == test.y).mean())
    assert min(own) > 0.8 and np.mean(other) < np.mean(own) - 0.2


def _least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(np.c_[x, np.ones(y.size)], np.eye(3)[y], rcond=None)[0]
