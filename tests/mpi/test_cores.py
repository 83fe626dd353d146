"""Workers keep to a core each where rank zero has none of its own, and rank zero runs where something came from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.affinity import allowed
from fedsim.comm.cores import dealt_out

TWO = frozenset([0, 1])

PROGRAM = """
import os, sys, time
from mpi4py import MPI
from fedsim.comm.bell import Bell
from fedsim.comm.cores import Cores

comm = MPI.COMM_WORLD
cores = frozenset(sorted(os.sched_getaffinity(0))[:2])
os.sched_setaffinity(0, cores)
bell = Bell.open(comm)
case = sys.argv[1]
if case == "bound" and comm.rank == 1:
    os.sched_setaffinity(0, sorted(cores)[:1])
before = os.sched_getaffinity(0)
cores_of_rank = Cores.agreed(comm, bell, is_wanted=not (case == "unwanted" and comm.rank == 2))
with cores_of_rank.kept(bell):
    now = os.sched_getaffinity(0)
    if case != "dealt":
        assert now == before, (comm.rank, now)
    elif comm.rank:
        assert now == {sorted(cores)[comm.rank - 1]}, (comm.rank, now)
    else:
        assert now == cores, now
    seen = []
    for worker in range(1, comm.size):
        comm.Barrier()
        if comm.rank == worker:
            bell.ring(0)  # it is left where it is
            time.sleep(0.05)
            bell.ring(0, gives_way=True)
        comm.Barrier()
        seen.append(os.sched_getaffinity(0))
    if comm.rank == 0:
        assert seen == ([{core} for core in sorted(cores)] if case == "dealt" else [before] * (comm.size - 1)), seen
assert os.sched_getaffinity(0) == before
bell.ring(0, gives_way=True)
comm.Barrier()
assert os.sched_getaffinity(0) == before
print("dealt", comm.rank)
"""

needs_two = pytest.mark.skipif(len(allowed()) < 2, reason="two cores are needed, and a system that tells of them")


def test_cores_are_dealt_out_where_there_is_one_a_worker() -> None:
    three = frozenset([1, 4, 7])
    assert dealt_out([three] * 4) == [1, 4, 7]
    five = frozenset(range(5))
    for too_many_or_few in ([TWO], [TWO] * 2, [TWO] * 4, [five] * 6, [frozenset([5])] * 2, [frozenset()] * 3):
        assert dealt_out(too_many_or_few) is None
    assert dealt_out([TWO, TWO, frozenset([0])]) is None


@needs_two
@pytest.mark.parametrize(
    ("n", "case"), [(3, "dealt"), (3, "unwanted"), (3, "bound"), (2, "a core for each"), (4, "too many workers")]
)
def test_each_rank_keeps_to_its_core(n: int, case: str, start_program: Callable[..., Any]) -> None:
    words = ("-m", "mpi4py", "-c", PROGRAM, case)  # mpi4py ends all with the first that fails
    done = start_program(n, sys.executable, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split().count("dealt") == n


OWN = Path(__file__).parents[2] / "configs" / "own"
ON_TWO_CORES = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from fedsim.cli import main
main(sys.argv[1:])
"""
SEEING = """
def ridge(step, mu=0.01):
    import os
    with open(os.path.join(os.path.dirname(__file__), "seen"), "a") as file:
        file.write(f"{len(os.sched_getaffinity(0))} ")
"""


@needs_two
@pytest.mark.parametrize(("cores", "n_allowed"), [("auto", "1"), ("free", "2")])
def test_a_run_does_as_its_configuration_says(
    cores: str, n_allowed: str, start_program: Callable[..., Any], tmp_path: Path
) -> None:
    text = (OWN / "mine.py").read_text(encoding="utf-8").replace("def ridge(step, mu=0.01):\n", SEEING.lstrip())
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    (tmp_path / "all.yaml").write_text((OWN / "all.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    words = ["run", str(tmp_path / "all.yaml"), "--out", str(tmp_path / "run"), "--quiet", "--allow-code"]
    words += ["--set", "stop.versions=5", "--set", "evaluation.every_versions=null", "--set", f"cores={cores}"]
    done = start_program(3, sys.executable, "-c", ON_TWO_CORES, *words)
    assert done.returncode == 0, done.stderr
    seen = (tmp_path / "seen").read_text(encoding="utf-8").split()
    assert len(seen) > 10 and set(seen) == {n_allowed}
