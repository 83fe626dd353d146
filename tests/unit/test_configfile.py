"""Configurations from files and options: what is read, and the one line that each wrong input gets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim import configfile, yamltree
from fedsim.config import AsyncSchedule, MlpModel, RunConfig, SgdOptimizer, SyncSchedule
from fedsim.errors import EXIT_USAGE, ConfigError

TEXT = """\
name: a
data:
  dataset: heart
model:
  kind: mlp
  hidden: [10, 20]
training:
  optimizer:
    kind: sgd
    learning_rate: 1e-3
  batch_size: 4
  epochs: 1
schedule:
  policy: async
  concurrency: 3
aggregation:
  rule: fedasync
stop:
  versions: 3
"""


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(TEXT)


def load(text: str | bytes = TEXT, *overrides: str) -> RunConfig:
    path = Path("a.yaml")
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return configfile.load(path, overrides)


def message(text: str | bytes = TEXT, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 500
    assert caught.value.exit_code == EXIT_USAGE
    return line


# ------------------------------------------------------------------------------------------ what is read


def test_values_and_defaults() -> None:
    config = load()
    assert config.model == MlpModel(kind="mlp", hidden=[10, 20])
    assert config.training.optimizer == SgdOptimizer(kind="sgd", learning_rate=0.001)
    assert config.seed == 0 and config.stop.versions == 3


def test_overrides_replace_and_make_sections() -> None:
    config = load(
        TEXT,
        "seed=42",
        "schedule={policy: sync, cohort: 4}",
        "aggregation={rule: fedavg}",
        "model.hidden=[7]",
        "training.decay.factor=.5",
        "training.decay.every_versions=1_000",
        "stop.target.value=0.7",
        "training.clip_norm=1e2",
    )
    assert config.seed == 42
    assert config.schedule == SyncSchedule(policy="sync", cohort=4)
    assert config.model == MlpModel(kind="mlp", hidden=[7])
    assert config.training.decay is not None and config.training.decay.every_versions == 1000
    assert config.training.clip_norm == 100.0


def test_the_last_override_of_a_key_wins() -> None:
    assert load(TEXT, "seed=1", "seed=2").seed == 2


def test_an_integer_serves_where_a_number_is_expected() -> None:
    assert load(TEXT, "training.optimizer.learning_rate=1").training.optimizer.learning_rate == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("+.5", 0.5),
        ("3.", 3.0),
        ("-1.5e+10", -1.5e10),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("1_000", 1000),
        ("-7", -7),
        ("0", 0),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("off", "off"),
        ("n", "n"),
        ("2024-01-01", "2024-01-01"),
        ("1:30", "1:30"),
        ("007", "007"),
        ("0x1F", "0x1F"),
        ("1__0", "1__0"),
        ("1_", "1_"),
        ("e5", "e5"),
        (".", "."),
        ("=", "="),
        ("<<", "<<"),
        ('"1"', "1"),
        ("'null'", "null"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_are_yaml_1_2_in_decimal(text: str, value: Any) -> None:
    got = yamltree.parse_value(text, "--set x")
    assert got == value and type(got) is type(value)


def test_a_byte_order_mark_and_crlf_are_read() -> None:
    assert load(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()) == load()


# ------------------------------------------------------------------------------------ what wrong values get

RUN_KEYS = (
    "aggregation, allow_mixed, attack, checkpoint, clock, compression, cores, data, device, devices, "
    "evaluation, fault_tolerant, memory, model, name, on_client_error, partition, personalization, placement, "
    "record, reduce, retry, schedule, seed, stall_timeout_s, stop, threads, training"
)
POLICIES = "sync, async, buffered, k-async, window, tiers, pisces, compass, safa"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "  concurrency: 3",
            "  concurency: 3",
            "a.yaml:15: schedule.concurency: unknown key; did you mean 'concurrency'?",
        ),
        ("name: a", "nmae: a", "a.yaml:1: nmae: unknown key; did you mean 'name'?"),
        ("name: a", "name: a\nzzz: 1", f"a.yaml:2: zzz: unknown key; allowed: {RUN_KEYS}"),
        (
            "  policy: async\n",
            "",
            f"a.yaml:13: schedule.policy: missing; allowed: {POLICIES}",
        ),
        ("  policy: async", "  polcy: async", "a.yaml:14: schedule.polcy: unknown key; did you mean 'policy'?"),
        (
            "  policy: async",
            "  policy: asink",
            "a.yaml:14: schedule.policy: unknown value 'asink'; did you mean 'async'?",
        ),
        (
            "  policy: async",
            "  policy: 3",
            f"a.yaml:14: schedule.policy: unknown value 3; allowed: {POLICIES}",
        ),
        ("  policy: async", "  policy: k-async", "a.yaml:13: schedule.k: missing; it must be given"),
        ("  concurrency: 3\n", "", "a.yaml:13: schedule.concurrency: missing; it must be given"),
        ("  concurrency: 3", "  concurrency: '3'", "a.yaml:15: schedule.concurrency: expected a whole number, got '3'"),
        ("  concurrency: 3", "  concurrency: 3.0", "a.yaml:15: schedule.concurrency: expected a whole number, got 3.0"),
        (
            "  concurrency: 3",
            "  concurrency: true",
            "a.yaml:15: schedule.concurrency: expected a whole number, got true",
        ),
        ("  concurrency: 3", "  concurrency:", "a.yaml:15: schedule.concurrency: expected a whole number, got null"),
        ("  concurrency: 3", "  concurrency: 0", "a.yaml:15: schedule.concurrency: must be at least 1, got 0"),
        ("[10, 20]", "[10, x]", "a.yaml:6: model.hidden[1]: expected a whole number, got 'x'"),
        ("[10, 20]", "\n  - 10\n  - -2", "a.yaml:8: model.hidden[1]: must be at least 1, got -2"),
        ("[10, 20]", "[]", "a.yaml:6: model.hidden: must have at least 1 entry, got 0"),
        ("[10, 20]", str([1] * 33), "a.yaml:6: model.hidden: must have at most 32 entries, got 33"),
        ("[10, 20]", "10", "a.yaml:6: model.hidden: expected a list, got 10"),
        ("name: a", "name: 3", "a.yaml:1: name: expected text, got 3"),
        ("name: a", "name: ../b", "a.yaml:1: name: must match ^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$, got '../b'"),
        ("name: a\n", "", "a.yaml: name: missing; it must be given"),
        ("1e-3", "-1e-3", "a.yaml:10: training.optimizer.learning_rate: must be above 0, got -0.001"),
        ("1e-3", ".nan", "a.yaml:10: training.optimizer.learning_rate: expected a finite number, got nan"),
        ("1e-3", "1e-3x", "a.yaml:10: training.optimizer.learning_rate: expected a number, got '1e-3x'"),
        ("1e-3", "true", "a.yaml:10: training.optimizer.learning_rate: expected a number, got true"),
        (
            "1e-3",
            "1e-3\n    momentum: 1",
            "a.yaml:11: training.optimizer.momentum: must be below 1, got 1",
        ),
        (
            "    kind: sgd",
            "    kind: adam\n    betas: [0.9]",
            "a.yaml:10: training.optimizer.betas[1]: missing; it must be given",
        ),
        (
            "    kind: sgd",
            "    kind: adamw\n    betas: [0.9, 1.0]",
            "a.yaml:10: training.optimizer.betas[1]: must be below 1, got 1.0",
        ),
        (
            "    kind: sgd",
            "    kind: adam\n    betas: [.1, .1, .1]",
            "a.yaml:10: training.optimizer.betas: must have at most 2 entries, got 3",
        ),
        (
            "    kind: sgd",
            "    kind: sgd\n    betas: [.1, .1]",
            "a.yaml:10: training.optimizer.betas: unknown key; allowed: kind, learning_rate, momentum, weight_decay",
        ),
        ("  epochs: 1\n", "", "a.yaml:7: training: exactly one of epochs and steps must be given, got neither"),
        (
            "  epochs: 1",
            "  epochs: 1\n  steps: 2",
            "a.yaml:7: training: exactly one of epochs and steps must be given, got both",
        ),
        (
            "  epochs: 1",
            "  epochs: 1\n  order: random",
            "a.yaml:13: training.order: unknown value 'random'; allowed: continued, sequential, task",
        ),
        (
            "  epochs: 1",
            "  epochs: 1\n  decay: 3",
            "a.yaml:13: training.decay: expected a mapping of keys to values, got 3",
        ),
        ("  versions: 3", "  wall_s: 0", "a.yaml:19: stop.wall_s: must be above 0, got 0"),
        (
            "stop:\n  versions: 3",
            "stop: {}",
            "a.yaml:18: stop: at least one of versions, updates, virtual_s and wall_s must be given",
        ),
        ("stop:\n  versions: 3", "stop: [3]", "a.yaml:18: stop: expected a mapping of keys to values, got [3]"),
        ("data:\n  dataset: heart", "data: heart", "a.yaml:2: data: expected a mapping of keys to values, got 'heart'"),
        (
            "  dataset: heart",
            "  dataset: haert",
            "a.yaml:3: data.dataset: unknown value 'haert'; did you mean 'heart'?",
        ),
        (
            "  policy: async",
            "  policy: k-async\n  k: 5",
            "a.yaml:15: schedule: k is 5, above concurrency (3): k tasks can never be in, so no version would be made",
        ),
        (
            "  rule: fedasync",
            "  rule: fedbuff",
            "a.yaml:17: aggregation.rule fedbuff needs a buffer: schedule.policy buffered (or k-async, window, tiers), "
            "got async",
        ),
        (
            "  dataset: heart",
            "  dataset: digits",
            "a.yaml:2: data set 'digits' has no clients of its own: "
            "partition.kind must be one of iid, dirichlet, shards, quantity",
        ),
        (
            "stop:",
            "devices:\n  download:\n    bytes_per_s: {law: lognormal, mean: 3, sigma: -1}\nstop:",
            "a.yaml:20: devices.download.bytes_per_s.sigma: must be at least 0, got -1",
        ),
        (
            "stop:",
            "devices:\n  compute:\n    time:\n      law: shifted-exponential\n      shift: 2\n      mean: 1\nstop:",
            "a.yaml:23: devices.compute.time: mean is 1.0, must be above shift (2.0)",
        ),
    ],
)
def test_wrong_values(old: str, new: str, expected: str) -> None:
    assert TEXT.count(old) == 1
    assert message(TEXT.replace(old, new)) == expected


def test_the_first_line_is_told_and_the_others_are_counted() -> None:
    text = TEXT.replace("  concurrency: 3", "  concurrency: x").replace("batch_size: 4", "batch_size: 0")
    assert message(text) == "a.yaml:11: training.batch_size: must be at least 1, got 0 (and 1 more)"


def test_a_misspelt_key_hides_the_key_that_is_missing_for_it_and_no_other() -> None:
    text = TEXT.replace("  concurrency: 3", "  concurency: 3").replace("  batch_size: 4\n", "")
    assert message(text) == ("a.yaml:14: schedule.concurency: unknown key; did you mean 'concurrency'? (and 1 more)")


@pytest.mark.parametrize("value", ["x" * 100_000, "[" + "1, " * 10_000 + "1]", '"\\n\\e[2J\\0"'])
def test_long_and_odd_values_are_quoted_short(value: str) -> None:
    line = message(TEXT.replace("concurrency: 3", f"concurrency: {value}"))
    prefix, got = line.split("got ")
    assert prefix == "a.yaml:15: schedule.concurrency: expected a whole number, "
    assert len(got) <= 60 and got.isprintable()


def test_long_and_odd_keys_are_quoted_short() -> None:
    line = message(TEXT + '"a\\nb": 1\n')
    assert line == f"a.yaml:20: 'a\\nb': unknown key; allowed: {RUN_KEYS}"
    line = message(TEXT + '? "' + "k" * 50_000 + '"\n: 1\n')
    assert "kkk...: unknown key" in line


# ------------------------------------------------------------------------------------ what wrong texts get


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"", "a.yaml: empty; a configuration is a mapping of keys to values"),
        (b"# nothing\n", "a.yaml: empty; a configuration is a mapping of keys to values"),
        (b"\n- a\n", "a.yaml:2: expected a mapping of keys to values, got a list"),
        (b"text\n", "a.yaml:1: expected a mapping of keys to values, got a single value"),
        (b"a: 1\nb: 2\na: 3\n", "a.yaml:3: the key 'a' is given twice; first on line 1"),
        (b"a:\n  b: 1\n  b: 1\n", "a.yaml:3: the key 'b' is given twice; first on line 2"),
        (b"a: {b: 1, 'b': 2}\n", "a.yaml:1: the key 'b' is given twice; first on line 1"),
        (b"a: &x 1\n", "a.yaml:1: anchors and aliases (& and *) are not allowed; write the value out"),
        (b"a: 1\nb: *x\n", "a.yaml:2: anchors and aliases (& and *) are not allowed; write the value out"),
        (b"3: 1\n", "a.yaml:1: a key must be text, got 3"),
        (b"true: 1\n", "a.yaml:1: a key must be text, got true"),
        (b"a:\n  {? : 1}\n", "a.yaml:2: a key must be text, got nothing"),
        (b"[a, b]: 1\n", "a.yaml:1: a key must be text, got a sequence"),
        (b"a: 1\n---\nb: 2\n", "a.yaml:2: a second document starts here (---); a configuration is one document"),
        (b"a:\n\tb: 1\n", "a.yaml:2: a tab character; YAML is indented by spaces"),
        (
            b"a: !!python/object/apply:os.system [ls]\n",
            "a.yaml:1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; write the plain value",
        ),
        (b"a: !!int '3'\n", "a.yaml:1: the tag 'tag:yaml.org,2002:int' is not allowed; write the plain value"),
        (b"a: !x 3\n", "a.yaml:1: the tag '!x' is not allowed; write the plain value"),
        (b"a: 1\nb: \xff\n", "a.yaml:2: not UTF-8 text (byte 0xff)"),
        ("a: 1\n".encode("utf-16"), "a.yaml:1: not UTF-8 text (byte 0xff)"),
        (b"a: 1\nb: \x00\n", "a.yaml:2: the character U+0000 is not allowed in YAML"),
        (b"a: b: c\n", "a.yaml:1: not valid YAML: mapping values are not allowed here"),
        (
            b"a: [1, 2\n",
            "a.yaml:2: not valid YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence)",
        ),
        (b"a: 'x\n", "a.yaml:2: not valid YAML: found unexpected end of stream (while scanning a quoted scalar)"),
        (b"a: " + b"[" * 60 + b"]" * 60, "a.yaml:1: nested deeper than 50 levels"),
        (b"a: " + b"[" * 500_000, "a.yaml:1: nested deeper than 50 levels"),
        (b"a: " + b"{b: " * 200_000, "a.yaml:1: nested deeper than 50 levels"),
        (b"- " * 200_000, "a.yaml:1: nested deeper than 50 levels"),
        (b"a: 1 # " + b"x" * 2**20, "a.yaml: larger than 1 MiB; a configuration is a few lines of YAML"),
    ],
)
def test_wrong_texts(text: bytes, expected: str) -> None:
    assert message(text) == expected


def test_missing_files_and_folders() -> None:
    Path("heart-async.yaml").write_text(TEXT)
    for name, expected in [
        ("nowhere.yaml", "nowhere.yaml: no such file"),
        ("heart-asink.yaml", "heart-asink.yaml: no such file; did you mean 'heart-async.yaml'?"),
        (".", ".: not a plain file"),
        ("a.yaml/b.yaml", "a.yaml/b.yaml: cannot be read: Not a directory"),
    ]:
        with pytest.raises(ConfigError) as caught:
            configfile.load(Path(name))
        assert str(caught.value) == expected


def test_a_pipe_is_refused_rather_than_waited_for() -> None:
    os.mkfifo("pipe.yaml")
    with pytest.raises(ConfigError, match=r"^pipe\.yaml: not a plain file$"):
        configfile.load(Path("pipe.yaml"))


# ------------------------------------------------------------------------------------------------- base


def test_a_base_is_merged_section_by_section() -> None:
    Path("sub").mkdir()
    Path("sub/b.yaml").write_text("base: ../a.yaml\nname: b\ntraining: {batch_size: 7}\nmodel: {hidden: [3]}\n")
    config = configfile.load(Path("sub/b.yaml"), ["seed=1"])
    assert (config.name, config.seed, config.training.batch_size, config.training.epochs) == ("b", 1, 7, 1)
    assert config.model == MlpModel(kind="mlp", hidden=[3])


def test_a_section_of_another_kind_replaces_the_base_s() -> None:
    Path("b.yaml").write_text("base: a.yaml\nschedule: {policy: sync, cohort: 2}\naggregation: {rule: fedavg}\n")
    assert configfile.load(Path("b.yaml")).schedule == SyncSchedule(policy="sync", cohort=2)
    Path("b.yaml").write_text("base: a.yaml\nschedule: {policy: async, selection: size}\n")
    schedule = configfile.load(Path("b.yaml")).schedule
    assert schedule == AsyncSchedule(policy="async", concurrency=3, selection="size")


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        (
            "base: x.yaml\n",
            "base: base.yaml\n",
            "base.yaml:1: base: 'base.yaml' is itself a base, so it cannot have one",
        ),
        (TEXT, "base: 3\n", "own.yaml:1: base: expected the name of a YAML file, got 3"),
        (TEXT, "name: b\nbase: bse.yaml\n", "own.yaml:2: base: bse.yaml: no such file; did you mean 'base.yaml'?"),
        (
            TEXT.replace("hidden", "hiden"),
            "base: base.yaml\n",
            "base.yaml:6: model.hiden: unknown key; did you mean 'hidden'?",
        ),
        (
            TEXT,
            "base: base.yaml\nmodel: {hiden: [1]}\n",
            "own.yaml:2: model.hiden: unknown key; did you mean 'hidden'?",
        ),
        (TEXT, "base: base.yaml\nmodel:\n", "own.yaml:2: model: expected a mapping of keys to values, got null"),
        (
            "a: [",
            "base: base.yaml\n",
            "own.yaml:1: base: base.yaml:1: not valid YAML: expected the node content, but found '<stream end>' "
            "(while parsing a flow node)",
        ),
    ],
)
def test_wrong_bases(base: str, own: str, expected: str) -> None:
    Path("base.yaml").write_text(base)
    Path("own.yaml").write_text(own)
    with pytest.raises(ConfigError) as caught:
        configfile.load(Path("own.yaml"))
    assert str(caught.value) == expected


# -------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("schedule.concurency=3", "--set schedule.concurency: unknown key; did you mean 'concurrency'?"),
        ("sede=3", "--set sede: unknown key; did you mean 'seed'?"),
        ("seed=x", "--set seed: expected a whole number, got 'x'"),
        ("seed=", "--set seed: expected a whole number, got null"),
        ("seed=-1", "--set seed: must be at least 0, got -1"),
        (f"seed={2**63}", f"--set seed: must be below {2**63}, got {2**63}"),
        ("model.hidden=[1, x]", "--set model.hidden: model.hidden[1]: expected a whole number, got 'x'"),
        ("model.hidden.width=3", "--set model.hidden.width: model.hidden is [10, 20], which has no keys"),
        ("schedule={policy: sync}", "--set schedule: schedule.cohort: missing; it must be given"),
        ("schedule.policy=asyn", "--set schedule.policy: unknown value 'asyn'; did you mean 'async'?"),
        ("clock=wal", "--set clock: unknown value 'wal'; did you mean 'wall'?"),
        ("base=a.yaml", f"--set base: unknown key; allowed: {RUN_KEYS}"),
        ("seed", "--set 'seed': expected key=value, such as seed=42 or schedule.concurrency=8"),
        ("=3", "--set '=3': expected key=value, such as seed=42 or schedule.concurrency=8"),
        ("a..b=3", "--set 'a..b=3': expected key=value, such as seed=42 or schedule.concurrency=8"),
        ("seed=a: 1", "--set seed: expected one value, or a list or mapping in brackets, got 'a: 1'"),
        ("seed=- 1", "--set seed: expected one value, or a list or mapping in brackets, got '- 1'"),
        ("seed={a: 1, a: 2}", "--set seed: the key 'a' is given twice; first on line 1"),
        ("seed=*a", "--set seed: anchors and aliases (& and *) are not allowed; write the value out"),
        ("seed=\udcff", "--set seed: not UTF-8 text (byte 0xff)"),
        (
            "aggregation.rule=fedbuff",
            "--set aggregation.rule: aggregation.rule fedbuff needs a buffer: schedule.policy buffered "
            "(or k-async, window, tiers), got async",
        ),
    ],
)
def test_wrong_overrides(override: str, expected: str) -> None:
    assert message(TEXT, override) == expected


# --------------------------------------------------------------------------------- mappings and their text


def test_from_mapping_names_the_key() -> None:
    value = yamltree.parse(TEXT.encode(), "a.yaml").value
    assert configfile.from_mapping(value) == load()
    value["schedule"]["concurency"] = 2
    with pytest.raises(ConfigError) as caught:
        configfile.from_mapping(value, "sweep point 3")
    assert str(caught.value) == "sweep point 3: schedule.concurency: unknown key; did you mean 'concurrency'?"


def test_from_mapping_refuses_keys_that_are_not_text() -> None:
    with pytest.raises(ConfigError, match=r"^configuration: \[3\]: keys should be strings, got 3"):
        configfile.from_mapping({3: 1, **yamltree.parse(TEXT.encode(), "").value})  # type: ignore[dict-item]


def test_resolved_text_has_every_default_and_reads_back() -> None:
    config = load()
    text = configfile.resolved_text(config)
    for line in (
        "seed: 0\n",
        "  hidden: [10, 20]\n",
        "    learning_rate: 0.001\n",
        "  decay: null\n",
        "  flush_s: 2.0\n",
    ):
        assert line in text
    assert load(text) == config
    assert configfile.resolved_text(load(text)) == text
    assert configfile.sha256(load(text)) == configfile.sha256(config)
    assert configfile.sha256(load(TEXT, "seed=1")) != configfile.sha256(config)


@pytest.mark.parametrize("name", ["1e3", "1", "0.5", "true", "null", "no", "007", "2024-01-01", "1_0", "a" * 100])
def test_names_that_look_like_other_things_survive(name: str) -> None:
    config = load(TEXT, f'name="{name}"')
    assert config.name == name
    assert load(configfile.resolved_text(config)) == config


def test_the_digest_is_the_same_in_another_process() -> None:
    code = "import sys; from pathlib import Path; from fedsim.configfile import *; print(sha256(load(Path('a.yaml'))))"
    root = Path(configfile.__file__).parents[1]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == configfile.sha256(load())
