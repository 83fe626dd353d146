"""Hostile files by the thousand: configurations, records, checkpoints, data and traces, mutated from whole ones.

    python tests/fuzz/sweep.py CONFIGURATIONS FILES SEED

Every one is accepted, or refused with one line: anything else is told with the seed of the case, and the exit code is
1. Memory is bounded for the whole process, time for each case.
"""

from __future__ import annotations

import hashlib
import io
import random
import resource
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np

from fedsim import configfile
from fedsim.config import RunConfig
from fedsim.errors import FedsimError

ROOT = Path(__file__).parents[2]
CASE_S = 10
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


def seeds_of_files(folder: Path) -> dict[str, tuple[bytes, str, Callable[[Path], object]]]:
    """Whole files by name: their bytes, the name to give a mutant, and what is done with it."""
    import fedsim
    from fedsim.record.checkpoint import Checkpoint
    from fedsim.record.reader import open_run

    text = (ROOT / "configs" / "quickstart.yaml").read_text()
    (folder / "c.yaml").write_text(text.replace("versions: 200", "versions: 12") + "checkpoint: {every_versions: 4}\n")
    fedsim.run(folder / "c.yaml", folder / "run")

    def read_run(path: Path) -> object:
        run = open_run(path)
        return run.summary(), run.tasks, run.workers, run.failures, run.places, run.layout, run.attempts

    def read_checkpoint(path: Path) -> object:
        found = Checkpoint(path)
        return list(found.versions(14)), restored(found)

    def restored(found: object) -> None:
        from fedsim import snapshot
        from fedsim.engine import resume
        from fedsim.engine.plan import plan

        made = plan(configfile.load(folder / "c.yaml"), folder)
        with resume.understood(found):  # type: ignore[arg-type]
            made.schedule().restore(snapshot.part(found.snapshot, "schedule"))  # type: ignore[attr-defined]
            snapshot.put(made.rule.init(made.initial_P), snapshot.part(found.snapshot, "rule"))  # type: ignore[attr-defined]

    buffer = io.BytesIO()
    images, labels = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 2
    np.savez(buffer, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    csv = b"client,a,b,label\n" + b"".join(b"%d,%d,1.5,%d\n" % (i % 3, i, i % 2) for i in range(20))
    run = folder / "run"
    checkpoints = sorted(run.glob("checkpoint-*.h5"))
    return {
        "record": ((run / "record.h5").read_bytes(), "m.h5", read_run),
        "attempt": ((run / "record-000.h5").read_bytes(), "m.h5", read_run),
        "checkpoint": (checkpoints[-1].read_bytes(), "m.h5", read_checkpoint),
        "npz": (buffer.getvalue(), "m.npz", reader_of("npz")),
        "csv": (csv, "m.csv", reader_of("csv")),
    }


def reader_of(dataset: str) -> Callable[[Path], object]:
    """Builds the population of a data file."""

    def read(path: Path) -> object:
        from fedsim import population

        rest = {"csv": {"label": "label", "client": "client"}}.get(dataset, {})
        partition = {"kind": "natural"} if dataset == "csv" else {"kind": "iid", "clients": 2}
        base = configfile.load(ROOT / "configs" / "quickstart.yaml").model_dump()
        mapping = {**base, "data": {"dataset": dataset, "path": str(path), **rest}, "partition": partition}
        people = population.build(configfile.from_mapping(mapping), path.parent)
        return people.shard(0)

    return read


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


def sweep_configurations(n: int, seed: int, counts: Counter[str]) -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").glob("*.yaml"))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        for case in range(n):
            draws = random.Random(f"configuration {seed} {case}")
            text = mutated_text(draws, draws.choice(texts))
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            tried(f"configuration {seed} {case}", lambda: configfile.resolved_text(configfile.load(path)), counts)


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
