"""Messages as bytes: fixed little-endian records behind a fixed header, nothing pickled.

A command (server to worker) is a header of int64 words, then the lists it counts. A reply (worker to server) is
a header of four int64 words and the worker's counters, then its records. Both are bounded: `MAX_TASKS` tasks a group.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, chain
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from fedsim.comm.transport import N_COUNTERS, Collected, Command, Counters, Delivered, Evaluated, Failed, Trained
from fedsim.tables import IN_ROW, NOT_SENT, REPORT, TASK, ReportTable, TaskTable
from fedsim.types import EvaluationRow, Float64, Int64

Bytes = NDArray[np.uint8]

_counted = attrgetter(*Counters.__slots__)

MAX_TASKS = 512
MAX_TEXT_BYTES = 16384

_N_LISTS = 9
_COMMAND_HEADER = struct.Struct(f"<{1 + _N_LISTS + 4}q")  # tasks, numbers in each list, flags
_REPLY_HEADER = struct.Struct(f"<4q{N_COUNTERS}d")  # kind, records, version, bytes that follow; counters
COMMAND_BYTES = _COMMAND_HEADER.size + MAX_TASKS * TASK.itemsize + (_N_LISTS + 1) * 8 * MAX_TASKS
REPLY_BYTES = _REPLY_HEADER.size + max(MAX_TASKS * REPORT.itemsize, MAX_TEXT_BYTES)

TRAINED, DELIVERED, EVALUATED, FAILED, STOPPED, COLLECTED, SUMMED = range(1, 8)


def encode_command(command: Command) -> Bytes:
    """The bytes of a command, uint8, at most `COMMAND_BYTES` (the lists hold at most `MAX_TASKS` each)."""
    assert len(command.send) == len(command.tasks)
    lists = _lists(command)
    stop = command.stop * (1 + 2 * command.shows_stack + 4 * command.comes_again)
    flags = (command.evaluate, command.collect + 2 * command.in_haste, stop, int(command.total))
    header = _COMMAND_HEADER.pack(len(command.tasks), *map(len, lists), *flags)
    tasks = TaskTable.of(command.tasks).rows
    tasks["send"] = 1 if all(command.send) else command.send
    numbers = list(chain(*lists))
    last = struct.pack(f"<{len(numbers)}q{len(command.weights)}d", *numbers, *command.weights)
    return np.frombuffer(header + tasks.tobytes() + last, np.uint8)


def decode_command(data: Bytes) -> Command:
    """The command in a received buffer; bytes after its end are ignored, and it may be used again. Of its tasks' times
    two are there."""
    n_tasks, *counts, evaluate, collect, stop, total = _COMMAND_HEADER.unpack_from(data.data)
    end = _COMMAND_HEADER.size + n_tasks * TASK.itemsize
    # a copy, since the buffer is received into again: of bytes, which takes a fifth of what one of records does
    records = np.frombuffer(bytearray(data[_COMMAND_HEADER.size : end]), TASK)
    n_numbers = sum(counts)
    numbers = list(struct.unpack_from(f"<{n_numbers}q", data.data, end))
    lists = [numbers[last - n : last] for n, last in zip(counts, accumulate(counts), strict=True)]
    send = records["send"].astype(bool).tolist()
    coming, forget, fetch, drop, commit, discard, adopt, add, places = lists
    weights = list(struct.unpack_from(f"<{len(add)}d", data.data, end + 8 * n_numbers))
    last = (bool(collect & 1), bool(stop & 2), add, weights, bool(total), places, bool(stop & 4), bool(collect & 2))
    tasks = TaskTable(records)
    return Command(tasks, send, coming, forget, fetch, drop, evaluate, stop > 0, commit, discard, adopt, *last)


def _lists(command: Command) -> tuple[Sequence[int], ...]:
    """The lists of numbers in a command, in their order."""
    first = (command.coming, command.forget, command.fetch, command.drop)
    return (*first, command.commit, command.discard, command.adopt, command.add, command.places)


def _reply(kind: int, n: int, version: int, counters: Counters, body: Bytes) -> Bytes:
    header = _REPLY_HEADER.pack(kind, n, version, body.size, *_counted(counters))
    return np.frombuffer(header + body.tobytes(), np.uint8)


def encode_trained(message: Trained, counters: Counters) -> Bytes:
    """Reports of a trained group; the rows sent travel apart, or lie in places, ascending, that the reports say."""
    records = ReportTable.of(message.reports).rows
    records["sent"] = _in_rows(message.places) if message.places else message.sent
    return _reply(TRAINED, records.size, 0, counters, records.view(np.uint8))


def _in_rows(places: Sequence[int]) -> Int64:
    """What reports say of updates that lie in these rows."""
    if isinstance(places, range):
        assert places.step == 1
        return np.arange(places.start + IN_ROW, places.stop + IN_ROW)
    return np.add(places, IN_ROW)


def encode_delivered(message: Delivered, counters: Counters) -> Bytes:
    """The numbers of delivered tasks; their rows travel apart."""
    return _reply(DELIVERED, len(message.tasks), 0, counters, np.array(message.tasks, dtype="<i8").view(np.uint8))


def encode_evaluated(message: Evaluated, counters: Counters) -> Bytes:
    """The announcement of an evaluation's table, which travels apart."""
    return _reply(EVALUATED, len(message.rows), message.version, counters, np.empty(0, np.uint8))


