"""The private cluster itself: two nodes, nothing left behind, nothing of the system's touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def processes_of(folder: Path) -> list[str]:
    """Command lines on this machine that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"FEDSIM_CLUSTER={folder}".encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_a_step_runs_on_both_nodes(cluster: Any) -> None:
    nodes = cluster.call("srun", "-N2", "-n2", "bash", "-c", "echo $SLURMD_NODENAME $(hostname)").split("\n")
    names = sorted(line.split()[0] for line in nodes if line)
    assert names == ["n1", "n2"]
    if cluster.mode == "namespaces":
        assert sorted(line.split()[1] for line in nodes if line) == ["n1", "n2"]


def test_two_processes_on_one_host_serve_where_there_are_no_namespaces(make_cluster: Callable[..., Any]) -> None:
    before = Path("/etc/hosts").read_bytes()
    ports = make_cluster(FEDSIM_CLUSTER_MODE="ports")
    assert ports.mode == "ports"
    assert "two slurmd on this host" in ports.log[0]
    assert ports.call("srun", "-N2", "-n2", "bash", "-c", "echo $SLURMD_NODENAME").split() in (
        ["n1", "n2"],
        ["n2", "n1"],
    )
    job = ports.call("sbatch", "--parsable", "--output=/dev/null", "--wrap", "sleep 600").strip()
    ports.until("start", lambda: ports.job(job)["JobState"] == "RUNNING", 20)
    assert ports.script("down", timeout_s=90).returncode == 0
    assert processes_of(ports.folder) == []
    assert Path("/etc/hosts").read_bytes() == before


def test_nothing_is_left_of_a_cluster_in_namespaces(make_cluster: Callable[..., Any]) -> None:
    other = make_cluster()
    job = other.call("sbatch", "--parsable", "-N2", "--output=/dev/null", "--wrap", "srun sleep 600").strip()
    other.until("start", lambda: other.job(job)["JobState"] == "RUNNING", 20)
    assert len(processes_of(other.folder)) > 5
    assert other.script("down", timeout_s=90).returncode == 0
    assert processes_of(other.folder) == []
    assert not (os.path.exists("/sys/class/net/br0") and other.mode == "namespaces")


def test_wrong_words_get_one_line(cluster: Any) -> None:
    for words, line in (
        (("node", "off", "n7"), "slurm/cluster/node: no node 'n7'; allowed: n1 n2\n"),
        (("node", "out", "n2"), "slurm/cluster/node: 'out'; allowed: on, off\n"),
        (("up",), f"slurm/cluster/up: {cluster.folder}: is up already; slurm/cluster/down ends it\n"),
    ):
        done = cluster.script(*words)
        assert (done.returncode, done.stderr) == (1, line)
