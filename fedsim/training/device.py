"""Which device a rank computes on, and what two ranks must have in common to compute the same bits."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, MutableMapping
from typing import Literal

import numpy as np
import torch

from fedsim.config import RunConfig
from fedsim.errors import ConfigError, LaunchError

_LOCAL_RANK = ("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
_CAPS = ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def local_rank(environ: Mapping[str, str]) -> int:
    """The number of this rank among those of its host, as Slurm, Open MPI or MPICH's Hydra gives it; else 0."""
    for name in _LOCAL_RANK:
        value = environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return 0


def choose(device: Literal["auto", "cpu", "cuda"], local_rank: int, environ: Mapping[str, str]) -> torch.device:
    """The device of a rank: the visible GPU numbered `local_rank` modulo their number; a CPU where there is none.

    Raises LaunchError if `cuda` is asked for and no GPU is visible. `environ` only serves that message.
    """
    if device == "cpu":
        return torch.device("cpu")
    n_visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if n_visible:
        return torch.device("cuda", local_rank % n_visible)
    if device == "auto":
        return torch.device("cpu")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    where = "" if visible is None else f" (CUDA_VISIBLE_DEVICES='{visible}')"
    raise LaunchError(
        f"device: cuda, but no GPU is visible on {platform.node()} to torch {torch.__version__}{where}; "
        "ask the scheduler for one a rank, or set device: auto or cpu"
    )


def require_cuda(device: torch.device) -> None:
    """Raises ConfigError for a worker's device that cannot record CUDA graphs."""
    if device.type != "cuda":
        raise ConfigError(
            f"training.path: captured records CUDA graphs, but {platform.node()} has no GPU that torch can use; "
            "set device: cuda where there is one, or training.path: auto"
        )


def prepare(device: torch.device, n_threads: int, environ: MutableMapping[str, str]) -> None:
    """Sets threads, and on a GPU everything that torch needs to repeat its bits; call it before CUDA starts."""
    set_threads(n_threads)
    if device.type != "cuda":
        return
    environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def set_threads(n_threads: int) -> None:
    """Sets how many threads torch computes with in this process; it decides how sums are split, so it decides bits."""
    torch.set_num_threads(n_threads)


def describe(device: torch.device) -> str:
    """A device in words, for people and the record, such as `cuda:1 NVIDIA H100` or `cpu x86_64 AVX512`."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def environment_signature(
    config: RunConfig, device: torch.device, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """What decides bits besides configuration and seed: two ranks with equal signatures may train in one run.

    Environment variables that cap the instructions in use are listed where they are set.
    """
    signature = {
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(config.threads),
    }
    if device.type == "cuda":
        signature["cuda"] = str(torch.version.cuda)
        signature["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return signature | {name: environ[name] for name in _CAPS if name in environ}
