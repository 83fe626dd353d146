"""Device traces: CSV files that the user names, read strictly and with a bound on their size."""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import DataError
from fedsim.types import Float64, Int64

MAX_FILE_BYTES = 2**27


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns asked for, one value a row: `clients` (if there is one) and `floats` by name; `lines` in the file."""

    path: Path
    clients: Int64 | None
    floats: dict[str, Float64]
    lines: Int64

    def refuse(self, bad: NDArray[np.bool_], name: str, allowed: str) -> None:
        """Raises DataError that names the first row for which `bad`, of shape (rows,), is true, if there is one."""
        if bad.any():
            row = int(np.argmax(bad))
            got = float(self.floats[name][row])
            raise DataError(f"{self.path}, line {self.lines[row]}: {name} is {got:.15g}, allowed: {allowed}")


def read_columns(path: Path, required: Sequence[str], optional: Sequence[str], n_clients: int) -> Columns:
    """The named columns of a CSV file whose first line names them; other columns are skipped.

    A column `client` holds numbers from 0 to `n_clients - 1`; the others hold finite numbers.
    Raises DataError, in one line that names file and line, for anything else, for a file without rows, and for one
    above 128 MiB.
    """
    text = io.TextIOWrapper(io.BytesIO(_read_bytes(path)), encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    rows = _rows(reader, path)
    header = [name.strip() for name in next(rows, [])]
    names = _wanted(path, header, required, optional)
    clients, lines = array("q"), array("q")
    floats = {name: array("d") for name in names if name != "client"}
    for row in rows:
        place = f"{path}, line {reader.line_num}"
        if len(row) != len(header):
            raise DataError(f"{place}: {len(row)} fields, where the first line names {len(header)} columns")
        lines.append(reader.line_num)
        for name, at in names.items():
            if name == "client":
                clients.append(_client(row[at], place, n_clients))
            else:
                floats[name].append(_number(row[at], place, name))
    if not lines:
        raise DataError(f"{path}: no rows below the line of column names")
    return Columns(
        path,
        np.array(clients, np.int64) if "client" in names else None,
        {name: np.array(values, np.float64) for name, values in floats.items()},
        np.array(lines, np.int64),
    )


def _read_bytes(path: Path) -> bytes:
    """The file's bytes, known to be UTF-8."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'not a regular file' if path.exists() else 'no such file'} (a device trace)")
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)  # the size that the system states may change meanwhile
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{path}: larger than {MAX_FILE_BYTES} bytes, the most for a device trace")
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text") from error
    return content


def _rows(reader: Iterator[list[str]], path: Path) -> Iterator[list[str]]:
    """The rows that are not blank; the csv module's complaints as DataError."""
    try:
        for row in reader:
            if row and any(field.strip() for field in row):
                yield row
    except csv.Error as error:
        raise DataError(f"{path}, line {getattr(reader, 'line_num', 0)}: {error}") from error


def _wanted(path: Path, header: list[str], required: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    """Where each column stands that is asked for and there."""
    for name in (*required, *optional):
        if header.count(name) > 1:
            raise DataError(f"{path}, line 1: column '{name}' is named {header.count(name)} times")
    missing = [name for name in required if name not in header]
    if missing:
        got = ", ".join(header)[:200] or "nothing"
        raise DataError(f"{path}, line 1: needs the columns {', '.join(required)}, got {got} (no '{missing[0]}')")
    return {name: header.index(name) for name in (*required, *optional) if name in header}


def _client(text: str, place: str, n_clients: int) -> int:
    digits = text.strip()
    value = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else -1
    if not 0 <= value < n_clients:
        raise DataError(f"{place}: client is '{text[:40]}', allowed: 0 to {n_clients - 1}")
    return value


def _number(text: str, place: str, name: str) -> float:
    try:
        value = math.nan if "_" in text else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{place}: {name} is '{text[:40]}', allowed: a finite number")
    return value
