"""Updates and versions in fewer bytes: the same bits on one and three ranks and replayed, and really fewer bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

N_PARAMETERS = 64 * 64 + 64 + 64 * 5 + 5
UPDATE_BYTES = {
    "none": 4 * N_PARAMETERS,
    "float16": 2 * N_PARAMETERS,
    "top-k-models": 90 * 8,  # ceil(.02 x 4485) = 90 values, each with its position
    "qsgd-dynamic": 45 * 4 + -(-N_PARAMETERS // 2),  # 45 buckets of 100
    "sign-scaffold": 4 + -(-N_PARAMETERS // 8),
}
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(start_program: Callable[..., subprocess.CompletedProcess[str]], tmp_path_factory: Any) -> tuple[Found, Found]:
    """What was found on one rank, replayed too, and on three."""
    program = str(Path(__file__).with_name("compressed.py"))
    found = []
    for n, options in ((1, ["--replay"]), (3, [])):
        words = (sys.executable, program, str(tmp_path_factory.mktemp(f"ranks{n}")), *options)
        done = start_program(n, *words) if n > 1 else subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        found.append({line["name"]: line for line in lines})
    return found[0], found[1]


def test_the_same_bits_on_one_and_three_ranks_and_replayed(runs: tuple[Found, Found]) -> None:
    alone, three = runs
    assert len(alone) == len(three) == 6
    models = set()
    for name, run in alone.items():
        assert run["kept"]["status"] == "done"
        assert three[name]["kept"] == run["kept"], name
        assert run.get("replayed", run["kept"]) == run["kept"], name
        models.add(run["kept"]["model_sha256"])
    assert len(models) == 6, "each changes the numbers"


def test_fewer_bytes_travel(runs: tuple[Found, Found]) -> None:
    three = runs[1]
    for name, update_bytes in UPDATE_BYTES.items():
        run = three[name]
        least = 30 * update_bytes if name != "sign-scaffold" else 0
        assert least <= run["sent_bytes"] <= 80 * (update_bytes + 1000), "with headers, and what is trained again"
    assert three["top-k-models"]["sent_bytes"] < 0.2 * three["none"]["sent_bytes"]
    versions = three["float16"]["received_bytes"] / three["none"]["received_bytes"]
    assert 0.4 < versions < 0.6


def test_virtual_transfers_take_the_bytes_that_travel(runs: tuple[Found, Found]) -> None:
    def uploads(name: str) -> dict[int, float]:
        return dict(zip(runs[0][name]["client"], runs[0][name]["virtual_upload_s"], strict=True))

    whole = uploads("none")
    for name, n_bytes in UPDATE_BYTES.items():
        shorter = uploads(name)
        both = whole.keys() & shorter.keys()
        assert len(both) > 5
        for client in both:
            assert shorter[client] / whole[client] == pytest.approx(n_bytes / UPDATE_BYTES["none"])
    assert set(runs[0]["float16"]["virtual_download_s"]) == {2 * N_PARAMETERS / 1e4}
    assert set(runs[0]["none"]["virtual_download_s"]) == {4 * N_PARAMETERS / 1e4}
