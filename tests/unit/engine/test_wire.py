"""Messages as bytes: what goes in comes out, and nothing is larger than the buffers that wait for it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.comm import wire
from fedsim.comm.transport import N_COUNTERS, Command, Counters, Delivered, Evaluated, Failed, Trained, empty_rows
from fedsim.tables import ReportTable, TaskTable
from fedsim.types import EvaluationRow, Task, TaskReport

NAN = math.nan
NUMBERS = st.integers(0, 2**63 - 1)
FLOATS = st.floats(allow_nan=True, allow_infinity=True)
COUNTERS = st.builds(Counters, *[st.floats(0, 1e15)] * N_COUNTERS)
FEW = st.lists(NUMBERS, max_size=6)


def task(n: int, learning_rate: float = 0.1) -> Task:
    return Task(n, n + 1, n + 2, n + 3, n + 4, n + 5, learning_rate, NAN, NAN, NAN, NAN, NAN, NAN, False, True)


def same(a: Any, b: Any) -> bool:
    """Equal, NaN included."""
    return len(a) == len(b) and all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))


def in_a_buffer(data: wire.Bytes, size: int) -> wire.Bytes:
    """As received: at the head of a larger buffer with something else behind."""
    assert data.dtype == np.uint8 and data.ndim == 1 and data.size <= size
    buffer = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
    buffer[: data.size] = data
    return buffer


TASKS = st.lists(
    st.tuples(*[NUMBERS] * 6, *[FLOATS] * 3).map(lambda t: Task(*t[:8], NAN, NAN, NAN, t[8], NAN, False, True)),
    max_size=6,  # type: ignore[call-arg]
)


@given(TASKS, st.data(), *[FEW] * 7, st.integers(-1, 2**63 - 1), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_commands(
    tasks: list[Task],
    data: Any,
    coming: list[int],
    forget: list[int],
    fetch: list[int],
    drop: list[int],
    commit: list[int],
    discard: list[int],
    adopt: list[int],
    evaluate: int,
    stop: bool,
    collect: bool,
    in_haste: bool,
) -> None:
    send = data.draw(st.lists(st.booleans(), min_size=len(tasks), max_size=len(tasks)))
    added = data.draw(st.lists(st.tuples(NUMBERS, st.floats(0, 1e9)), max_size=6))
    sums = ([number for number, _ in added], [weight for _, weight in added], data.draw(st.booleans()))
    states = (commit, discard, adopt, collect, False)
    places = data.draw(st.lists(st.integers(-1, 2**40), max_size=6))
    lists = (tasks, send, coming, forget, fetch, drop)
    command = Command(*lists, evaluate, stop, *states, *sums, places, in_haste=in_haste)
    received = in_a_buffer(wire.encode_command(command), wire.COMMAND_BYTES)
    back = wire.decode_command(received)
    received[:] = 0  # the buffer waits for the next command: what was decoded must not change
    assert len(back.tasks) == len(tasks) and all(map(same, back.tasks, tasks))
    assert back[1:] == command[1:]


def test_of_a_tasks_times_the_worker_learns_its_delay() -> None:
    timed = task(3)._replace(dispatch_s=1.0, download_s=0.5, arrival_s=2.0, due_s=3.0, wanted=False, lost=True)
    back = wire.decode_command(in_a_buffer(wire.encode_command(Command([timed], [True])), wire.COMMAND_BYTES))
    assert same(back.tasks[0], task(3)._replace(dispatch_s=1.0, arrival_s=2.0))


REPORTS = st.lists(st.tuples(*[NUMBERS] * 3, *[FLOATS] * 4, st.booleans()), max_size=6)


@given(REPORTS, COUNTERS)
@settings(max_examples=200, deadline=None)
def test_reports(records: list[tuple[Any, ...]], counters: Counters) -> None:
    reports = [TaskReport(r[0], 4, *r[1:7]) for r in records]
    sent = [r[7] for r in records]
    message = Trained(3, reports, sent, empty_rows(0, 1))
    data = in_a_buffer(wire.encode_trained(message, counters), wire.REPLY_BYTES)
    kind, n, _, told, body = wire.decode_header(data)
    assert (kind, n, told) == (wire.TRAINED, len(reports), counters)
    data[:] = 0  # the buffer waits for the next header: what was decoded must not change
    back, back_sent, places = wire.decode_trained(4, body)
    assert len(back) == len(reports) and all(map(same, back, reports)) and back_sent == sent and not places


@given(st.lists(st.integers(0, 2**40) | st.integers(0, 8), min_size=1, max_size=6, unique=True).map(sorted))
def test_reports_of_updates_that_lie_in_rows(places: list[int]) -> None:
    reports = [TaskReport(task, 4, 1, 1, 0.0, 0.0, 0.0, 0.0) for task in range(len(places))]
    message = Trained(3, reports, [True] * len(places), empty_rows(0, 1), (), places)
    body = wire.decode_header(in_a_buffer(wire.encode_trained(message, Counters()), wire.REPLY_BYTES))[4]
    _, sent, found = wire.decode_trained(4, body)
    assert (sent, list(found)) == ([True] * len(places), places)


@given(FEW, COUNTERS)
def test_deliveries(tasks: list[int], counters: Counters) -> None:
    message = Delivered(1, tasks, empty_rows(len(tasks), 2))
    kind, n, _, told, body = wire.decode_header(in_a_buffer(wire.encode_delivered(message, counters), wire.REPLY_BYTES))
    assert (kind, n, told, body.view("<i8").tolist()) == (wire.DELIVERED, len(tasks), counters, tasks)


def test_evaluations_and_the_last_word() -> None:
    names = ["accuracy", "auc"]
    rows = [
        EvaluationRow(-1, 2**40, 0.25, dict(zip(names, [0.5, NAN], strict=True))),
        EvaluationRow(7, 1, NAN, dict(zip(names, [1.0, 0.0], strict=True)), is_personal=True),
    ]
    data = wire.encode_evaluated(Evaluated(2, 31, rows), Counters(busy_s=1.5))
    kind, n, version, counters, body = wire.decode_header(in_a_buffer(data, wire.REPLY_BYTES))
    assert (kind, n, version, counters.busy_s, body.size) == (wire.EVALUATED, 2, 31, 1.5, 0)
    table = wire.evaluation_table(rows)
    assert table.shape == (2, 6) and table.dtype == np.float64
    back = wire.evaluation_rows(table, names)
    for row, original in zip(back, rows, strict=True):
        assert (row.client, row.n_samples, list(row.metrics)) == (original.client, original.n_samples, names)
        assert same([row.loss, *row.metrics.values()], [original.loss, *original.metrics.values()])
    assert wire.decode_header(in_a_buffer(wire.encode_stopped(counters), wire.REPLY_BYTES))[0] == wire.STOPPED


def through(failed: Failed) -> Failed:
    data = in_a_buffer(wire.encode_failed(failed, Counters(n_tasks=3.0)), wire.REPLY_BYTES)
    kind, _, _, counters, body = wire.decode_header(data)
    assert kind == wire.FAILED and counters.n_tasks == 3.0
    return wire.decode_failed(failed.worker, body)


@given(st.integers(-1, 2**63 - 1), st.integers(-1, 2**63 - 1), st.booleans(), st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_failures(client: int, number: int, is_user_error: bool, text: str) -> None:
    failed = Failed(5, client, number, is_user_error, text)
    assert through(failed) == failed


@pytest.mark.parametrize("character", ["x", "é", "日", "🙂"])
@pytest.mark.parametrize("shift", range(4))
def test_of_a_long_text_the_end_is_kept(character: str, shift: int) -> None:
    text = character * 40_000 + "!" * shift
    back = through(Failed(0, 1, 2, False, text)).text
    assert text.endswith(back) and "\ufffd" not in back, "no half characters"
    assert wire.MAX_TEXT_BYTES - 24 - 4 < len(back.encode()) <= wire.MAX_TEXT_BYTES - 24


def test_a_text_with_surrogates_is_told_all_the_same() -> None:
    # Names of files that are no UTF-8 come as lone surrogates, and a failure has to be told whatever it says.
    name = b"data/\xff\xfe.npz".decode(errors="surrogateescape")
    assert through(Failed(0, 1, 2, True, f"{name}: no such file")).text == "data/\\udcff\\udcfe.npz: no such file"


def test_the_largest_messages_fit() -> None:
    n = wire.MAX_TASKS
    tasks = [task(k) for k in range(n)]
    many = list(range(2**62, 2**62 + n))
    sums = (many, [0.1 * k for k in range(n)], True)
    command = Command(tasks, [True] * n, many, many, many, many, 5, False, many, many, many, True, False, *sums, many)
    data = wire.encode_command(command)
    assert data.size == wire.COMMAND_BYTES and wire.decode_command(data)[1:] == command[1:]
    reports = [TaskReport(k, 1, 2, 3, 0.0, 0.0, 0.0, 0.0) for k in range(n)]
    assert wire.encode_trained(Trained(0, reports, [True] * n, empty_rows(0, 1)), Counters()).size <= wire.REPLY_BYTES
    assert wire.encode_delivered(Delivered(0, many, empty_rows(0, 1)), Counters()).size <= wire.REPLY_BYTES
    assert wire.encode_failed(Failed(0, 1, 2, True, "日" * 10**5), Counters()).size <= wire.REPLY_BYTES


def test_tables_are_sequences_of_what_they_were_made_of() -> None:
    tasks = [task(n)._replace(dispatch_s=1.0 * n, arrival_s=2.0 * n) for n in range(5)]
    table = TaskTable.of(tasks)
    assert TaskTable.of(table) is table and len(table) == 5 and all(map(same, table, tasks))
    assert same(table[-1], tasks[-1]) and all(map(same, table[1:3], tasks[1:3]))
    reports = [TaskReport(n, 7, 2 * n, 3, 0.5, 0.25 * n, 1.0, 1e-3) for n in range(4)]
    rows = ReportTable.of(reports)
    assert ReportTable.of(rows) is rows and list(rows) == reports and rows[2] == reports[2]
    assert list(rows[1:]) == reports[1:] and list(ReportTable.of([])) == []
