"""A real Slurm of two nodes, private to these tests: brought up once, taken down at the end, logs shown on failure."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "slurm" / "cluster"
TOOLS = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch", "unshare", "nsenter")
REQUIRED = "FEDSIM_TEST_SLURM"  # set where these tests have to run: without Slurm they then fail
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("slurm")


@dataclass
class Cluster:
    """The cluster in a folder. `mode` is "namespaces" or "ports" (see `slurm/cluster/up`)."""

    folder: Path
    mode: str = ""
    log: list[str] = field(default_factory=list)

    def script(
        self, name: str, *words: str, timeout_s: float = 60.0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One of `slurm/cluster/*`, ended."""
        announced = ("OMPI_", "PMI", "PRTE", "SLURM", "SBATCH", "FEDSIM_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(announced)}
        root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMP_NUM_THREADS"), "1")
        done = subprocess.run(
            [str(SCRIPTS / name), *words],
            env={**clean, **root, **(env or {}), "FEDSIM_CLUSTER": str(self.folder)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        self.log.append(f"{name} {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def call(self, *words: str, timeout_s: float = 60.0, env: Mapping[str, str] | None = None) -> str:
        """What a command prints on the login node; it must succeed."""
        done = self.script("shell", *words, timeout_s=timeout_s, env=env)
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by name."""
        text = self.call("scontrol", "show", "job", "--oneliner", job).splitlines()[0]
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def until(self, what: str, is_so: Callable[[], bool], timeout_s: float) -> None:
        """Waits for something; a failure with all logs if it does not come."""
        give_up_s = time.monotonic() + timeout_s
        while not is_so():
            if time.monotonic() > give_up_s:
                pytest.fail(f"{what}: not within {timeout_s:.0f} s\n{self.call('squeue', '--all')}\n{self.logs()}")
            time.sleep(0.3)

    def ended(self, job: str, timeout_s: float) -> str:
        """The state in which a job ended."""
        self.until(f"end of job {job}", lambda: self.job(job)["JobState"] in ENDED, timeout_s)
        return self.job(job)["JobState"]

    def logs(self) -> str:
        """The ends of all daemons' logs."""
        texts = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in sorted(self.folder.glob("log/*"))
        ]
        return "\n".join(texts)


@pytest.fixture(scope="session")
def make_cluster() -> Iterator[Callable[..., Cluster]]:
    """`make_cluster(**environment)`: a cluster that is up, and goes down with the session."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing and os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but there is no {', '.join(missing)}")
    if missing:
        pytest.skip(f"no {', '.join(missing)} here (Debian: slurm-wlm, munge, iproute2)")
    made: list[Cluster] = []

    def maker(**environment: str) -> Cluster:
        cluster = Cluster(Path(tempfile.mkdtemp(prefix="fedsim-slurm-")) / "c")
        made.append(cluster)
        done = cluster.script("up", timeout_s=120, env=environment)
        assert done.returncode == 0, f"{done.stderr}\n{cluster.logs()}"
        cluster.mode = (cluster.folder / "mode").read_text().strip()
        return cluster

    yield maker
    for cluster in made:
        cluster.script("down", timeout_s=90)
        shutil.rmtree(cluster.folder.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """The cluster of this session."""
    return make_cluster()
