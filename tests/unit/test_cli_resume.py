"""`fedsim resume`: what it goes on with, what it refuses, and how long a signal takes to be answered."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedsim import configfile
from fedsim.cli import cli
from fedsim.engine import checkpoints, resume
from fedsim.record import checkpoint
from fedsim.record.reader import open_run

FEDSIM = (sys.executable, "-m", "fedsim")
CONFIG = """\
name: small
seed: 3
data: {dataset: heart}
model: {kind: logistic}
training: {optimizer: {kind: sgd, learning_rate: 0.01}, batch_size: 4, steps: 2, order: continued}
devices: {compute: {time: {law: exponential, mean: 1.0}}, loss_probability: 0.1}
schedule: {policy: buffered, concurrency: 3, buffer: 2}
aggregation: {rule: fedbuff}
evaluation: {every_versions: 4}
checkpoint: {every_versions: 7}
stop: {versions: 40}
"""
ENDLESS = ("--set", "stop.versions=1000000000")


def says(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(says("show", folder, "--json").stdout)
    return found


def bits(folder: Path) -> list[object]:
    told = summary(folder)
    return [told[name] for name in ("status", "model_sha256", "history_sha256", "versions", "updates", "outcomes")]


def versions_at(folder: Path, number: int) -> int:
    """Versions that there were at a checkpoint; the moment depends on how long the one before took to be written."""
    return checkpoints.rows_of(checkpoint.Checkpoint(folder / checkpoint.name_of(number)).snapshot)["versions"]


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, with its last two checkpoints."""
    folder, keep = tmp_path_factory.mktemp("runs") / "whole", checkpoints.Checkpoints.keep

    def kept_at_once(self: checkpoints.Checkpoints, *what: Any) -> None:
        """None is due while one is being written, and the first takes longer than all of this run may."""
        keep(self, *what)
        assert self._writing is not None
        self._writing.join()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Checkpoints, "keep", kept_at_once)
        assert says("run", config_path, "--out", folder, "--quiet").exit_code == 0
    assert len(checkpoint.numbers(folder)) == 2
    return folder


@pytest.fixture
def killed(whole: Path, tmp_path: Path) -> Path:
    """The same run as a kill near its end leaves it: nothing says how it ended."""
    folder = tmp_path / "killed"
    shutil.copytree(whole, folder)
    (folder / "record.h5").unlink()
    with h5py.File(folder / "record-000.h5", "r+") as file:
        file["run/status"][()] = np.bytes_("running")
    return folder


