"""`fedsim check` and `fedsim list`: what would happen, and what there is to choose from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import click

from fedsim.cli.running import code_option, set_option
from fedsim.errors import EXIT_DONE

if TYPE_CHECKING:
    from pydantic import BaseModel

# What `list` knows: the union of configuration classes, and the key that tells them apart.
KINDS = {
    "datasets": ("DataConfig", "dataset"),
    "partitions": ("PartitionConfig", "kind"),
    "laws": ("LawConfig", "law"),
    "availabilities": ("AvailabilityConfig", "kind"),
    "models": ("ModelConfig", "kind"),
    "policies": ("ScheduleConfig", "policy"),
    "optimizers": ("OptimizerConfig", "kind"),
    "objectives": ("ObjectiveConfig", "kind"),
    "rules": ("AggregationConfig", "rule"),
    "staleness": ("StalenessConfig", "kind"),
}


@click.command(short_help="Say what a run of a configuration would do; train nothing.")
@click.argument("config", type=click.Path(path_type=Path))
@set_option
@code_option
def check(config: Path, overrides: tuple[str, ...], allow_code: bool) -> int:
    """Check the configuration file CONFIG and say what a run of it would do; trains nothing."""
    from rich.markup import escape
    from rich.table import Table

    from fedsim import configfile
    from fedsim.cli.output import show_table
    from fedsim.engine.plan import plan

    planned = plan(configfile.load(config, overrides), config.resolve().parent, allow_code)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in planned.lines():
        table.add_row(escape(label), escape(value))
    show_table(table)
    return EXIT_DONE


@click.command("list", short_help="List what a configuration can choose from.")
@click.argument("what", type=click.Choice(list(KINDS)), required=False, metavar="[WHAT]")
def list_names(what: str | None) -> int:
    """List what a configuration can choose from: everything, or WHAT.

    WHAT is one of datasets, partitions, laws, availabilities, models, policies, optimizers, objectives, rules and
    staleness. The key that takes the name stands behind the heading; a choice's own keys are in brackets, with their
    defaults.
    """
    formatter = click.HelpFormatter(max_width=100)
    for kind in [what] if what else KINDS:
        with formatter.section(f"{kind} ({KINDS[kind][1]})"):
            formatter.write_dl([(entry.name, entry.text) for entry in entries(kind)])
    click.echo(formatter.getvalue().strip("\n"))
    return EXIT_DONE


class Entry(NamedTuple):
    """A name that a configuration can choose, and what it means."""

    name: str
    text: str


def entries(kind: str) -> list[Entry]:
    """What there is of a kind, in the order of the configuration's classes."""
    import fedsim.config

    union, key = KINDS[kind]
    classes = get_args(get_args(getattr(fedsim.config, union))[0])
    return [Entry(name, _text(cls, key)) for cls in classes for name in get_args(cls.model_fields[key].annotation)]


def _text(cls: type[BaseModel], key: str) -> str:
    """The first line of the class's docstring, then its keys with their defaults."""
    first_line = (cls.__dict__.get("__doc__") or "").strip().split("\n")[0]
    keys = [_key_text(name, field) for name, field in cls.model_fields.items() if name != key]
    return " ".join([first_line, *([f"[{', '.join(keys)}]"] if keys else [])]).strip()


def _key_text(name: str, field: Any) -> str:
    if field.is_required():
        return name
    default = field.get_default(call_default_factory=True)
    if hasattr(default, "model_dump"):
        default = " ".join(str(value) for value in default.model_dump().values())
    return f"{name}={default}"
