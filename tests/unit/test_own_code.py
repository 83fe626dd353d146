"""Functions from the user's own files: what they may do, what is refused, and what is told of their failures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim import configfile, snapshot
from fedsim.aggregation import Arrival, Facts, build
from fedsim.config import UserRule
from fedsim.engine.launching import World
from fedsim.engine.plan import plan
from fedsim.engine.run import Caller, replay_run, resume_run, run_file
from fedsim.errors import ConfigError, DataError, FedsimError, RecordError, UserCodeError
from fedsim.types import TaskReport, Update
from fedsim.userfiles import UserFiles

OWN = Path(__file__).parents[2] / "configs" / "own"
SHORT = ["stop.versions=6", "evaluation.every_versions=null"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples."""
    for name in ("mine.py", "all.yaml"):
        (tmp_path / name).write_text((OWN / name).read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def load(folder: Path, text: str, name: str = "own.py:f", n: int = 2, *named: str, **options: Any) -> Any:
    """A function of a file with this text."""
    (folder / "own.py").write_text(text, encoding="utf-8")
    return UserFiles(folder, True).load(f"./{name}", "aggregation.rule", n, options, *named)


def swapped(folder: Path, old: str, new: str) -> None:
    """Changes the text of the examples' file."""
    text = (folder / "mine.py").read_text(encoding="utf-8")
    assert old in text
    (folder / "mine.py").write_text(text.replace(old, new), encoding="utf-8")


# ----------------------------------------------------------------------------------------------- loading


def test_nothing_is_loaded_without_leave(folder: Path) -> None:
    (folder / "mine.py").write_text("open('ran', 'w')\nraise SystemExit(3)\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.py:two_moons is code of your own.*give --allow-code"):
        plan(configfile.load(folder / "all.yaml"), folder)
    assert not (folder / "ran").exists() and not Path("ran").exists()


@pytest.mark.parametrize("name", ["../own.py:f", "sub/../../own.py:f", "/etc/own.py:f", "link.py:f"])
def test_no_path_leads_out(name: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "own.py"
    elsewhere.write_text("def f(a, b): pass\n", encoding="utf-8")
    (folder / "link.py").symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="lies beside the configuration or below"):
        UserFiles(folder, True).load(name, "aggregation.rule", 2, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def f(:\n", r"aggregation.rule: \./own\.py:1: SyntaxError: invalid syntax"),
        ("x = 1\n1 / 0\n", r"\./own\.py:2, in <module>: ZeroDivisionError: division by zero"),
        ("def g():\n    raise SystemExit(0)\ng()\n", r"\./own\.py:2, in g: SystemExit: 0"),
        ("import nothing_of_that_name\n", r"\./own\.py:1, in <module>: ModuleNotFoundError"),
        ("\x00", r"\./own\.py"),
        ("def g(a, b): pass\n", r"\./own\.py has no function f; there: g"),
        ("\ndef f(a): pass\n", r"own\.py:2, in f: too many positional arguments; it is called with 2 values"),
        ("def f(a, b, c): pass\n", r"own\.py:1, in f: missing a required argument: 'c'"),
        ("def f(a, b, *, state): pass\n", r"missing a required argument: 'state'"),
    ],
)
def test_files_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_strange_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.py: cannot be read: No such file"):
        UserFiles(tmp_path, True).load("none.py:f", "data.dataset", 0, {})
    with pytest.raises(ConfigError, match=r"in f: got an unexpected keyword argument 'k'; .* the options k"):
        load(tmp_path, "def f(a, b): pass\n", k=1)


def test_a_failure_names_file_line_and_function(tmp_path: Path) -> None:
    function = load(tmp_path, "def g(x):\n    return x['no']\n\ndef f(a, b):\n    return g({})\n")
    with pytest.raises(UserCodeError) as caught:
        function(1, 2)
    line, *trace = str(caught.value).split("\n")
    assert line == "./own.py:f: own.py:2, in g: KeyError: 'no'" and any("in f" in one for one in trace)
    assert caught.value.exit_code == 2 and "fedsim" not in "".join(trace).replace(str(tmp_path), "")


def test_modules_can_hold_dataclasses(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\nimport dataclasses\n\n\n@dataclasses.dataclass\nclass A:\n    x: int\n\n\n"
    )
    function = load(tmp_path, text + "def f(a, b): return A(a).x + b\n")
    assert function(1, 2) == 3 and not any(name == "own" for name in sys.modules)


# --------------------------------------------------------------------------------------- the configuration


def test_short_and_long_forms_are_the_same(folder: Path) -> None:
    config = configfile.load(folder / "all.yaml")
    again = configfile.from_mapping(config.model_dump())
    assert again == config and isinstance(config.aggregation, UserRule)
    assert configfile.load(folder / "all.yaml", ["schedule.selection=./mine.py:other"]).schedule.selection.function == (  # type: ignore[union-attr]
        "./mine.py:other"
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("aggregation.rule=./mine.py", "aggregation.function: must match"),
        ("aggregation={rule: ./mine.py:f, options: {x: [1]}}", r"options: x is \[1\]; allowed: numbers, texts"),
        ("aggregation={rule: ./mine.py:f, option: {}}", "option: unknown key; did you mean 'options'"),
        ("data.dataset=./mine.py:a b", "data.function: must match"),
    ],
)
def test_refused_names(override: str, said: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        configfile.load(folder / "all.yaml", [override])


def test_refused_together(folder: Path) -> None:
    for change, said in (
        ("reduce={at: workers, norm_bound: 10.0}", "makes no version of a sum whose weights the schedule knows"),
        ("training.path=fused", "an objective from a file of your own is differentiated by torch"),
    ):
        with pytest.raises(ConfigError, match=said):
            plan(configfile.load(folder / "all.yaml", [change]), folder, allow_code=True)


# ------------------------------------------------------------------------------------------------- the rule


def version(rule: Any, state: Any, *vectors: list[float]) -> Any:
    for k, vector in enumerate(vectors):
        update = Update(TaskReport(k, 0, 5, 1, 0.5, 0.25, 0.0, 0.0), np.array(vector, np.float32))
        state, _ = rule.accumulate(state, update, Arrival(k))
    return rule.commit(state)


def own_rule(tmp_path: Path, text: str) -> Any:
    function = load(tmp_path, text, "own.py:f", 2, "state")
    return build(UserRule(rule="user", function="./own.py:f"), Facts(function=function))


def test_a_rule_by_hand(tmp_path: Path) -> None:
    rule = own_rule(
        tmp_path,
        "def f(weights, updates):\n    assert [u.staleness for u in updates] == [0, 1] and updates[1].n_samples == 5\n"
        "    weights += 100\n    return weights - 100 + 2 * updates[0].delta + updates[1].delta\n",
    )
    state = version(rule, rule.init(np.array([1.0, 2.0], np.float32)), [1, 0], [0, 3])
    assert state.weights_P.tolist() == [3.0, 5.0] and state.rows == {} and rule.commit(state) is state


def test_a_rules_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    text = (
        "def f(w, us, state):\n    state['n'] = state.get('n', 0) + 1\n"
        "    state['sum'] = state.get('sum', 0.0) + us[0].delta\n    return w + state['n'] * state['sum']\n"
    )
    rule = own_rule(tmp_path, text)
    state = version(rule, rule.init(np.zeros(2, np.float32)), [1, 2])
    kept = snapshot.of(state)
    there = version(rule, state, [1, 0])
    other = rule.init(np.zeros(2, np.float32))
    snapshot.put(other, kept)
    assert version(rule, other, [1, 0]).weights_P.tolist() == there.weights_P.tolist() == [5.0, 6.0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "return None",
            r"own\.py:1, in f: a rule returns the new weights, finite numbers of shape \(2,\); got NoneType",
        ),
        ("return w[:1]", r"got float64 \(1,\)"),
        ("return w / 0.0 if state.setdefault('n', 1) else w", "element 0 is none"),
        ("state['x'] = 'text'; return w", r"state\['x'\] is no array or number under a plain name"),
    ],
)
def test_what_a_rule_may_not_return(body: str, said: str, tmp_path: Path) -> None:
    rule = own_rule(tmp_path, f"def f(w, us, state):\n    {body}\n")
    with np.errstate(all="ignore"), pytest.raises(UserCodeError, match=said):
        version(rule, rule.init(np.ones(2, np.float32)), [1, 2])


