"""Hostile files by the thousand: configurations, records, checkpoints, data and traces, mutated from whole ones.

    python tests/fuzz/sweep.py CONFIGURATIONS FILES SEED

Every one is accepted, or refused with one line: anything else is told with the seed of the case, and the exit code is
1. Memory is bounded for the whole process, time for each case.
"""

from __future__ import annotations

import hashlib
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

from seeds import ROOT, seeds_of_files

from fedsim import configfile
from fedsim.config import RunConfig
from fedsim.errors import FedsimError

CASE_S = 10
PLANNED = 0.1
MEMORY_BYTES = 6 * 2**30
NASTY = (
    *("null", "-1", "0", "1e400", ".nan", ".inf", "true", "[]", "{}", "''", "9" * 40, "1e-320", "0x10", "-0.0", "08"),
    *("!!python/name:os.system", "&a [*a]", "../../etc/passwd", "/dev/zero", "2147483648", "'\\0'", "~", "1_000"),
    *("{kind: x}", "[[[[[[1]]]]]]"),
)
MAGIC = b"\nfedsim checkpoint sha256 "


class TooLong(BaseException):
    """A case took longer than it may."""


def ring(number: int, frame: FrameType | None) -> None:
    raise TooLong


def mutated_text(draws: random.Random, text: str) -> str:
    """A configuration with a few lines, values or characters changed."""
    lines = text.splitlines()
    for _ in range(draws.choice((1, 1, 1, 2, 4))):
        at = draws.randrange(len(lines))
        how = draws.randrange(7)
        if how == 0:
            key = lines[at].split(":")[0]
            lines[at] = f"{key}: {draws.choice(NASTY)}"
        elif how == 1:
            del lines[at]
        elif how == 2:
            lines.insert(at, lines[draws.randrange(len(lines))])
        elif how == 3:
            lines[at] = " " * draws.randrange(6) + lines[at].lstrip()
        elif how == 4 and lines[at]:
            i = draws.randrange(len(lines[at]))
            lines[at] = (
                lines[at][:i] + draws.choice(":{}[]#&*!|>'\"%@`,? \t\x00\ud800é-0123456789abc") + lines[at][i + 1 :]
            )
        elif how == 5:
            digits = [i for i, c in enumerate(lines[at]) if c.isdigit()]
            if digits:
                i = draws.choice(digits)
                lines[at] = lines[at][:i] + draws.choice(("-", "", "9" * 12, "e9", ".")) + lines[at][i + 1 :]
        else:
            other = draws.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        if not lines:
            return ""
    return "\n".join(lines)


def mutated_bytes(draws: random.Random, data: bytes) -> bytes:
    """A file with a few bytes changed, cut, doubled or overwritten; a checkpoint's checksum often made right again."""
    found = bytearray(data)
    for _ in range(draws.choice((1, 1, 2, 5, 20))):
        at, how = draws.randrange(len(found) + 1), draws.randrange(6)
        if how <= 1 and at < len(found):
            found[at] = draws.randrange(256)
        elif how == 2 and draws.random() < 0.3:
            del found[at:]
        elif how == 3:
            found[at : at + 8] = draws.choice((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7, draws.randbytes(8)))
        elif how == 4:
            found[at:at] = found[at : at + draws.randrange(64)]
        elif at < len(found):
            found[at] ^= 1 << draws.randrange(8)
        if not found:
            break
    whole = bytes(found)
    if MAGIC in data and draws.random() < 0.7:
        body = whole[: whole.rfind(MAGIC)] if MAGIC in whole else whole
        whole = body + MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n"
    return whole


def tried(case: str, call: Callable[[], object], counts: Counter[str]) -> None:
    """Counts what became of a case; anything but acceptance or one line is told."""
    signal.alarm(CASE_S)
    try:
        call()
        counts["accepted"] += 1
    except FedsimError as error:
        counts["refused" if "\n" not in str(error) and str(error) else "several lines"] += 1
        if "\n" in str(error):
            print(f"{case}: several lines: {error!r}")
    except TooLong:
        counts["hung"] += 1
        print(f"{case}: took more than {CASE_S} s")
    except Exception:
        counts["traceback"] += 1
        print(f"{case}:")
        traceback.print_exc(limit=-6, file=sys.stdout)
    finally:
        signal.alarm(0)


def resolved_and_planned(path: Path, is_planned: bool) -> None:
    """What `fedsim check` does with a configuration; the costlier part of it if that is asked for."""
    from fedsim.engine.plan import plan

    config = configfile.load(path)
    configfile.resolved_text(config)
    if is_planned:
        plan(config, ROOT / "configs")


def sweep_configurations(n: int, seed: int, counts: Counter[str]) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").glob("*.yaml"))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        for case in range(n):
            draws = random.Random(f"configuration {seed} {case}")
            text = mutated_text(draws, draws.choice(texts))
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            is_planned = draws.random() < PLANNED
            tried(f"configuration {seed} {case}", partial(resolved_and_planned, path, is_planned), counts)


def sweep_files(n: int, seed: int, counts: Counter[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = seeds_of_files(folder)
        for data, file_name, read in seeds.values():
            (folder / file_name).write_bytes(data)
            read(folder / file_name)  # whole, each is accepted: or all that follows would show nothing
        for case in range(n):
            draws = random.Random(f"file {seed} {case}")
            kind = draws.choice(sorted(seeds))
            data, file_name, read = seeds[kind]
            path = folder / file_name
            path.write_bytes(mutated_bytes(draws, data))
            tried(f"{kind} {seed} {case}", lambda read=read, path=path: read(path), counts)  # type: ignore[misc]


def main(n_configurations: int, n_files: int, seed: int) -> int:
    """1 if any case ended otherwise than it may."""
    assert RunConfig is not None
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, ring)
    bad = 0
    for name, sweep, n in (("configurations", sweep_configurations, n_configurations), ("files", sweep_files, n_files)):
        counts: Counter[str] = Counter()
        sweep(n, seed, counts)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{name}: {dict(counts)}, peak {peak} MiB")
        bad += sum(counts.values()) - counts["accepted"] - counts["refused"]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:4])))
