"""Which device a rank gets, and what ranks compare."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedsim.config import RunConfig
from fedsim.errors import LaunchError
from fedsim.training import device


@pytest.mark.parametrize(
    ("environ", "rank"),
    [
        ({}, 0),
        ({"SLURM_LOCALID": "3"}, 3),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "2"}, 2),
        ({"MPI_LOCALRANKID": "1"}, 1),
        ({"SLURM_LOCALID": "4", "MPI_LOCALRANKID": "1"}, 4),
        ({"SLURM_LOCALID": "", "MPI_LOCALRANKID": "1"}, 1),
    ],
)
def test_local_rank(environ: dict[str, str], rank: int) -> None:
    assert device.local_rank(environ) == rank


def _see(monkeypatch: pytest.MonkeyPatch, n_gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)


def test_ranks_go_round_the_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    _see(monkeypatch, 2)
    assert [device.choose("auto", rank, {}).index for rank in range(5)] == [0, 1, 0, 1, 0]
    assert device.choose("cuda", 3, {}) == torch.device("cuda", 1)
    assert device.choose("cpu", 3, {}).type == "cpu"


def test_without_a_gpu_auto_takes_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _see(monkeypatch, 0)
    assert device.choose("auto", 1, {}).type == "cpu"
    with pytest.raises(LaunchError, match=r"no GPU is visible .*CUDA_VISIBLE_DEVICES=''") as caught:
        device.choose("cuda", 0, {"CUDA_VISIBLE_DEVICES": ""})
    assert "\n" not in str(caught.value)


def test_signature_tells_what_decides_bits(make_config: Callable[..., RunConfig]) -> None:
    cpu = torch.device("cpu")
    one = device.environment_signature(make_config(), cpu, {"HOME": "/root"})
    assert one["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert one["threads"] == "1" and one["device"] == "cpu" and one["torch"] == str(torch.__version__)
    assert device.environment_signature(make_config(), cpu, {"HOME": "/home/x"}) == one
    assert device.environment_signature(make_config(threads=2), cpu, {}) != one
    assert device.environment_signature(make_config(), cpu, {"ONEDNN_MAX_CPU_ISA": "AVX2"}) != one


def test_describe_names_the_processor() -> None:
    assert torch.backends.cpu.get_cpu_capability() in device.describe(torch.device("cpu"))


def test_prepare_sets_threads_and_leaves_a_cpus_environment_alone() -> None:
    environ: dict[str, str] = {}
    before = torch.get_num_threads()
    try:
        device.prepare(torch.device("cpu"), 2, environ)
        assert torch.get_num_threads() == 2 and not environ
    finally:
        device.set_threads(before)
