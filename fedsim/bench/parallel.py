"""Whether workers work in parallel: one against several, and what rank zero takes beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.bench import configs
from fedsim.bench.figures import Figure, Report, Target, paired_ratios
from fedsim.bench.launch import Launcher
from fedsim.bench.measure import share_of_time, steady
from fedsim.errors import RecordError
from fedsim.record.summary import model_sha256

CLIENTS = 1000
PLACEMENT = "dynamic"  # with clients at home and 16 in flight, chance alone leaves two workers idle for 5 % of the time
TRAINING_SHARE = Target(least=85.0)
SERVER_SHARE = Target(most=5.0)
SPEED_UP_A_WORKER = 0.9  # 1.8 for two

Found = Mapping[str, Any]


def measure(launcher: Launcher, repeat: int, updates: int, workers: int) -> Report:
    """The report: `repeat` pairs of runs, one worker and `workers`, which must train the same model, bit by bit."""
    config = configs.cnn(updates, CLIENTS) | {"placement": PLACEMENT}
    ones, manys = [], []
    for i in range(repeat):
        ones.append(_run(launcher, f"one-{i}", config, 1))
        manys.append(_run(launcher, f"many-{i}", config, workers))
    found = [run for pair in zip(ones, manys, strict=True) for run in pair]
    if len({run["model_sha256"] for run in found}) != 1:
        raise RecordError("runs of one configuration reached different models: they cannot be compared")
    return Report(
        bench="parallel",
        machine=launcher.machine,
        what=f"FedAsync, {configs.CONCURRENCY} tasks in flight, {PLACEMENT} placement, the CNN, "
        f"{updates:,} updates: 1 worker against {workers}, {repeat} times in turn, all with the same bits",
        settings={"workers": workers, "updates": updates, "repeat": repeat, "set": list(launcher.overrides)},
        figures=_figures(ones, manys, workers),
        runs=found,
    )


def _run(launcher: Launcher, name: str, config: Mapping[str, Any], n_workers: int) -> Found:
    run = launcher.run(name, config, n_workers).run
    window, weights = steady(run), run.weights
    assert weights is not None
    found = {
        "workers": n_workers,
        "updates_per_s": window.updates_per_s,
        "training_shares": [100 * share_of_time(run, rank, "busy_s", window) for rank in range(1, n_workers + 1)],
        "server_share": 100 * share_of_time(run, 0, "cpu_s", window),
        "model_sha256": model_sha256(weights),
    }
    launcher.say(f"{name}: {window.updates_per_s:.2f} updates/s, rank zero {found['server_share']:.1f} % of a core")
    return found


def _figures(ones: Sequence[Found], manys: Sequence[Found], workers: int) -> list[Figure]:
    def of(runs: Sequence[Found], key: str) -> list[float]:
        return [run[key] for run in runs]

    several = f"{workers} workers"
    by_worker = zip(*(run["training_shares"] for run in manys), strict=True)
    shares = [
        Figure.of(f"worker {rank} of {workers} trains", list(values), "%", TRAINING_SHARE)
        for rank, values in enumerate(by_worker, start=1)
    ]
    ratios = paired_ratios(of(manys, "updates_per_s"), of(ones, "updates_per_s"))
    return [
        Figure.of("updates, 1 worker", of(ones, "updates_per_s"), "1/s"),
        Figure.of(f"updates, {several}", of(manys, "updates_per_s"), "1/s"),
        Figure.of("ratio of updates/s", ratios, "1", Target(least=SPEED_UP_A_WORKER * workers)),
        Figure.of("the one worker trains", [run["training_shares"][0] for run in ones], "%"),
        *shares,
        Figure.of("rank zero, 1 worker", of(ones, "server_share"), "% of a core"),
        Figure.of(f"rank zero, {several}", of(manys, "server_share"), "% of a core", SERVER_SHARE),
    ]
