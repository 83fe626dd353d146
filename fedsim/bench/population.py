"""Whether the number of clients matters: a thousand against a million, of which only those that take part are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.bench import configs
from fedsim.bench.figures import Figure, Report, Target, paired_ratios
from fedsim.bench.launch import Launcher
from fedsim.bench.measure import share_of_time, steady

FEW = 1000
N_WORKERS = 1
CHECK_S = Target(most=10.0)
RATIO = Target(least=0.9, most=1.1)
PEAK_GB = Target(most=1.0)
_GB = 1e9

Found = Mapping[str, Any]


def measure(launcher: Launcher, repeat: int, updates: int, clients: int) -> Report:
    """The report: `repeat` pairs of runs of the CNN, and as many checks of the large configuration.

    The CNN, because with it the time of an update is training and the server's work, in either population. Making a
    client's data is work of the data set: 4 % of the CNN's update, a fifth of a small network's, and the
    thousand are soon all made, the million never.
    """
    checks_s, fews, manys = [], [], []
    for i in range(repeat):
        checks_s.append(launcher.check_s(f"check-{i}", configs.cnn(updates, clients)))
        fews.append(_run(launcher, f"few-{i}", configs.cnn(updates, FEW)))
        manys.append(_run(launcher, f"many-{i}", configs.cnn(updates, clients)))
    return Report(
        bench="population",
        machine=launcher.machine,
        what=f"FedAsync, {configs.CONCURRENCY} tasks in flight, the CNN, {N_WORKERS} worker, {updates:,} updates: "
        f"{FEW:,} clients against {clients:,}, {repeat} times in turn",
        settings={"clients": clients, "updates": updates, "repeat": repeat, "set": list(launcher.overrides)},
        figures=_figures(checks_s, fews, manys, clients),
        runs=[run for pair in zip(fews, manys, strict=True) for run in pair],
    )


def _run(launcher: Launcher, name: str, config: Mapping[str, Any]) -> Found:
    ran = launcher.run(name, config, N_WORKERS)
    window = steady(ran.run)
    ms = 1e3 / window.updates_per_s
    server_ms = share_of_time(ran.run, 0, "cpu_s", window) * ms
    launcher.say(f"{name}: {ms:.2f} ms an update, rank zero's peak {ran.peak_bytes[0] / _GB:.3f} GB")
    clients = config["data"]["clients"]
    return {"clients": clients, "update_ms": ms, "server_cpu_ms": server_ms, "peak_bytes": ran.peak_bytes[0]}


def _figures(checks_s: Sequence[float], fews: Sequence[Found], manys: Sequence[Found], clients: int) -> list[Figure]:
    def of(runs: Sequence[Found], key: str, unit: float = 1.0) -> list[float]:
        return [run[key] / unit for run in runs]

    ratios = paired_ratios(of(manys, "update_ms"), of(fews, "update_ms"))
    many = f"{clients:,} clients"
    return [
        Figure.of(f"check, {many}", checks_s, "s", CHECK_S),
        Figure.of(f"an update, {FEW:,} clients", of(fews, "update_ms"), "ms"),
        Figure.of(f"an update, {many}", of(manys, "update_ms"), "ms"),
        Figure.of("ratio of the times of an update", ratios, "1", RATIO),
        Figure.of(f"rank zero an update, {FEW:,} clients", of(fews, "server_cpu_ms"), "ms of processor"),
        Figure.of(f"rank zero an update, {many}", of(manys, "server_cpu_ms"), "ms of processor"),
        Figure.of(f"rank zero's peak, {FEW:,} clients", of(fews, "peak_bytes", _GB), "GB"),
        Figure.of(f"rank zero's peak, {many}", of(manys, "peak_bytes", _GB), "GB", PEAK_GB),
    ]
