"""The configurations that the benchmarks run, as plain values for YAML.

All simulate devices whose compute times are exponential, the model of most papers on asynchronous training: with equal
times all updates of an instant are applied before the next tasks start, and the run is synchronous in all but name.
"""

from __future__ import annotations

from typing import Any

CONCURRENCY = 16
TINY_PARAMETERS = 2410


def fedasync(updates: int, data: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """FedAsync on synthetic images: 40 samples a client, batches of 10, one epoch of SGD; tests the last version."""
    return {
        "data": {"dataset": "synthetic-images", "samples": 40, "test_samples": 256, **data},
        "model": model,
        "devices": {"compute": {"time": {"law": "exponential", "mean": 1.0}}},
        "training": {"optimizer": {"kind": "sgd", "learning_rate": 0.05}, "batch_size": 10, "epochs": 1},
        "schedule": {"policy": "async", "concurrency": CONCURRENCY},
        "aggregation": {"rule": "fedasync"},
        "evaluation": {"every_versions": None},
        "stop": {"updates": updates},
        "device": "cpu",
    }


def cnn(updates: int, clients: int) -> dict[str, Any]:
    """28 x 28 images of 62 classes and the two-layer CNN: 5 x 5 kernels, 16 and 32 channels, 110,526 parameters."""
    data = {"clients": clients, "classes": 62, "shape": [1, 28, 28]}
    return fedasync(updates, data, {"kind": "cnn", "channels": [16, 32], "kernel": 5})


def tiny(updates: int, clients: int) -> dict[str, Any]:
    """64 features, 10 classes and one hidden layer of 32: 2,410 parameters, so that many updates take a short time."""
    return fedasync(updates, {"clients": clients, "classes": 10, "shape": [64]}, {"kind": "mlp", "hidden": [32]})


def mlp(updates: int, clients: int) -> dict[str, Any]:
    """784 features, 62 classes and one hidden layer of 200: 169,462 parameters."""
    return fedasync(updates, {"clients": clients, "classes": 62, "shape": [784]}, {"kind": "mlp", "hidden": [200]})
