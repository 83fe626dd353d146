"""Rank zero's receive and apply of an update, against the time to read and write each array involved once.

A second rank sends updates; rank zero receives one and applies it, as a job does: FedBuff's pass over the accumulator,
and FedAsync's over the model and the version that it publishes. The machine's own speed is measured in the same run, on
arrays of the same sizes: what a copy of so many bytes takes. Shape: `P` parameters.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.bench.figures import Figure, Report, Target, paired_ratios
from fedsim.bench.launch import Launcher
from fedsim.comm.pieces import Receiving, spans
from fedsim.types import Float32, TaskReport, Update

TIMES = Target(most=2.0)
LEAST_S = 0.2  # of each measurement
# Bytes read and written an element when each array is touched once: the message out of the sender's memory and into
# ours, then the update read, float64 sums read and written; for FedAsync the version written besides.
TOUCHED = {"fedbuff": 4 + 4 + 4 + 8 + 8, "fedasync": 4 + 4 + 4 + 8 + 8 + 4}
RULES = {"fedbuff": {"rule": "fedbuff"}, "fedasync": {"rule": "fedasync"}}

Found = Mapping[str, Any]


def measure(launcher: Launcher, repeat: int, sizes: Sequence[int]) -> Report:
    """The report: for each size and rule the time to receive and apply an update, over that of the copy."""
    out = launcher.folder / "apply.json"
    program = [sys.executable, "-m", "fedsim.bench.apply", str(out), str(repeat), *map(str, sizes)]
    launcher.call("apply", [*launcher.mpirun, "-n", "2", *program], {})
    found: list[Found] = json.loads(out.read_text("utf-8"))
    return Report(
        bench="apply",
        machine=launcher.machine,
        what=f"receive and apply of an update on rank zero, {repeat} times in turn with copies of as many bytes",
        settings={"sizes": list(sizes), "repeat": repeat},
        figures=[figure for n in sizes for rule in RULES for figure in _figures(n, rule, found)],
        runs=found,
    )


def _figures(n_parameters: int, rule: str, found: Sequence[Found]) -> list[Figure]:
    runs = [run for run in found if run["parameters"] == n_parameters and run["rule"] == rule]
    spent, least = [run["apply_s"] for run in runs], [run["touch_s"] for run in runs]
    name = f"{rule}, {n_parameters:,} parameters"
    own = [1e6 * run["overhead_s"] for run in runs]
    figures = [
        Figure.of(f"{name}: receive and apply", [1e3 * s for s in spent], "ms"),
        Figure.of(f"{name}: over each array once", paired_ratios(spent, least), "times", TIMES),
    ]
    if n_parameters <= 10**5:
        figures.append(Figure.of(f"{name}: of it the calls alone", own, "us"))
    return figures


# ------------------------------------------------------------------------------------------------ the two ranks


def _timed(act: Callable[[], object]) -> float:
    """Seconds that a call takes, repeated until there is something to measure."""
    n, start_s = 0, time.perf_counter()
    while n == 0 or time.perf_counter() - start_s < LEAST_S:
        act()
        n += 1
    return (time.perf_counter() - start_s) / n


def _applier(rule_name: str, n_parameters: int) -> Callable[[Float32, Callable[[int], None] | None], object]:
    """What rank zero does with a received vector, or one that is coming in, in a state that lives on."""
    from pydantic import TypeAdapter

    from fedsim.aggregation import Arrival, build
    from fedsim.config import AggregationConfig

    rule = build(TypeAdapter(AggregationConfig).validate_python(RULES[rule_name]))
    rule.hasten()
    state = rule.init(np.zeros(n_parameters, np.float32))
    report, arrival = TaskReport(0, 1, 1, 1, 0.0, 0.0, 0.0, 0.0), Arrival(3)
    if rule_name == "fedbuff":
        rule.accumulate(state, Update(report, np.zeros(n_parameters, np.float32)), arrival)
        return lambda vector_P, ready: rule.accumulate(state, Update(report, vector_P, ready), arrival)
    return lambda vector_P, ready: rule.complete(state, Update(report, vector_P, ready), arrival)


def _copier(n_bytes: int) -> Callable[[], object]:
    """A copy that reads and writes so many bytes in all.

    The source is written first: memory that never was is one page of zeros, read out of a cache.
    """
    half = max(8, n_bytes // 2)
    source, target = np.ones(half, np.uint8), np.ones(half, np.uint8)
    return lambda: np.copyto(target, source)


def _serve(comm: Any, n_parameters: int, rule_name: str) -> dict[str, float | int | str]:
    """Rank zero: one measurement of receive and apply, of the copy, and of the calls with nearly nothing to do."""
    apply, vector_P = _applier(rule_name, n_parameters), np.ones(n_parameters, np.float32)

    def receive(n: int) -> float:
        """Seconds an update, of `n` whose messages are there as soon as the one before is applied."""
        comm.Send(np.full(1, n, np.int64), dest=1)
        start_s = time.perf_counter()
        for _ in range(n):
            _receive(comm, vector_P, apply)
        return (time.perf_counter() - start_s) / n

    receive(1)
    spent = receive(max(3, math.ceil(LEAST_S / receive(2))))
    comm.Send(np.zeros(1, np.int64), dest=1)
    small, little_P = _applier(rule_name, 8), np.ones(8, np.float32)
    overhead = _timed(lambda: small(little_P, None))
    copy = _copier(TOUCHED[rule_name] * n_parameters)
    copy()
    touch = _timed(copy)
    return {"parameters": n_parameters, "rule": rule_name, "apply_s": spent, "touch_s": touch, "overhead_s": overhead}


def _receive(comm: Any, vector_P: Float32, apply: Callable[[Float32, Callable[[int], None] | None], object]) -> None:
    """As the engine does: in pieces, applied while they come in where there is more than one."""
    receiving = Receiving([vector_P], partial(comm.Irecv, source=1))

    def ready(n: int) -> None:
        while receiving.n_here < n:
            receiving.advance()

    if not receiving.is_in_pieces:
        ready(vector_P.size)
    apply(vector_P, ready if receiving.is_in_pieces else None)


def _send(comm: Any, n_parameters: int) -> None:
    """The worker: as many vectors as are asked for, one after the other, until none are."""
    vector_P, wanted = np.ones(n_parameters, np.float32), np.empty(1, np.int64)
    while True:
        comm.Recv(wanted, source=0)
        if not wanted[0]:
            return
        for _ in range(int(wanted[0])):
            requests = [comm.Isend(vector_P[start:stop], dest=0) for start, stop in spans(n_parameters)]
            for request in requests:
                request.Wait()


def main() -> None:
    """Measures every size with every rule in turn, and leaves what was found in a file."""
    from mpi4py import MPI

    out, repeat, *sizes = sys.argv[1:]
    comm = MPI.COMM_WORLD
    found = []
    for _ in range(int(repeat)):
        for size in map(int, sizes):
            for rule in RULES:
                if comm.rank == 0:
                    found.append(_serve(comm, size, rule))
                else:
                    _send(comm, size)
                comm.Barrier()
    if comm.rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
