"""The documentation holds: links lead somewhere, configurations run, commands parse, examples give what is shown."""

from __future__ import annotations

import configparser
import doctest
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import click
import pytest
import yaml

import fedsim
from fedsim import configfile
from fedsim.cli import cli
from fedsim.engine.plan import plan
from fedsim.record import schema

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in ROOT.glob("configs/**/*.yaml") if path.parent.name != "machines")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_MACHINE = re.compile(r"(?<![\w.])/(?:work|tmp|home|root)/")


def slugs(text: str) -> set[str]:
    """The anchors that a page's headings give."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    return _LINK.findall(_CODE.sub("", text))


# ------------------------------------------------------------------------------------------------- pages


def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / unquote(name) if name else page
        assert target.exists(), f"{page.name}: {link}"
        assert target.resolve().is_relative_to(ROOT), f"{page.name}: {link} leads out of the project"
        if anchor:
            assert anchor in slugs(target.read_text(encoding="utf-8")), f"{page.name}: {link}"


def test_the_link_test_sees_links_and_anchors() -> None:
    assert links("[a](b.md) `[c](d)` ![e](f.svg)\n```\n[g](h)\n```\n") == ["b.md", "f.svg"]
    assert slugs("# What it does not do yet\n## `devices.compute`\n## `fedsim show RUN --json`\n") == {
        "what-it-does-not-do-yet",
        "devicescompute",
        "fedsim-show-run---json",
    }


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        targets = (page.parent / link.partition("#")[0] for link in links(page.read_text(encoding="utf-8")))
        found = {target.resolve() for target in targets if target.suffix == ".md"}
        waiting += [target for target in found if target.exists() and target not in reached]
    assert {page.relative_to(ROOT) for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))} <= {
        page.relative_to(ROOT) for page in reached
    }


def test_no_page_names_a_folder_of_some_machine(page: Path) -> None:
    assert not _MACHINE.findall(page.read_text(encoding="utf-8"))


def test_the_readme_is_short_and_its_picture_is_drawn() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
    for picture in ROOT.glob("docs/*.svg"):
        root = ElementTree.parse(picture).getroot()
        assert root.tag.endswith("svg") and root.get("viewBox")
        assert root.find("{http://www.w3.org/2000/svg}title") is not None


# -------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_shipped_configuration_can_run_and_says_what_to_expect(path: Path, tmp_path: Path) -> None:
    data = _data_that_is_not_shipped(tmp_path) if path.name.startswith("tcga-") else []
    assert plan(configfile.load(path, data), path.parent, path.parent.name == "own").lines()
    head = "".join(line for line in path.read_text(encoding="utf-8").partition("\nname:")[0].splitlines(True))
    assert all(line.startswith("# ") for line in head.splitlines())
    for said in (r"Claim: ", r"(Expected|Seen): .*\.\d", r"within", r"Hardware and time: ", r"\d minutes"):
        assert re.search(said, head, re.DOTALL), f"{path.name}: its head does not say {said}"


def _data_that_is_not_shipped(folder: Path) -> list[str]:
    """Twelve patients in the form of Fed-TCGA-BRCA, and where they are."""
    patients = "".join(f"p{n},{n},{n % 2},{10 + n}\n" for n in range(12))
    folds = "".join(f"p{n},{'train' if n < 6 else 'test'}_{n % 6}\n" for n in range(12))
    (folder / "brca.csv").write_text("pid,age,E,T\n" + patients)
    (folder / "train_test_split.csv").write_text("pid,fold2\n" + folds)
    return [f"data.folder={folder}"]


def test_a_configuration_in_the_text_can_run(yaml_block: Any, example_data: Path) -> None:
    """A block is a whole configuration, or a part of one, in place of sections of the page's example."""
    given = yaml.safe_load(yaml_block.text)
    whole = given if "name" in given else {**_example(), **given}
    path = example_data / "block.yaml"
    path.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    assert plan(configfile.load(path), path.parent).lines()


def _example() -> dict[str, Any]:
    """The first configuration of docs/configuration.md, which is a whole one."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    example: dict[str, Any] = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    return example


# ------------------------------------------------------------------------------------------------ commands


def commands(text: str) -> list[list[str]]:
    """The words of each command line, without comments."""
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command and its parameters, as the command line reads them; a click error where it would refuse them."""
    with click.Context(cli, info_name="fedsim", **cli.context_settings) as context:
        command = cli.get_command(context, words[0])
        assert command is not None
        with command.make_context(words[0], words[1:], parent=context) as inner:
            return words[0], dict(inner.params)