def encode_collected(message: Collected, counters: Counters) -> Bytes:
    """The clients whose states travel apart, at most `MAX_TASKS`; the version's word says whether they are the last."""
    clients = np.array(message.clients, dtype="<i8").view(np.uint8)
    return _reply(COLLECTED, len(message.clients), int(message.is_last), counters, clients)


def encode_failed(message: Failed, counters: Counters) -> Bytes:
    """A failure: client, task and text (its end is kept if it is long, without half a character)."""
    text = message.text.encode(errors="backslashreplace")  # names of files may hold surrogates
    text = text[-(MAX_TEXT_BYTES - 24) :].decode(errors="ignore").encode()
    where = np.array([message.client, message.task, int(message.is_user_error)], dtype="<i8").view(np.uint8)
    return _reply(FAILED, 0, 0, counters, np.concatenate([where, np.frombuffer(text, np.uint8)]))


def encode_summed(counters: Counters) -> Bytes:
    """The announcement of a sum, which travels apart."""
    return _reply(SUMMED, 0, 0, counters, np.empty(0, np.uint8))


def encode_stopped(counters: Counters) -> Bytes:
    """A worker's last word."""
    return _reply(STOPPED, 0, 0, counters, np.empty(0, np.uint8))


def decode_header(data: Bytes) -> tuple[int, int, int, Counters, Bytes]:
    """Kind, number of records, version, counters and body of a reply; the body is a copy."""
    kind, n, version, size, *numbers = _REPLY_HEADER.unpack_from(data.data)
    start = _REPLY_HEADER.size
    return kind, n, version, Counters(*numbers), data[start : start + size].copy()


def decode_trained(rank: int, body: Bytes) -> tuple[ReportTable, list[bool], Sequence[int]]:
    """Reports of a group, for each whether its update is for rank zero, and the rows that they lie in, if they do."""
    records = np.frombuffer(body, REPORT)
    sent, n = records["sent"], records.size
    if not n or sent[0] < IN_ROW:
        return ReportTable(records, rank), [number != NOT_SENT for number in sent.tolist()], ()
    first, last = int(sent[0]) - IN_ROW, int(sent[-1]) - IN_ROW  # ascending
    places = range(first, last + 1) if last - first == n - 1 else [number - IN_ROW for number in sent.tolist()]
    return ReportTable(records, rank), [True] * n, places


def decode_failed(worker: int, body: Bytes) -> Failed:
    client, task, is_user_error = body[:24].view("<i8").tolist()
    text = body[24:].tobytes().decode(errors="replace")
    return Failed(worker, client, task, bool(is_user_error), text)


def evaluation_table(rows: Sequence[EvaluationRow]) -> Float64:
    """Evaluation rows as float64 (n, 4 + metrics): client, samples, loss, whose model, then metrics in their order."""
    columns = [(r.client, r.n_samples, r.loss, r.is_personal, *r.metrics.values()) for r in rows]
    return np.array(columns, dtype=np.float64)


def evaluation_rows(table: Float64, metric_names: Sequence[str]) -> list[EvaluationRow]:
    """The inverse of `evaluation_table`."""
    return [
        EvaluationRow(
            int(line[0]), int(line[1]), line[2], dict(zip(metric_names, line[4:], strict=True)), bool(line[3])
        )
        for line in table.tolist()
    ]