# ------------------------------------------------------------------------------- selection, objective, data


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return max(clients, key=lambda c: seen[c].loss_before)", "return -1", "one of the clients"),
        (
            "    return step.loss + mu / 2 * way",
            "    return 1.0",
            "in ridge: an objective returns a scalar .* got float",
        ),
        (
            "    return step.loss + mu / 2 * way",
            "    return step.nothing",
            "in ridge: AttributeError: 'Step' object has no",
        ),
        ('"n_classes": 2', '"n_classes": 1', "in two_moons: n_classes is 1, but there are labels up to 1"),
        ('return {"train"', 'return {"training"', "a data set is a dictionary of train, test"),
        ("test for _, test in pairs]", "test for _, test in pairs][1:]", "train has 8 clients, test 7"),
        ("samples) + np.pi * y", "samples)[:9] + np.pi * y", "in shard: ValueError: operands could not be broadcast"),
    ],
)
def test_what_goes_wrong_in_a_run(old: str, new: str, said: str, folder: Path) -> None:
    swapped(folder, old, new)
    with pytest.raises(FedsimError, match=said) as caught:
        fedsim.run(folder / "all.yaml", folder / "run", overrides=["stop.versions=20"], allow_code=True)
    assert caught.value.exit_code == 2


def test_data_that_are_no_numbers(folder: Path) -> None:
    swapped(folder, "[[np.cos(turn)", "[[np.nan * np.cos(turn)")
    with pytest.raises(DataError, match=r"mine\.py:two_moons: train\[0\]: x: value at .* is nan"):
        plan(configfile.load(folder / "all.yaml"), folder, allow_code=True)