def test_commands_are_understood(sh_block: Any) -> None:
    for words in commands(sh_block.text):
        if "fedsim" in words:
            before = words[: words.index("fedsim")]
            is_mpirun = before[:2] == ["mpirun", "-n"] and int(before[2]) > 1
            assert is_mpirun or before in ([], ["slurm/cluster/shell"])
            _check(*parse(words[words.index("fedsim") + 1 :]))
        elif words[0].startswith(("launch/", "slurm/")):
            assert all((ROOT / word).exists() for word in words if "/" in word and not word.startswith("runs/")), words
        else:
            assert words[:4] == ["python", "-m", "pip", "install"] and (ROOT / words[5]).exists(), words


def _check(name: str, parameters: dict[str, Any]) -> None:
    """A configuration file that a command names must be there, and take what is set."""
    if "config" in parameters:
        path = ROOT / parameters["config"]
        loaded = configfile.load(path, parameters["overrides"])
        assert plan(loaded, path.parent, parameters.get("allow_code", False)).lines(), name


def test_a_wrong_command_would_be_seen() -> None:
    for words in (["rnu", "a"], ["run"], ["run", "a", "--ot", "b"], ["show", "a", "--jsno"], ["list", "policy"]):
        with pytest.raises(click.UsageError):
            parse(words)


def test_the_commands_of_the_readme_print_what_it_shows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = [w for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for w in commands(block)]
    printed: dict[str, str] = {}
    for words in (words[1:] for words in listed if words[0] == "fedsim"):
        assert cli.main(words, standalone_mode=False) == 0, words
        printed[words[0]] = capsys.readouterr().out
    assert set(printed) == {"check", "run", "show", "list"}
    shown = text.partition("<!-- output of: fedsim run configs/quickstart.yaml -->\n```\n")[2].partition("```")[0]
    assert [_without_luck(line) for line in shown.splitlines()] == [
        _without_luck(line) for line in printed["run"].splitlines()
    ]
    assert _scores(shown) == pytest.approx(_scores(printed["run"]), abs=0.02)


def _without_luck(line: str) -> str:
    """A line of the result without what depends on the machine: times, hashes, and the digits of scores."""
    line = re.sub(r"(wall time|workers|model|history) +│ .*", r"\1", line)
    return re.sub(r"\b0\.\d+ *│|0\.\d+\b", "", line).replace(" ", "")


def _scores(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"0\.\d+", text.partition("Evaluation")[2])]


# -------------------------------------------------------------------------------------------------- Python


def test_python_examples_give_what_they_show(page: Path, blocks: Callable[[Path], list[Any]], folder: Path) -> None:
    """The sessions of a page, one after the other, in one namespace; a script is run as it stands."""
    sessions, scope = [], dict[str, Any]()
    for block in blocks(page):
        if block.language == "python" and ">>> " in block.text:
            sessions.append(block.text)
        elif block.language == "python":
            exec(compile(block.text, f"{block.page}:{block.line}", "exec"), {"__name__": "script"})
    test = doctest.DocTestParser().get_doctest("\n".join(sessions), scope, page.name, str(page), 0)
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append)
    assert result.failed == 0, "".join(told)
    assert result.attempted > 0 or not sessions


# -------------------------------------------------------------------------------------------- the record


def _cells(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    part = text.partition(f"\n{heading}\n")[2]
    table = re.search(r"(^\|.*\n)+", part, re.MULTILINE)
    assert table is not None, heading
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[0].splitlines()[2:]]


@pytest.mark.parametrize("table", schema.TABLES, ids=lambda table: table.name)
def test_the_page_lists_the_columns_of_a_record(table: schema.Table) -> None:
    text = (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    listed = _cells(text, f"### `{table.name}`")
    assert [row[:3] for row in listed] == [[f"`{c.name}`", f"`{c.dtype.lstrip('|')}`", c.units] for c in table.columns]
    assert all(row[3] for row in listed)


def test_the_page_lists_the_keys_of_show_json(folder: Path) -> None:
    run = fedsim.run("configs/heart-async.yaml", overrides=["stop.versions=1"])
    assert run is not None
    listed = _cells((ROOT / "docs" / "record.md").read_text(encoding="utf-8"), "## `fedsim show RUN --json`")
    assert [row[0] for row in listed] == [f"`{key}`" for key in run.summary()]


# ---------------------------------------------------------------------------------------------- metadata


def test_one_version_and_one_licence_everywhere() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGES.md").read_text(encoding="utf-8")
    assert citation["version"] == fedsim.__version__
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == fedsim.__version__
    assert citation["license"] == setup["metadata"]["license"] == "Apache-2.0"
    assert setup["metadata"]["long_description"] == "file: README.md"
