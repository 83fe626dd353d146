"""What the record of an attempt is told at its beginning and its end: tables, where the run comes from, totals."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fedsim import configfile
from fedsim.aggregation.marked import ATTACKED
from fedsim.engine import resume, topology
from fedsim.engine.agreement import Statement
from fedsim.engine.buffers import treatment_text
from fedsim.engine.launching import World
from fedsim.engine.losses import Report
from fedsim.engine.plan import Plan
from fedsim.engine.resume import Found, Resumption
from fedsim.engine.roles import Pulse
from fedsim.record import provenance
from fedsim.record.provenance import Attribute, Provenance, RankPlace, RunFacts
from fedsim.record.schema import RecordPlan, RunTotals, scalar_column

if TYPE_CHECKING:
    from fedsim.comm.transport import Transport
    from fedsim.engine.run import Caller
    from fedsim.record.writer import RecordWriter

_MOST_LISTED = 5000


def record_plan(made: Plan, resumption: Resumption | None) -> RecordPlan:
    """What the attempt's record has room for."""
    people, layout = made.population, made.layout
    n_named = people.n_clients if people.n_clients <= 10_000 else 0
    named = tuple(people.client_name(client) for client in range(n_named))
    plain = tuple(map(str, range(n_named)))
    told = {name: f"{name}, told by rule {made.rule.name}" for name in made.rule.scalar_names}
    if made.attackers is not None:
        told[ATTACKED] = "1 if an attacker sent the update, else 0; NaN if none was merged"
    scalars = [scalar_column(name, text) for name, text in told.items()]
    metrics = [scalar_column(name, f"{name} over the test samples") for name in made.metric_names]
    return RecordPlan(
        n_parameters=layout.n_parameters,
        layout=tuple(zip(layout.names, layout.shapes, layout.offsets, strict=True)),
        client_names=() if named == plain else named,
        rule_scalars=tuple(scalars),
        metrics=tuple(metrics),
        start_rows=() if resumption is None else tuple(resumption.start_rows.items()),
        tail_rows=() if resumption is None else tuple(resumption.tail_rows.items()),
        optional=("personal",) if any(method.has_second for method in made.methods) else (),
    )


def provenance_of(made: Plan, statements: Sequence[Statement], caller: Caller, found: Found | None) -> Provenance:
    """Where the attempt comes from; `found` is the run that it goes on with."""
    facts = _facts(made, statements, caller)
    if found is not None:
        facts = replace(facts, config_text=found.config_text, attempt=found.attempt, parent=found.parent)
    collected = provenance.collect(facts, os.environ, made.base_dir)
    attributes = {
        **collected.attributes,
        **_attack(made),
        **({"code_sha256": made.own.sha256} if made.own.sha256 else {}),
        "config_folder": str(made.base_dir),
        "path_reason": made.path_reason,
        "treatment": treatment_text(made.config, made.layout),
        "environment": resume.environment_text(statements),
    }
    return replace(collected, attributes=attributes)


def _attack(made: Plan) -> dict[str, Attribute]:
    """Who attacked, where anybody did; an attribute has room for so many numbers."""
    if made.attackers is None:
        return {}
    listed = json.dumps(made.attackers.tolist()) if made.attackers.size <= _MOST_LISTED else ""
    return {"n_attackers": int(made.attackers.size), **({"attackers": listed} if listed else {})}


def _facts(made: Plan, statements: Sequence[Statement], caller: Caller) -> RunFacts:
    config = made.config
    local = topology.local_ranks([said.host for said in statements])
    places = [
        RankPlace(
            said.rank,
            said.host,
            said.device,
            (said.environment or {}).get("cpu_capability", ""),
            local[i],
            said.cores,
            said.memory_nodes,
        )
        for i, said in enumerate(statements)
    ]
    return RunFacts(
        name=config.name,
        seed=config.seed,
        clock=config.clock,
        policy=config.schedule.policy,
        rule=config.aggregation.rule if made.own.rule is None else made.own.rule.name,
        dataset=config.data.dataset if made.own.data is None else made.own.data.name,
        config_text=configfile.resolved_text(config),
        command=tuple(caller.command_line),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data_sha256=statements[0].data_sha256,
        training_path=made.training_path,
        group_size=made.group_size,
        threads=config.threads,
        places=tuple(places),
        mpi_library=_mpi_library(caller.world),
        allow_mixed=config.allow_mixed or caller.allow_mixed,
    )


def _mpi_library(world: World) -> str:
    if world.comm is None:
        return ""
    from mpi4py import MPI

    return MPI.Get_library_version().split("\n")[0].strip("\0 ")


def totals(pulse: Pulse, wall_s: float) -> RunTotals:
    """The run in four numbers, at the attempt's end."""
    return RunTotals(pulse.version, pulse.n_updates, pulse.virtual_s, wall_s)


def reporter(record: RecordWriter, transport: Transport, clock: Callable[[], float]) -> Report:
    """Writes what is reported into the table of failures."""

    def report(worker: int, client: int, task: int, kind: str, text: str) -> None:
        record.append("failures", (clock(), transport.rank(worker), client, task, kind, text))

    return report