def test_it_goes_on_with_a_record_of_before_a_key_existed(
    whole: Path, config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = configfile.resolved_text
    monkeypatch.setattr(configfile, "resolved_text", lambda config: now(config).replace("cores: auto\n", ""))
    folder = tmp_path / "old"
    assert says("run", config_path, "--out", folder, "--quiet").exit_code == 0
    assert "cores:" not in open_run(folder).config_text
    monkeypatch.undo()
    (folder / "record.h5").unlink()
    with h5py.File(folder / "record-000.h5", "r+") as file:
        file["run/status"][()] = np.bytes_("running")
    assert says("resume", folder, "--quiet").exit_code == 0
    assert bits(folder) == bits(whole) and not list(folder.glob("*.unusable"))
    with h5py.File(folder / "record-001.h5") as file:
        assert json.loads(file.attrs["start_rows"])["versions"] > 0


def test_it_goes_on_to_the_same_bits(whole: Path, killed: Path) -> None:
    assert says("resume", killed, "--quiet").exit_code == 0
    assert bits(killed) == bits(whole)
    told = summary(killed)
    assert told["attempts"] == 2 and told["wall_s"] > summary(whole)["wall_s"]
    with h5py.File(killed / "record-001.h5") as file:
        newest = checkpoint.numbers(whole)[-1]
        assert json.loads(file.attrs["start_rows"])["versions"] == versions_at(whole, newest)
        assert (file.attrs["attempt"], file.attrs["parent"]) == (1, b"record-000.h5")


def test_without_a_checkpoint_it_begins_again(whole: Path, killed: Path) -> None:
    for number in checkpoint.numbers(killed):
        (killed / checkpoint.name_of(number)).unlink()
    assert says("resume", killed, "--quiet").exit_code == 0
    assert bits(killed) == bits(whole)


@pytest.mark.parametrize("damage", ["cut", "altered", "empty", "both"])
def test_a_damaged_checkpoint_is_set_aside(whole: Path, killed: Path, damage: str) -> None:
    paths = [killed / checkpoint.name_of(number) for number in checkpoint.numbers(killed)]
    for path in paths if damage == "both" else paths[-1:]:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes({"cut": data[:-1], "empty": b""}.get(damage, bytes(data)))
    assert says("resume", killed, "--quiet").exit_code == 0
    assert bits(killed) == bits(whole)
    assert paths[-1].with_name(paths[-1].name + ".unusable").exists()
    with h5py.File(killed / "record-001.h5") as file:
        kept = 0 if damage == "both" else versions_at(whole, checkpoint.numbers(whole)[0])
        assert json.loads(file.attrs["start_rows"])["versions"] == kept


def test_left_overs_of_a_kill_are_cleared(killed: Path) -> None:
    left = killed / "checkpoint-000009.h5.123.part"
    left.write_bytes(b"half")
    assert says("resume", killed, "--quiet").exit_code == 0
    assert not left.exists()


def test_a_finished_run_is_left_alone(whole: Path) -> None:
    before = sorted(path.name for path in whole.iterdir())
    result = says("resume", whole)
    assert result.exit_code == 0 and result.stdout == f"{whole}: done already; there is nothing to go on with\n"
    assert sorted(path.name for path in whole.iterdir()) == before


def refused(folder: Path, *words: str) -> str:
    """The one line with which it is refused; nothing was written."""
    before = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    result = says("resume", folder, "--quiet", *words)
    assert result.exit_code == 2 and result.stdout == "" and result.stderr.count("\n") == 1, result.stderr
    assert (sorted(path.name for path in folder.iterdir()) if folder.exists() else []) == before
    return result.stderr


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "not the folder of a run" in refused(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "no record to go on from" in refused(tmp_path / "empty")


def test_a_changed_configuration_is_refused(killed: Path) -> None:
    path = killed / "config.yaml"
    path.write_text(path.read_text().replace("learning_rate: 0.01", "learning_rate: 0.02"))
    text = refused(killed)
    assert "training.optimizer.learning_rate is 0.02, in the record 0.01" in text


def test_another_environment_is_refused_unless_allowed(
    whole: Path, killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert "MKL_CBWR is COMPATIBLE here, None in the record" in refused(killed)
    assert says("resume", killed, "--quiet", "--allow-mixed").exit_code == 0
    with h5py.File(killed / "record-001.h5") as file:
        assert bool(file.attrs["allow_mixed"])
    assert bits(killed)[2] == bits(whole)[2]


def test_other_data_are_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    folder, path = tmp_path / "run", tmp_path / "data.npz"

    def write() -> None:
        images, labels = rng.standard_normal((60, 4, 4), dtype=np.float32), np.arange(60) % 2
        arrays = {
            f"{part}_{name}": of for part in ("train", "test") for name, of in (("images", images), ("labels", labels))
        }
        np.savez(path, **arrays)  # type: ignore[arg-type]

    write()
    text = CONFIG.replace("{dataset: heart}", "{dataset: npz, path: data.npz}\npartition: {kind: iid, clients: 6}")
    (tmp_path / "npz.yaml").write_text(text)
    done = says("run", tmp_path / "npz.yaml", "--out", folder, "--quiet", "--set", "stop.wall_s=0.2", *ENDLESS)
    assert done.exit_code == 0, done.stderr
    write()
    assert "the data have changed" in refused(folder)


def test_a_live_run_is_refused(killed: Path, config_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "live"
    process = subprocess.Popen([*FEDSIM, "run", str(config_path), "--out", str(folder), "--quiet", *ENDLESS])
    try:
        wait_for(folder / "record-000.h5", process)
        assert "the run is still going on" in refused(folder)
    finally:
        process.kill()
        process.wait()


def wait_for(path: Path, process: subprocess.Popen[Any]) -> None:
    give_up_s = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None and time.monotonic() < give_up_s
        time.sleep(0.05)


def test_a_stop_by_the_wall_clock_can_be_gone_on_with(whole: Path, config_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    for words in (("run", config_path, "--out", folder, "--set", "stop.wall_s=0.05"), ("resume", folder)):
        assert says(*words, "--quiet").exit_code == 0
    for _ in range(50):
        if summary(folder)["status"] == "done":
            break
        assert says("resume", folder, "--quiet").exit_code == 0
    assert bits(folder)[1:] == bits(whole)[1:]


def on_the_wall_clock(folder: Path, **changed: str) -> Path:
    """A configuration without simulated devices, that writes its record often."""
    lines = [line for line in CONFIG.splitlines() if not line.startswith(("devices", *changed))]
    path = folder / "wall.yaml"
    path.write_text("\n".join([*lines, "clock: wall", "record: {flush_s: 0.02}", *changed.values(), ""]))
    return path


def killed_once(words: list[str], n_ranks: int, is_time: Callable[[], bool]) -> None:
    """Starts fedsim, slowed down, and kills all its ranks when it is time."""
    from tests.unit.test_cli_running import environment, mpirun

    launcher = [*mpirun(), "-n", str(n_ranks)] if n_ranks > 1 else []
    slow = environment() | {"FEDSIM_INJECT": "sleep:0.03"}  # or it ends before the ranks notice the kill
    process = subprocess.Popen([*launcher, *FEDSIM, *words], env=slow, start_new_session=True)
    give_up_s = time.monotonic() + 90
    try:
        while not is_time():
            assert process.poll() is None and time.monotonic() < give_up_s
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(1.0 if n_ranks > 1 else 0.0)  # ranks notice that their launcher is gone


def assert_gone_on(folder: Path, before: Any, n_versions: int, n_attempts: int) -> None:
    """Everything recorded before is there still, once, and a replay comes to the same model."""
    told, joined = summary(folder), open_run(folder)
    assert (told["status"], told["versions"], told["attempts"]) == ("done", n_versions, n_attempts)
    assert joined.versions.version.tolist() == list(range(1, n_versions + 1)) and joined.tasks.task.is_unique
    n = len(before) - 2  # the last ones may have been torn by the kill
    assert joined.versions.virtual_s.tolist()[:n] == before.virtual_s.tolist()[:n]
    assert says("replay", folder, "--out", folder.with_name("again"), "--quiet").exit_code == 0


@pytest.mark.mpi
def test_a_kill_on_the_wall_clock(tmp_path: Path) -> None:
    """What was recorded past the checkpoint is kept, and a replay of the joined record gives the same model."""
    from tests.unit.test_cli_running import environment, mpirun

    folder, path = tmp_path / "wall", on_the_wall_clock(tmp_path)
    words = ["run", str(path), "--out", str(folder), "--quiet", "--set", "stop.versions=70"]
    killed_once(words, 3, (folder / checkpoint.name_of(2)).exists)
    before = open_run(folder).versions
    resumed = subprocess.run(
        [*mpirun(), "-n", "3", *FEDSIM, "resume", str(folder), "--quiet"], env=environment(), capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert_gone_on(folder, before, 70, 2)


def test_kills_on_the_wall_clock_without_a_checkpoint_and_while_the_recorded_is_made_again(tmp_path: Path) -> None:
    """Nothing that is recorded is lost by a second kill, nor where no checkpoint was written before the first."""
    folder = tmp_path / "wall"
    path = on_the_wall_clock(tmp_path, checkpoint="checkpoint: {every_versions: 1000}")

    def n_versions(record: str) -> int:
        return len(open_run(folder / record).versions) if (folder / record).exists() else 0

    killed_once(["run", str(path), "--out", str(folder), "--quiet"], 1, lambda: n_versions("record-000.h5") >= 15)
    before = open_run(folder).versions
    killed_once(["resume", str(folder), "--quiet"], 1, lambda: n_versions("record-001.h5") >= 2)
    assert n_versions("record-001.h5") < len(before) - 2, "it was killed too late to show anything"
    assert open_run(folder).versions.equals(before)
    assert says("resume", folder, "--quiet").exit_code == 0
    assert_gone_on(folder, before, 40, 3)


def test_a_version_of_nothing_on_the_wall_clock_is_one_line(tmp_path: Path) -> None:
    """From a stranger: no task was applied, and yet there is a version."""
    folder, path = tmp_path / "wall", on_the_wall_clock(tmp_path, checkpoint="checkpoint: {every_versions: 1000}")
    assert says("run", path, "--out", folder, "--quiet", "--set", "stop.versions=1").exit_code == 0
    (folder / "record.h5").unlink()
    for number in checkpoint.numbers(folder):
        (folder / checkpoint.name_of(number)).unlink()
    with h5py.File(folder / "record-000.h5", "r+") as file:
        file["run/status"][()] = np.bytes_("running")
        file["versions/n_updates"][:] = 0
        file["tasks/outcome"][:] = 1
    assert f"{folder}: table versions has a version of no updates" in refused(folder)


@pytest.mark.parametrize("when", ["planning", "reading checkpoints"])
def test_two_that_resume_do_not_harm_each_other(killed: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """The other one begins its attempt while this one plans, or reads what it goes on from."""
    other = killed / "checkpoint-000099.h5.1.part"

    def begin() -> None:
        shutil.copy(killed / "record-000.h5", killed / "record-001.h5")
        shutil.copy(killed / checkpoint.name_of(checkpoint.numbers(killed)[-1]), killed / checkpoint.name_of(99))
        other.write_bytes(b"half")

    place, name = (resume, "plan_again") if when == "planning" else (checkpoint, "newest")
    first = getattr(place, name)

    def then_begin(*words: Any) -> Any:
        result = first(*words)
        begin()
        return result

    monkeypatch.setattr(place, name, then_begin)
    result = says("resume", killed, "--quiet")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "another attempt was begun meanwhile" in result.stderr
    assert other.exists() and not list(killed.glob("*.unusable")) and (killed / checkpoint.name_of(99)).exists()


def test_a_run_that_comes_to_life_while_another_plans_is_left_alone(
    killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = killed / "checkpoint-000009.h5.1.part"
    left.write_bytes(b"half")
    first = resume.plan_again

    def then_locked(*words: Any) -> Any:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return first(*words)

    monkeypatch.setattr(resume, "plan_again", then_locked)
    with (killed / "record-000.h5").open("rb") as lock:
        assert "the run is still going on" in refused(killed)
    assert left.exists()


@pytest.mark.parametrize("n_ranks", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_a_signal_does_not_wait_for_training(config_path: Path, tmp_path: Path, n_ranks: int) -> None:
    """Tasks of ten million steps, minutes each: the run is stopped all the same, with a checkpoint."""
    from tests.unit.test_cli_running import environment, mpirun, own_lines, stopped

    folder = tmp_path / "long"
    launcher = [*mpirun(), "-n", str(n_ranks)] if n_ranks > 1 else []
    words = ["run", str(config_path), "--out", str(folder), "--quiet", "--set", "training.steps=10000000"]
    process = subprocess.Popen(
        [*launcher, *FEDSIM, *words], env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )

    def get_ready() -> None:
        wait_for(folder / "record-000.h5", process)
        time.sleep(1.0)

    seconds, err = stopped(process, get_ready)
    assert process.returncode == 75 and seconds < 30.0
    assert own_lines(err) == [f"fedsim: stopped by SIGUSR2, with a checkpoint; go on: fedsim resume {folder}"]
    assert summary(folder)["status"] == "stopped" and len(checkpoint.numbers(folder)) == 1
    assert (folder / "record.h5").exists(), "the attempts are joined where that takes no time"


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("n_versions", "inject", "sets"),
    [
        (8, "hang-evaluating:1@1", ("evaluation.every_versions=null", "stop.versions=8")),  # the last one
        (
            4,  # in the middle of the run: whether version 4 has reached the target has to be known
            "hang-evaluating:2@1",
            ("evaluation.lag_versions=0", "stop={versions: 40, target: {metric: accuracy, value: 0.999}}"),
        ),
    ],
)
def test_a_signal_does_not_wait_for_evaluations(
    config_path: Path, tmp_path: Path, n_versions: int, inject: str, sets: tuple[str, ...]
) -> None:
    """An evaluation that never ends: the record goes on, and the run is stopped within its bound, with a checkpoint."""
    from tests.unit.test_cli_running import environment, mpirun, own_lines, stopped

    options = [word for one in (*sets, "checkpoint.stop_within_s=6", "record.flush_s=0.2") for word in ("--set", one)]
    folder, whole = tmp_path / "run", tmp_path / "whole"
    words = ["run", str(config_path), "--quiet", *options, "--out"]
    process = subprocess.Popen(
        [*mpirun(), "-n", "2", *FEDSIM, *words, str(folder)],
        env={**environment(), "FEDSIM_INJECT": inject}, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip

    def get_ready() -> None:
        wait_for(folder / "record-000.h5", process)
        give_up_s = time.monotonic() + 90
        while open_run(folder).n_rows("versions") < n_versions and time.monotonic() < give_up_s:
            time.sleep(0.1)

    seconds, err = stopped(process, get_ready)
    assert process.returncode == 75 and seconds < 12.0, err  # the launcher takes its time, too
    assert own_lines(err) == [f"fedsim: stopped by SIGUSR2, with a checkpoint; go on: fedsim resume {folder}"]
    assert versions_at(folder, checkpoint.numbers(folder)[-1]) == n_versions
    assert says("resume", folder, "--quiet").exit_code == says(*words, whole).exit_code == 0
    assert bits(folder) == bits(whole)


HOOKED = """
import sys
from pathlib import Path
from fedsim.cli import main
from fedsim.record import checkpoint
from fedsim.record.reader import open_run
first, n_written = checkpoint.write, []

def write(*words):
    path = first(*words)
    n_written.append(path)
    if len(n_written) == 2:
        {when_written}
    return path

checkpoint.write = write
main(sys.argv[1:])
"""
WIDE = ("--set", "model={kind: mlp, hidden: [500, 500]}", "--set", "checkpoint.every_versions=3")


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 48 MiB, or None where mounting is not to be had."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], capture_output=True)
    yield folder if done.returncode == 0 else None
    if done.returncode == 0:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("how", ["full", "limited"])
def test_no_room_ends_the_run_and_leaves_its_last_checkpoints(
    config_path: Path, tmp_path: Path, small_disk: Path | None, how: str
) -> None:
    """A disk that fills up, and a limit on the size of files: the second stands for the first where none is mounted."""
    disk = small_disk if how == "full" and small_disk is not None else tmp_path
    filler = disk / "filler"
    fill = f"import os; s = os.statvfs('{disk}'); Path('{filler}').write_bytes(bytes(s.f_bavail * s.f_frsize - 4096))"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size - 1,) * 2)"
    code = HOOKED.format(when_written=fill if disk != tmp_path else limit)
    folder = disk / "run"
    words = ["run", str(config_path), "--out", str(folder), "--quiet", *WIDE]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"fedsim: {folder}/") and "cannot write the" in done.stderr
    assert [checkpoint.Checkpoint(folder / checkpoint.name_of(n)).path for n in checkpoint.numbers(folder)] != []
    assert len(checkpoint.numbers(folder)) == 2 and not list(folder.glob("checkpoint*.part"))

    filler.unlink(missing_ok=True)
    assert says("resume", folder, "--quiet").exit_code == 0
    assert says("run", config_path, "--out", tmp_path / "whole", "--quiet", *WIDE).exit_code == 0
    assert bits(folder) == bits(tmp_path / "whole")


# ------------------------------------------------------------------------------------------- a disk that is read-only


def mounted(*words: str | Path) -> bool:
    return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Any:
    """An empty file system that nothing can be written to: root may write where permissions forbid it."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    if not mounted("-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", folder):
        pytest.skip("mounting is not to be had here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_run_on_a_read_only_disk_is_refused(config_path: Path, read_only_disk: Path) -> None:
    result = says("run", config_path, "--out", read_only_disk / "run", "--quiet")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert result.stderr == f"fedsim: {read_only_disk}/run: cannot be made: Read-only file system\n"


def test_a_disk_that_turns_read_only_ends_the_run_and_leaves_its_last_checkpoints(
    config_path: Path, whole: Path, tmp_path: Path
) -> None:
    """As its system does with a disk that fails. The record is open, and can still be ended; nothing else is made."""
    folder = tmp_path / "run"
    (tmp_path / "probe").mkdir()
    if not mounted("--bind", tmp_path / "probe", tmp_path / "probe"):
        pytest.skip("mounting is not to be had here")
    subprocess.run(["umount", str(tmp_path / "probe")], check=True)
    turn = "import subprocess; [subprocess.run(['mount', *words, '{0}'], check=True) for words in (['--bind', '{0}'], "
    code = HOOKED.format(when_written=turn.format(folder) + "['-o', 'remount,bind,ro'])]")
    words = ["run", str(config_path), "--out", str(folder), "--quiet", "--set", "checkpoint.every_versions=3"]
    slow = {**os.environ, "FEDSIM_INJECT": "sleep:0.05"}  # or it ends before its second checkpoint is written
    try:
        run = [sys.executable, "-c", code, *words]
        done = subprocess.run(run, env=slow, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert "cannot write the checkpoint: Read-only file system" in done.stderr
        refusal = says("resume", folder, "--quiet")
        assert refusal.exit_code == 2 and "Read-only file system" in refusal.stderr
    finally:
        subprocess.run(["umount", "-l", str(folder)])
    assert [checkpoint.Checkpoint(folder / checkpoint.name_of(n)).path.name for n in checkpoint.numbers(folder)] == [
        checkpoint.name_of(1), checkpoint.name_of(2)
    ]  # fmt: skip
    assert summary(folder)["status"] == "failed"
    assert says("resume", folder, "--quiet").exit_code == 0
    assert bits(folder)[1:] == bits(whole)[1:]


# ------------------------------------------------------------------------------------------- several attempts, no locks


def test_all_commands_see_the_attempts_as_one_run(whole: Path, killed: Path) -> None:
    assert says("resume", killed, "--quiet").exit_code == 0
    (killed / "record.h5").unlink()  # the attempts' own records are read
    told, before = summary(killed), summary(whole)
    assert told["attempts"] == 2 and told["outcomes"] == before["outcomes"]
    last = f"version {before['versions']}"
    watched = [re.sub(r" \(.*?/s\)", "", says("watch", folder).stdout).splitlines() for folder in (killed, whole)]
    assert [lines[-1] for lines in watched] == ["status: done"] * 2
    assert last in watched[0][-2] and watched[0][-2].split(": ", 1)[1] == watched[1][-2].split(": ", 1)[1]
    [compared] = json.loads(says("compare", killed, whole, "--json").stdout)
    for name in ("versions", "updates", "virtual_s", "loss", "accuracy"):
        assert (compared["values"][name]["n_runs"], compared["values"][name]["deviation"]) == (2, 0.0)


def test_without_locks_a_run_is_alive_while_its_record_is_fresh(
    whole: Path, killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems."""
    import errno

    def no_locks(*words: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    record = killed / "record-000.h5"
    os.utime(record)
    assert "the run may still be going on" in refused(killed) and "no locks" in refused(killed)
    os.utime(record, (time.time() - 60.0,) * 2)
    assert says("resume", killed, "--quiet").exit_code == 0  # and the new record is written without a lock
    assert bits(killed) == bits(whole)


def test_a_lock_is_seen_where_only_writers_may_ask_for_it(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, which maps these locks to those of fcntl."""
    import errno

    first = fcntl.flock

    def as_on_nfs(descriptor: int, how: int) -> None:
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if how & fcntl.LOCK_EX and access == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        first(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    record = killed / "record-000.h5"
    os.utime(record, (time.time() - 60.0,) * 2)
    with record.open("rb") as lock:
        first(lock, fcntl.LOCK_SH)
        assert "the run is still going on" in refused(killed)
    assert says("resume", killed, "--quiet").exit_code == 0


def test_what_cannot_be_used_is_told_in_the_record(killed: Path) -> None:
    newest = killed / checkpoint.name_of(checkpoint.numbers(killed)[-1])
    newest.write_bytes(newest.read_bytes()[:-7])
    assert says("resume", killed, "--quiet").exit_code == 0
    [row] = open_run(killed).failures.to_dict("records")
    assert row["kind"] == "CheckpointUnusable" and newest.name in str(row) and "cut off" in str(row)


def test_links_in_a_folder_from_a_stranger_lead_nowhere(killed: Path, tmp_path: Path) -> None:
    """Nothing is written through them, and nothing of what they name is told."""
    precious = tmp_path / "precious"
    precious.write_text("the only copy")
    newest = checkpoint.numbers(killed)[-1]
    for name in (checkpoint.name_of(newest + 1), f"record.h5.{os.getpid()}.part", "record-001.h5", "plot.png"):
        (killed / name).symlink_to(precious)
    for words in (("resume", killed, "--quiet"), ("show", killed, "--join"), ("show", killed, "--json")):
        result = says(*words)
        assert result.exit_code == 2 and "only copy" not in result.output and result.stderr.count("\n") == 1
    (killed / "record-001.h5").unlink()
    assert says("resume", killed, "--quiet").exit_code == 0
    assert says("show", killed, "--join", "--plot").exit_code == 0
    assert precious.read_text() == "the only copy" and not (killed / "plot.png").is_symlink()


@pytest.mark.parametrize("name", ["record-000.h5", "record-001.h5", "record.h5"])
def test_a_pipe_for_a_record_keeps_nobody_waiting(name: str, whole: Path, killed: Path) -> None:
    """In processes of their own, which can be ended where they hang."""
    (killed / name).unlink(missing_ok=True)
    os.mkfifo(killed / name)
    commands = [("show", killed), ("watch", killed), ("compare", whole, killed), ("show", killed / name)]
    for words in [*commands, ("resume", killed)] if name != "record.h5" else commands:
        done = subprocess.run([*FEDSIM, *map(str, words)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, (words, done.stderr)
        assert done.stderr.startswith(f"fedsim: {killed / name}: ") and "not a regular file" in done.stderr


def test_a_kill_loses_no_more_than_is_stated(config_path: Path, tmp_path: Path) -> None:
    """What the newest whole checkpoint lacks of the record is younger than `every_s` and twice the time of writing."""
    folder = tmp_path / "run"
    words = ["run", str(config_path), "--out", str(folder), "--quiet", *ENDLESS, "--set", "record.flush_s=0.05"]
    words += ["--set", "checkpoint={every_s: 0.5, every_versions: null}"]
    killed_once(words, 1, (folder / checkpoint.name_of(3)).exists)
    wall_s = open_run(folder).versions.wall_s
    kept = versions_at(folder, checkpoint.numbers(folder)[-1])
    writing_s = 0.5  # far more than it takes
    assert 0 < kept <= len(wall_s) and wall_s.iloc[-1] - wall_s.iloc[kept - 1] < 0.5 + 2 * writing_s