def test_an_objective_by_hand(folder: Path) -> None:
    """Without a way from the base there is no pull; with a huge pull nothing moves."""
    norms = {}
    for mu in (0.0, 3.0):
        overrides = [*SHORT, f"training.objective.options.mu={mu}"]
        run = fedsim.run(folder / "all.yaml", folder / f"run-{mu}", overrides=overrides, allow_code=True)
        assert run is not None
        norms[mu] = run.tasks.update_norm.mean()
    plain = ["training.objective={kind: proximal, mu: 3.0}", "training.path=loop"]
    built_in = fedsim.run(folder / "all.yaml", folder / "run", overrides=[*SHORT, *plain], allow_code=True)
    assert built_in is not None and norms[3.0] < 0.7 * norms[0.0]
    assert norms[3.0] == pytest.approx(built_in.tasks.update_norm.mean(), rel=1e-3)


def test_resume_and_replay_keep_to_the_code(folder: Path) -> None:
    overrides, asked = [*SHORT, "stop.versions=20", "aggregation={rule: ./mine.py:momentum}"], iter(range(10**6))
    alone = Caller(World(0, 1, None), allow_code=True)
    stopping = replace(alone, stop_requested=lambda: next(asked) > 40)
    ending = run_file(folder / "all.yaml", overrides, folder / "run", stopping)
    assert ending is not None and ending.status == "stopped"
    run = fedsim.open_run(folder / "run")
    assert list(json.loads(str(run.attributes["code_sha256"]))) == ["./mine.py"] and 0 < run.totals().versions < 20
    again: list[Callable[[Caller], Any]] = [
        lambda caller: resume_run(folder / "run", caller),
        lambda caller: replay_run(folder / "run", folder / "again", caller),
    ]
    swapped(folder, "half circles", "half  circles")
    for call in again:
        with pytest.raises(ConfigError, match="give --allow-code"):
            call(Caller(World(0, 1, None)))
        with pytest.raises(RecordError, match=r"\./mine\.py has changed since the run began: sha256"):
            call(alone)
    swapped(folder, "half  circles", "half circles")
    whole = fedsim.run(folder / "all.yaml", folder / "whole", overrides=overrides, allow_code=True)
    assert again[0](alone).status == "done" and whole is not None
    resumed = fedsim.open_run(folder / "run").summary()
    assert resumed["model_sha256"] == whole.summary()["model_sha256"]
    assert again[1](alone).status == "done"
    assert fedsim.open_run(folder / "again").summary()["model_sha256"] == resumed["model_sha256"]
