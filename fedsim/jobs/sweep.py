"""A sweep: one configuration with some of its values varied, as a list of points that is written down once.

The manifest is frozen: whoever works on the sweep later, another job or an element of an array, reads the same points,
and a configuration file that has changed since is refused. A point whose record says that it is done is not run again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim import configfile, yamltree
from fedsim.errors import ConfigError, FedsimError, RecordError

MANIFEST = "manifest.json"
MAX_POINTS = 100_000
_MAX_BYTES = 2**28
_VERSION = 1


@dataclass(frozen=True)
class Point:
    """One run of a sweep: its folder's name, its `--set` options, and the SHA-256 of its resolved configuration."""

    name: str
    overrides: tuple[str, ...]
    config_sha256: str


@dataclass(frozen=True)
class Sweep:
    """The points of a sweep, whose runs lie in `folder`."""

    folder: Path
    config: Path
    points: tuple[Point, ...]

    def run_of(self, point: Point) -> Path:
        """The folder of a point's run."""
        return self.folder / point.name

    def is_done(self, point: Point) -> bool:
        """Whether the record of a point says that it is done."""
        from fedsim.record.reader import Run

        try:
            return Run(self.run_of(point), joined=False).status == "done"
        except FedsimError:
            return False

    def check(self, point: Point) -> None:
        """Raises ConfigError if the configuration is not the one that the manifest was made of."""
        if configfile.sha256(configfile.load(self.config, point.overrides)) != point.config_sha256:
            raise ConfigError(
                f"{self.config}: changed since {self.folder / MANIFEST} was frozen: {point.name} would be another run; "
                "make a new sweep with --out"
            )


def grid(config: Path, overrides: Sequence[str], vary: Sequence[str], folder: Path) -> Sweep:
    """The sweep over all combinations, the last key varying fastest; every point's configuration is checked.

    Args:
        config: the configuration file.
        overrides: `--set` options for every point.
        vary: `key.of.the.value=[a, b, ...]` each.
        folder: where the runs go.

    Raises ConfigError.
    """
    axes = [_axis(text) for text in vary]
    n_points = 1
    for _, values in axes:
        n_points *= len(values)
    if n_points > MAX_POINTS:
        raise ConfigError(f"--vary: {n_points:,} points, allowed: up to {MAX_POINTS:,}")
    points = []
    for number, chosen in enumerate(itertools.product(*(values for _, values in axes))):
        sets = [f"{key}={_written(value)}" for (key, _), value in zip(axes, chosen, strict=True)]
        own = (*overrides, *sets)
        points.append(Point(f"point-{number:05d}", own, configfile.sha256(configfile.load(config, own))))
    return Sweep(folder, config.resolve(), tuple(points))


def _axis(text: str) -> tuple[str, list[Any]]:
    key, _, written = text.partition("=")
    values = yamltree.parse_value(written, f"--vary {key[:60]}") if written else None
    if not key or not isinstance(values, list) or not values:
        raise ConfigError(f"--vary {yamltree.shown(text)}: expected key=[value, ...], such as seed=[1, 2, 3]")
    if any(isinstance(value, dict | list) for value in values):
        raise ConfigError(f"--vary {key[:60]}: expected numbers, texts, true, false or null, got a list or a mapping")
    return key, values


def _written(value: Any) -> str:
    """A value as YAML on one line; JSON is YAML for all that `_axis` lets through."""
    return json.dumps(value)


# ------------------------------------------------------------------------------------------- the manifest


def freeze(sweep: Sweep) -> None:
    """Writes the manifest, unless the same is there already; many may do so at once.

    Raises:
        RecordError: another one is there, or it cannot be written.
    """
    path = sweep.folder / MANIFEST
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=sweep.folder, prefix=f".{MANIFEST}-")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(_text(sweep))
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)  # fails if there is one: nobody's manifest is replaced
        finally:
            os.unlink(aside)
    except OSError as error:
        raise RecordError(f"{path}: cannot be written: {error.strerror}") from None
    if read(sweep.folder) != sweep:
        raise RecordError(f"{path}: is there already, of another sweep; give --out another folder")


def _text(sweep: Sweep) -> str:
    points = [
        {"name": point.name, "overrides": list(point.overrides), "config_sha256": point.config_sha256}
        for point in sweep.points
    ]
    return json.dumps({"version": _VERSION, "config": str(sweep.config), "points": points}, indent=1) + "\n"


def read(folder: Path) -> Sweep:
    """The sweep that was frozen in a folder. Raises RecordError if there is none that can be read."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecordError(f"{path}: {path.stat().st_size} bytes, allowed: up to {_MAX_BYTES}")
        found = json.loads(path.read_text(encoding="utf-8"))
        points = tuple(_point(entry, number) for number, entry in enumerate(found["points"]))
        if found["version"] != _VERSION or not isinstance(found["config"], str) or not points:
            raise ValueError("another version")
    except OSError as error:
        raise RecordError(f"{folder}: no sweep there: {path.name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordError(f"{path}: not a sweep's manifest: {type(error).__name__}") from None
    return Sweep(folder, Path(found["config"]), points)


def _point(entry: Any, number: int) -> Point:
    name, overrides, sha256 = entry["name"], entry["overrides"], entry["config_sha256"]
    texts = isinstance(overrides, list) and all(isinstance(text, str) for text in overrides)
    if name != f"point-{number:05d}" or not texts or not isinstance(sha256, str):
        raise ValueError("a point that no sweep has")
    return Point(name, tuple(overrides), sha256)
