"""Ranks that cannot work together: one line from one rank, the same exit code from all, and nothing hangs."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

TABLE = "site,a,b,label\n" + "".join(
    f"{site},{0.1 * i},{i * i % 7},{i % 2}\n" for site in ("north", "south", "west") for i in range(12)
)
CONFIG = """\
name: table
data: {dataset: csv, path: table.csv, client: site, label: label}
model: {kind: logistic}
training: {optimizer: {kind: sgd, learning_rate: 0.1}, batch_size: 4, epochs: 1}
schedule: {policy: async, concurrency: 3}
aggregation: {rule: fedasync}
stop: {versions: 6}
"""


def _folder(path: Path, config: str = CONFIG, table: str | None = TABLE) -> Path:
    path.mkdir()
    (path / "c.yaml").write_text(config, encoding="utf-8")
    if table is not None:
        (path / "table.csv").write_text(table, encoding="utf-8")
    return path


def _ours(done: Any) -> list[str]:
    """The lines that fedsim printed on the error stream; the launcher adds some of its own."""
    return [line for line in done.stderr.splitlines() if line.startswith("fedsim: ")]


def _mixed(start_mixed: Any, here: Path, there: Path, out: Path, *, env: dict[str, str] | None = None) -> Any:
    def words(folder: Path) -> list[str]:
        return ["run", str(folder / "c.yaml"), "--out", str(out), "--quiet"]

    return start_mixed((2, words(here), {}), (1, words(there), env or {}))


def _assert_refused(done: Any, *fragments: str) -> None:
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stderr}"
    lines = _ours(done)
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for fragment in fragments:
        assert fragment in lines[0]


def test_the_table_itself_runs(start: Any, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    done = start(3, "run", str(folder / "c.yaml"), "--out", str(tmp_path / "run"), "--quiet")
    assert done.returncode == 0, done.stderr


def test_different_configurations(start_mixed: Any, tmp_path: Path) -> None:
    here, there = _folder(tmp_path / "a"), _folder(tmp_path / "b", CONFIG.replace("0.1", "0.2"))
    done = _mixed(start_mixed, here, there, tmp_path / "run")
    _assert_refused(done, "different configurations", "rank 2", platform.node())
    assert not (tmp_path / "run").exists()


def test_a_rank_without_the_data(start_mixed: Any, tmp_path: Path) -> None:
    here, there = _folder(tmp_path / "a"), _folder(tmp_path / "b", table=None)
    done = _mixed(start_mixed, here, there, tmp_path / "run")
    _assert_refused(done, "rank 2", platform.node(), "table.csv")


def test_different_data(start_mixed: Any, tmp_path: Path) -> None:
    here, there = _folder(tmp_path / "a"), _folder(tmp_path / "b", table=TABLE.replace("0.1,", "0.3,"))
    done = _mixed(start_mixed, here, there, tmp_path / "run")
    _assert_refused(done, "different data", "rank 2", platform.node())


def test_different_cpu_capability(start_mixed: Any, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    done = _mixed(start_mixed, folder, folder, tmp_path / "run", env={"ATEN_CPU_CAPABILITY": "default"})
    _assert_refused(done, "same bits", "rank 2", platform.node(), "allow_mixed")


def test_different_cpu_capability_allowed(start_mixed: Any, summary: Any, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", CONFIG + "allow_mixed: true\n")
    done = _mixed(start_mixed, folder, folder, tmp_path / "run", env={"ATEN_CPU_CAPABILITY": "default"})
    assert done.returncode == 0, done.stderr
    assert summary(tmp_path / "run")["status"] == "done"


def test_a_wrong_configuration_is_told_once(start: Any, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", CONFIG.replace("concurrency", "concurency"))
    done = start(3, "run", str(folder / "c.yaml"), "--out", str(tmp_path / "run"))
    _assert_refused(done, "c.yaml:5", "concurency", "concurrency")


def test_a_folder_that_is_there_already(start: Any, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    (tmp_path / "run").mkdir()
    done = start(3, "run", str(folder / "c.yaml"), "--out", str(tmp_path / "run"))
    _assert_refused(done, "exists already", "--out")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("n", [1, 3])
def test_training_that_diverges_names_the_task(n: int, start: Any, summary: Any, tmp_path: Path) -> None:
    wild = CONFIG.replace("0.1}, batch_size: 4, epochs: 1", "3.0e+38}, batch_size: 4, epochs: 20")
    folder = _folder(tmp_path / "a", wild)
    done = start(n, "run", str(folder / "c.yaml"), "--out", str(tmp_path / "run"), "--quiet")
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stderr}"
    [line] = _ours(done)
    for word in ("client", "task", "version", "step"):
        assert word in line
    assert summary(tmp_path / "run")["status"] == "failed"


def test_an_exception_at_a_worker_ends_all_ranks(start: Any, summary: Any, tmp_path: Path) -> None:
    words = ("run", "configs/heart-async.yaml", "--out", str(tmp_path / "run"), "--quiet")
    done = start(3, *words, env={"FEDSIM_INJECT": "raise:5@2"})
    assert done.returncode == 70, f"exit code {done.returncode}\n{done.stderr}"
    assert f"### worker 2 of 2 on {platform.node()}" in done.stderr
    assert "RuntimeError: FEDSIM_INJECT asked for this exception" in done.stderr
    assert summary(tmp_path / "run")["status"] == "failed"


def test_a_stall_ends_with_every_rank_s_stack(start: Any, summary: Any, tmp_path: Path) -> None:
    words = ("run", "configs/heart-async.yaml", "--out", str(tmp_path / "run"), "--quiet", "--set", "stall_timeout_s=2")
    done = start(3, *words, env={"FEDSIM_INJECT": "hang:5@2"})
    assert done.returncode == 76, done.stderr
    for rank in range(3):
        assert f"### rank {rank} of 3 on {platform.node()}" in done.stderr
    assert "faults.py" in done.stderr, "the stack says where rank 2 is"
    assert any("no sign of life from any worker" in line for line in _ours(done))
    assert summary(tmp_path / "run")["status"] == "stalled"


def test_a_wrong_injection_is_refused(start: Any, tmp_path: Path) -> None:
    words = ("run", "configs/heart-async.yaml", "--out", str(tmp_path / "run"), "--quiet")
    _assert_refused(start(3, *words, env={"FEDSIM_INJECT": "slep:1"}), "FEDSIM_INJECT", "slep:1", "sleep:SECONDS")
