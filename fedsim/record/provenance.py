"""Where a result comes from: configuration, code, libraries, machines; what the record's root attributes say.

What only the caller can know (time, ranks, data) is an argument; the rest is looked up here. Looking up never fails:
what cannot be known is left out.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import fedsim.errors
from fedsim.record.schema import SCHEMA_VERSION

Attribute = str | int | float | bool

GIT_TIMEOUT_S = 5.0
SLURM_NAMES = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
)
_LIBRARIES = ("numpy", "torch", "h5py", "mpi4py", "sklearn", "pydantic")


class RankPlace(NamedTuple):
    """Where a rank runs: `device` such as "cpu" or "cuda:0 NVIDIA H100", `capability` such as "AVX2".

    `local_rank` counts the ranks of its host; `cores` are those it may use, such as "0-3,8", and `memory_nodes` the
    NUMA nodes of these; empty, and -1, where they are not known.
    """

    rank: int
    host: str
    device: str
    capability: str = ""
    local_rank: int = -1
    cores: str = ""
    memory_nodes: str = ""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the engine knows of a run. `created` is UTC in ISO 8601; `command` the words of the command line."""

    name: str
    seed: int
    clock: str
    policy: str
    rule: str
    dataset: str
    config_text: str
    command: tuple[str, ...]
    created: str
    data_sha256: str
    training_path: str
    group_size: int
    threads: int
    places: tuple[RankPlace, ...]
    attempt: int = 0
    parent: str = ""
    mpi_library: str = ""
    allow_mixed: bool = False


@dataclass(frozen=True, slots=True)
class Provenance:
    """Root attributes by name, and the two texts that are too long for an attribute."""

    attributes: Mapping[str, Attribute]
    config_text: str
    places: tuple[RankPlace, ...]


def collect(facts: RunFacts, environment: Mapping[str, str], folder: Path) -> Provenance:
    """The provenance of a run started in `folder` with these environment variables; runs `git` when there is one."""
    attributes: dict[str, Attribute] = {
        "schema_version": SCHEMA_VERSION,
        **_given(facts),
        **library_versions(),
        **git_state(folder),
        **slurm_ids(environment),
    }
    kept = {name: value for name, value in attributes.items() if value != ""}
    return Provenance(kept, facts.config_text, facts.places)


def _given(facts: RunFacts) -> dict[str, Attribute]:
    return {
        "name": facts.name,
        "seed": facts.seed,
        "clock": facts.clock,
        "policy": facts.policy,
        "rule": facts.rule,
        "dataset": facts.dataset,
        "data_sha256": facts.data_sha256,
        "config_sha256": text_sha256(facts.config_text),
        "command": json.dumps(list(facts.command)),
        "created": facts.created,
        "attempt": facts.attempt,
        "parent": facts.parent,
        "ranks": len(facts.places),
        "hosts": json.dumps(list(dict.fromkeys(place.host for place in facts.places))),
        "devices": json.dumps(list(dict.fromkeys(place.device for place in facts.places))),
        "threads": facts.threads,
        "training_path": facts.training_path,
        "group_size": facts.group_size,
        "mpi_library": facts.mpi_library,
        "allow_mixed": facts.allow_mixed,
    }


def text_sha256(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def library_versions() -> dict[str, Attribute]:
    """Versions of Python, fedsim, HDF5 and the libraries that are loaded, by attribute name; loads none of them."""
    versions: dict[str, Attribute] = {"python_version": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        version = getattr(sys.modules.get(name), "__version__", "")
        if version:
            versions[f"{name}_version"] = str(version)
    h5py = sys.modules.get("h5py")
    if h5py is not None:
        versions["hdf5_version"] = str(h5py.version.hdf5_version)
    versions["fedsim_version"] = _fedsim_version()
    return versions


def _fedsim_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fedsim")
    except PackageNotFoundError:
        return "unknown"


def git_state(folder: Path) -> dict[str, Attribute]:
    """`git_commit`, `git_clean` and `git_repository` of the code that runs, or of `folder` if that is not under git.

    `git_repository` says which of the two it is: "package" or "working folder". Empty without git or repository.
    A file that git does not track, such as a run folder, leaves the repository clean.
    """
    package_file = Path(fedsim.errors.__file__)
    # An installed package may lie inside some other repository's folder: only a tracked file counts.
    if _git(package_file.parent, "ls-files", "--error-unmatch", package_file.name) is not None:
        return _commit(package_file.parent, "package")
    return _commit(folder, "working folder")


def _commit(folder: Path, repository: str) -> dict[str, Attribute]:
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    state: dict[str, Attribute] = {"git_commit": commit, "git_repository": repository}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if changes is not None:
        state["git_clean"] = changes == ""
    return state


def _git(folder: Path, *words: str) -> str | None:
    """What git prints, stripped; None if it fails, takes too long or is not there."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, timeout=GIT_TIMEOUT_S, check=True, stdin=subprocess.DEVNULL)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip()


def slurm_ids(environment: Mapping[str, str]) -> dict[str, Attribute]:
    """The Slurm job's ids and place by attribute name (lower case), as text."""
    return {name.lower(): environment[name] for name in SLURM_NAMES if name in environment}
