"""What has to be known of a site to send jobs there: one small YAML file, checked as strictly as a configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from fedsim import configerrors, yamltree
from fedsim.config.base import Section
from fedsim.errors import ConfigError, LaunchError, nearest

FOLDER = Path("configs") / "machines"

# What may be passed on to sbatch by its long name. Missing are the options that `fedsim submit` sets itself, and those
# that would run something else than the batch file.
# fmt: off
OPTIONS = (
    "account", "acctg-freq", "batch", "bb", "begin", "cluster-constraint", "clusters", "comment", "constraint",
    "container", "contiguous", "core-spec", "cores-per-socket", "cpu-freq", "cpus-per-gpu", "deadline", "dependency",
    "distribution", "error", "exclude", "exclusive", "export", "gpu-bind", "gpu-freq", "gpus", "gpus-per-node",
    "gpus-per-socket", "gpus-per-task", "gres", "gres-flags", "hint", "hold", "licenses", "mail-type", "mail-user",
    "mcs-label", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu", "network", "nice", "no-kill", "nodefile",
    "nodelist", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node", "ntasks-per-socket", "overcommit",
    "oversubscribe", "partition", "power", "prefer", "priority", "profile", "propagate", "qos", "reservation",
    "sockets-per-node", "spread-job", "switches", "thread-spec", "threads-per-core", "time-min", "tmp",
    "use-min-nodes", "wckey",
)
# fmt: on
_OWN = {
    **dict.fromkeys(("nodes", "N"), "--nodes"),
    **dict.fromkeys(("ntasks", "n"), "--ranks"),
    **dict.fromkeys(("time", "t"), "--time"),
    "array": "--vary",
    "job-name": "the configuration's name",
    "output": "the configuration's name",
    "signal": "warn_s of the machine",
    "cpus-per-task": "cpus_per_rank of the machine",
    "requeue": "nothing: every job can be requeued",
    "no-requeue": "nothing: every job can be requeued",
    "open-mode": "nothing: a requeued job appends",
    "wrap": "nothing: the job is the configuration's run",
}
_TIME = re.compile(r"(\d+-)?\d{1,4}(:\d{1,2}){0,2}")

Option = str | int | bool | None
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.,:@/+-]{1,200}$")]


class Machine(Section):
    """A site. `launcher` starts the ranks; `setup` is shell lines that come before them, such as a module to load."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = "generic"
    account: Word | None = None
    partition: Word | None = None
    nodes: Annotated[int, Field(ge=1, le=100_000)] = 1
    ranks_per_node: Annotated[int, Field(ge=1, le=10_000)] = 4
    cpus_per_rank: Annotated[int, Field(ge=1, le=1024)] = 1
    time: str = "01:00:00"
    warn_s: Annotated[int, Field(ge=10, le=65_535)] = 120
    launcher: Literal["mpirun", "srun"] = "mpirun"
    mpi: Word = "pmix"
    launcher_options: list[str] = Field(default_factory=lambda: ["--bind-to", "none"])
    setup: list[str] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)
    sbatch: dict[str, Option] = Field(default_factory=dict)

    @field_validator("time")
    @classmethod
    def _is_time(cls, value: str) -> str:
        if not _TIME.fullmatch(value):
            raise ValueError(f"got {value[:60]!r}; allowed: minutes, hours:minutes:seconds, days-hours:minutes:seconds")
        return value

    @field_validator("sbatch")
    @classmethod
    def _are_options(cls, value: dict[str, Option]) -> dict[str, Option]:
        for name, given in value.items():
            _check_option(name, given)
        return value

    @field_validator("setup", "launcher_options")
    @classmethod
    def _are_lines(cls, value: list[str]) -> list[str]:
        for line in value:
            if not line.isprintable():
                raise ValueError(f"{line[:60]!r} has characters that cannot be printed; allowed: one line each")
        return value

    @field_validator("environment")
    @classmethod
    def _are_variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name, given in value.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or not given.isprintable():
                raise ValueError(f"{name[:60]!r} is no variable with a value in one line")
        return value


def _check_option(name: str, value: Option) -> None:
    if name in _OWN:
        raise ValueError(f"{name} is set by {_OWN[name]}; allowed: {', '.join(OPTIONS)}")
    if name not in OPTIONS:
        raise ValueError(f"no option {name[:60]!r} of sbatch can be set; {nearest(name[:60], OPTIONS)}")
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{name}: {value[:60]!r} has characters that cannot be printed; allowed: one line")


def load(wanted: str | None, sbatch: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> Machine:
    """The machine of a file, or of a name in `configs/machines`; None: the defaults.

    Args:
        wanted: a name, or the path of a YAML file.
        sbatch: `option` or `option=value` each, put over the file's.
        changes: other keys' values that replace the file's, also those in its `sbatch`; None leaves one as it is.

    Raises ConfigError.
    """
    value, places = _read(wanted)
    kept = {key: new for key, new in (changes or {}).items() if new is not None}
    places |= {(key,): yamltree.Place(f"--{key.replace('_', '-')}") for key in kept}
    value = {**value, **kept}
    given = value.get("sbatch") or {}
    for text in sbatch:
        name, _, written = text.removeprefix("--").partition("=")
        try:
            _check_option(name, written)
        except ValueError as error:
            raise ConfigError(f"--sbatch {text[:60]}: {error}") from None
        if isinstance(given, dict):
            given = {**given, name: written or True}
    if isinstance(given, dict):  # what has an option of its own is not overruled by the file's other options
        given = {name: new for name, new in given.items() if name not in kept}
    try:
        return Machine.model_validate({**value, "sbatch": given})
    except ValidationError as error:
        message = configerrors.one_line(Machine, error, places)
    raise ConfigError(message)


def _read(wanted: str | None) -> tuple[dict[str, Any], dict[yamltree.KeyPath, yamltree.Place]]:
    if wanted is None:
        return {}, {(): yamltree.Place("the generic machine")}
    path = Path(wanted)
    if path.suffix not in (".yaml", ".yml") and path.name == wanted:
        path = FOLDER / f"{wanted}.yaml"
        known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        if not path.exists():
            where = f"{FOLDER}/ has {', '.join(known)}" if known else f"there is no {FOLDER}/ in this folder"
            raise LaunchError(f"--machine {wanted[:60]}: no such machine: {where}; or give a YAML file's path")
    document = yamltree.read(path)
    return document.value, dict(document.places)
