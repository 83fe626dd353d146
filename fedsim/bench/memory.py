"""Whether memory stays flat: every rank's resident memory over a long run of a tiny model."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.bench import configs
from fedsim.bench.figures import Figure, Report, Target
from fedsim.bench.launch import Launcher
from fedsim.bench.measure import resident_bytes

CLIENTS = 64  # few, so that all shards are kept long before the first mark
MARKS = (0.05, 0.25, 0.5, 1.0)  # shares of the updates at which memory is read; growth counts from the first
FLAT_MIB = 4.0  # growth that counts as none: the larger of this
FLAT_SHARE = 0.02  # and of this share of what there was
_MIB = 2.0**20

Marks = dict[int, list[int]]


def measure(launcher: Launcher, repeat: int, updates: int, workers: int) -> Report:
    """The report: resident memory at the marks, and its growth from the first to the last, by rank."""
    config = configs.tiny(updates, CLIENTS) | {"record": {"flush_s": 1.0}}
    marks = [max(1, round(share * updates)) for share in MARKS]
    found: list[Marks] = []
    for i in range(repeat):
        found.append(resident_bytes(launcher.run(f"run-{i}", config, workers).run, marks))
        growth = ", ".join(f"{(rss[-1] - rss[0]) / _MIB:.2f}" for rss in found[-1].values())
        launcher.say(f"run-{i}: growth of ranks 0 to {workers}: {growth} MiB")
    return Report(
        bench="memory",
        machine=launcher.machine,
        what=f"FedAsync, {configs.CONCURRENCY} tasks in flight, a model of 2,410 parameters, {workers} workers: "
        f"resident memory from update {marks[0]:,} to {marks[-1]:,}; flat is growth of at most {FLAT_MIB:g} MiB or "
        f"{100 * FLAT_SHARE:g} %, whichever is more",
        settings={"workers": workers, "updates": updates, "repeat": repeat, "set": list(launcher.overrides)},
        figures=_figures(found, marks),
        runs=[{"marks": marks, "rss_bytes": {str(rank): rss for rank, rss in run.items()}} for run in found],
    )


def _figures(found: Sequence[Marks], marks: Sequence[int]) -> list[Figure]:
    figures = []
    for rank in found[0]:
        for i, mark in enumerate(marks):
            figures.append(Figure.of(f"rank {rank} at update {mark:,}", [run[rank][i] / _MIB for run in found], "MiB"))
        growth = [(run[rank][-1] - run[rank][0]) / _MIB for run in found]
        base = min(run[rank][0] for run in found) / _MIB
        figures.append(Figure.of(f"rank {rank} grows by", growth, "MiB", Target(most=max(FLAT_MIB, FLAT_SHARE * base))))
    return figures
