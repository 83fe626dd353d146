"""The shape of the house: imports go down, functions stay short, pure rooms touch no clock and no global generator."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import fedsim

PACKAGE = Path(fedsim.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(PACKAGE.parent.glob("tests/**/*.py"))

# A module may import what stands on a lower level, and its own room. The front door sees everything.
LEVELS = {
    "types": 0,
    "tables": 0,
    "errors": 0,
    "addresses": 0,
    "recycled": 0,
    "whereabouts": 0,
    "affinity": 0,
    "columns": 0,
    "philox": 0,
    "seeding": 0,
    "layout": 0,
    "snapshot": 0,
    "states": 0,
    "userfiles": 0,
    "config": 0,
    "configfile": 0,
    "configerrors": 0,
    "yamltree": 0,
    "population": 1,
    "models": 1,
    "compression": 1,
    "schedule": 2,
    "training": 2,
    "aggregation": 2,
    "privacy": 2,
    "comm": 2,
    "record": 2,
    "engine": 3,
    "analysis": 3,
    "jobs": 3,
    "cli": 4,
    "bench": 4,
    "supervisor": 5,
    "__init__": 5,
    "__main__": 5,
}
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 600
LONG_FILES: dict[str, int] = {}
HEAVY = ("torch", "mpi4py", "h5py", "pandas", "sklearn", "matplotlib", "scipy")

# Where the world outside a configuration and its seed may be looked at.
CLOCK_ROOMS = ("engine", "comm", "cli", "record", "analysis", "bench", "supervisor")
CLOCK_FILES = ("schedule/clock.py",)
CLOCK_CALLS = {
    *(f"time.{name}" for name in ("time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns")),
    *(f"time.{name}" for name in ("process_time", "thread_time", "sleep", "localtime", "gmtime", "strftime")),
    *(f"datetime.{name}" for name in ("datetime.now", "datetime.utcnow", "datetime.today", "date.today")),
}
RANDOM_FILES = ("seeding.py",)
TORCH_SEED_FILES = ("models/__init__.py", "training/noise.py")  # both inside fork_rng
RANDOM_MODULES = ("random", "secrets", "uuid")
TORCH_GLOBAL = {"manual_seed", "seed", "initial_seed", "set_rng_state", "get_rng_state"}
TORCH_DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "rand_like", "randn_like"}
MPI_ROOMS = ("comm", "engine", "cli", "record", "bench")
FILE_ROOMS_H5PY = ("record", "population", "analysis", "cli", "engine")


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def all_modules() -> frozenset[str]:
    dotted = {".".join(("fedsim", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in MODULES}
    return frozenset(dotted | {name.removesuffix(".__init__") for name in dotted})


def imports(path: Path, node: ast.AST | None = None) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it stands; `from a import b` is a.b if that is a module."""
    for found in ast.walk(node or tree_of(path)):
        if isinstance(found, ast.Import):
            yield from ((found.lineno, alias.name) for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            assert found.level == 0, f"{name_of(path)}:{found.lineno}: imports are written from fedsim on, not relative"
            for alias in found.names:
                whole = f"{found.module}.{alias.name}"
                yield found.lineno, whole if whole in all_modules() else str(found.module)


def calls(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every call, through the file's imports: `perf_counter()` is time.perf_counter."""
    names: dict[str, str] = {}
    for found in ast.walk(tree_of(path)):
        if isinstance(found, ast.Import):
            for alias in found.names:
                top = alias.name.split(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(found, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{found.module}.{alias.name}" for alias in found.names}
    for found in ast.walk(tree_of(path)):
        if isinstance(found, ast.Call) and (dotted := dotted_name(found.func)):
            head, _, rest = dotted.partition(".")
            yield found.lineno, ".".join(filter(None, (names.get(head, head), rest)))


def dotted_name(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    assert room in LEVELS, f"{name_of(path)}: give '{room}' a level in {Path(__file__).name}"
    for line, name in imports(path):
        if not name.startswith("fedsim.") or LEVELS[room] == 5:
            continue
        other = name.split(".")[1]
        down = LEVELS[other] < LEVELS[room] or other == room or (LEVELS[other] == LEVELS[room] == 0)
        assert down, f"{name_of(path)}:{line}: {room} (level {LEVELS[room]}) imports {name} (level {LEVELS[other]})"


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) == "analysis"], ids=name_of)
def test_analysis_reads_records_and_nothing_else(path: Path) -> None:
    for line, name in imports(path):
        if name.startswith("fedsim."):
            room = name.split(".")[1]
            allowed = room in ("record", "analysis") or LEVELS[room] == 0
            assert allowed, f"{name_of(path)}:{line}: analysis imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_rooms_meant_for_it_speak_mpi_or_hdf5(path: Path) -> None:
    for line, name in imports(path):
        package = name.split(".")[0]
        if package == "mpi4py":
            assert room_of(path) in MPI_ROOMS, f"{name_of(path)}:{line}: imports mpi4py"
        if package == "h5py":
            assert room_of(path) in FILE_ROOMS_H5PY, f"{name_of(path)}:{line}: imports h5py"


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path) not in RANDOM_FILES], ids=name_of)
def test_random_numbers_come_from_keys(path: Path) -> None:
    for line, name in imports(path):
        assert name not in RANDOM_MODULES and name != "numpy.random", f"{name_of(path)}:{line}: imports {name}"
    for line, name in calls(path):
        where = f"{name_of(path)}:{line}: {name}()"
        assert not name.startswith("numpy.random."), f"{where}: draw from fedsim.seeding"
        if name.startswith("torch."):
            last = name.rpartition(".")[2]
            assert last not in TORCH_DRAWS, f"{where}: draw from fedsim.seeding"
            assert last not in TORCH_GLOBAL or name_of(path) in TORCH_SEED_FILES, f"{where}: changes a global generator"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_pure_rooms_have_no_clock(path: Path) -> None:
    if room_of(path) in CLOCK_ROOMS or name_of(path) in CLOCK_FILES:
        return
    for line, name in calls(path):
        assert name not in CLOCK_CALLS, f"{name_of(path)}:{line}: {name}() in a room without a clock"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for line, name in imports(path):
        assert name.split(".")[0] not in ("pickle", "cPickle", "dill", "marshal", "shelve"), (
            f"{name_of(path)}:{line}: {name}"
        )
    allowed = {"exec"} if name_of(path) == "userfiles.py" else set()  # the user's own file, with --allow-code
    unsafe = ("eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.load", "pandas.read_pickle")
    for line, name in calls(path):
        assert name not in unsafe or name in allowed, f"{name_of(path)}:{line}: {name}()"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_and_files_stay_short(path: Path) -> None:
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = LONG_FILES.get(name_of(path), MAX_FILE_LINES)
    assert n_lines <= limit, f"{name_of(path)} has {n_lines} lines, above {limit}"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{name_of(path)}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize(
    "module",
    [
        "fedsim",
        "fedsim.types",
        "fedsim.errors",
        "fedsim.seeding",
        "fedsim.config",
        "fedsim.configfile",
        "fedsim.population",
        "fedsim.schedule",
        "fedsim.comm",
        "fedsim.record",
        "fedsim.engine",
        "fedsim.cli",
    ],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    code = f"import {module}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"


def test_the_front_door_is_lazy_and_says_what_it_has() -> None:
    assert {"run", "open_run", "__version__"} <= set(dir(fedsim))
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        _ = fedsim.rnu
    from fedsim.engine.run import run
    from fedsim.record.reader import open_run

    assert fedsim.run is run and fedsim.open_run is open_run


def test_the_checks_see_what_they_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that finds nothing anywhere may be blind: here is something for each to find."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "schedule").mkdir()
    bad = tmp_path / "schedule" / "bad.py"
    bad.write_text(
        "import numpy as np\nimport torch\nfrom time import perf_counter as now\nfrom fedsim.engine import server\n"
        "import random\nfrom mpi4py import MPI\nimport pickle\n"
        "def f():\n" + "    now()\n" * 60
    )
    checks = (
        test_imports_go_down,
        test_random_numbers_come_from_keys,
        test_pure_rooms_have_no_clock,
        test_functions_and_files_stay_short,
        test_only_the_rooms_meant_for_it_speak_mpi_or_hdf5,
        test_nothing_is_unpickled_or_evaluated,
    )
    for check in checks:
        with pytest.raises(AssertionError, match=r"schedule/bad\.py:\d+: "):
            check(bad)
    for line in ("np.random.default_rng()", "np.random.Generator(None)", "torch.manual_seed(1)", "torch.randn(3)"):
        other = tmp_path / "schedule" / f"bad{abs(hash(line))}.py"
        other.write_text(f"import numpy as np\nimport torch\nx = {line}\n")
        with pytest.raises(AssertionError, match=r":3: "):
            test_random_numbers_come_from_keys(other)
