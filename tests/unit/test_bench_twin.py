"""The engine's twin: limits that are known in closed form, the fit of what was put in, the forecast's tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from fedsim.bench.twin import measure
from fedsim.bench.twin.forecast import MODELS, OPTIONS, forecast, look_ahead, look_ahead_markdown, markdown, plot
from fedsim.bench.twin.model import Job, Machine, Twin, limit_per_s
from fedsim.bench.twin.pingpong import SIZES_BYTES, latency_and_byte_s
from fedsim.errors import DataError

FREE = Machine()
COSTS = Machine(
    update_s=2e-4,
    mix_byte_s=2e-9,
    add_byte_s=1e-9,
    version_byte_s=1.5e-9,
    total_byte_s=3e-9,
    task_s=5e-4,
    latency_s=5e-6,
    message_byte_s=1e-10,
)
SHARED = replace(COSTS, task_s=2e-3, task_cpu_s=1.5e-3, cores=2)


def test_a_free_server_is_never_in_the_way() -> None:
    job = Job(n_workers=4, n_in_flight=4096, group_s=0.1, model_bytes=1e3, is_exponential=False)
    said = Twin(FREE, job).run(4000)
    assert said.updates_per_s == pytest.approx(40.0, rel=0.01)
    assert said.worker_busy == pytest.approx(1.0, rel=0.01) and said.server_busy == 0.0


def test_many_workers_get_what_rank_zero_can_give() -> None:
    job = Job(n_workers=200, n_in_flight=600, group_s=0.01, model_bytes=4e4, is_ordered=False)
    limit = limit_per_s(COSTS, job)
    assert limit == pytest.approx(1.0 / (2e-4 + (2e-9 + 2e-10) * 4e4))
    said = Twin(COSTS, job).run(20_000)
    assert said.updates_per_s == pytest.approx(limit, rel=0.02) and said.server_busy > 0.97


def test_copies_of_messages_can_be_the_limit() -> None:
    slow = replace(COSTS, message_byte_s=1e-6)
    job = Job(n_workers=50, n_in_flight=200, group_s=0.01, model_bytes=4e4, is_ordered=False)
    copies_s = 2.0 * 1e-6 * 4e4  # a row comes in, a version goes out
    assert Twin(slow, job).run(3000).updates_per_s == pytest.approx(1.0 / (copies_s + 2e-4 + 2e-9 * 4e4), rel=0.05)
    only = Machine(message_byte_s=1e-6)
    assert limit_per_s(only, replace(job, wire=0.5)) == pytest.approx(2.0 * limit_per_s(only, job))


@pytest.mark.parametrize("reduced", [False, True])
def test_a_buffer_costs_rank_zero_a_version_and_not_one_an_update(reduced: bool) -> None:
    """Twenty workers, groups of eight, 160 updates a version: a version goes out once a worker."""
    job = Job(20, 100, 0.001, 4e5, group=8, buffer=160, reduced=reduced, is_ordered=False)
    per_byte = 1e-9 + 1.5e-9 / 160.0 + 1e-10 + 1e-10 / 8.0  # added, its share of the version, in, out
    if reduced:  # a total a worker and version, of eight bytes a parameter
        per_byte = 3e-9 * 20.0 / 160.0 + (1.5e-9 + 3e-9) / 160.0 + 2.0 * 1e-10 * 20.0 / 160.0 + 1e-10 / 8.0
    assert limit_per_s(COSTS, job) == pytest.approx(1.0 / (2e-4 + 4e5 * per_byte))
    assert Twin(COSTS, job).run(20_000).updates_per_s == pytest.approx(limit_per_s(COSTS, job), rel=0.03)


def test_the_order_of_events_bounds_the_workers_that_can_be_busy() -> None:
    """With exponential durations about sqrt(pi m / 2) of m tasks can be trained side by side; with fixed ones all."""
    found = {(row.n_in_flight, row.shift): row.n_busy for row in look_ahead((256, 1024), (0.0, 0.999))}
    assert found[256, 0.0] == pytest.approx(math.sqrt(math.pi * 256 / 2.0), rel=0.15)
    assert found[1024, 0.0] == pytest.approx(math.sqrt(math.pi * 1024 / 2.0), rel=0.15)
    assert found[256, 0.999] > 240.0


def test_a_ping_pong_is_a_line() -> None:
    noisy = [(n, (3e-6 + n * 2e-10) * (1.05 if i % 2 else 0.95)) for i, n in enumerate(SIZES_BYTES)]
    latency_s, byte_s = latency_and_byte_s(noisy)
    assert latency_s == pytest.approx(3e-6, rel=0.1) and byte_s == pytest.approx(2e-10, rel=0.1)


def test_cores_bound_what_all_ranks_compute_together() -> None:
    """40 workers want more than two cores: these give what they have, however long tasks sleep beside."""
    for group_s in (0.001, 0.02):
        job = Job(n_workers=40, n_in_flight=2000, group_s=group_s, model_bytes=0.0, is_ordered=False)
        said = Twin(SHARED, job).run(20_000)
        assert said.updates_per_s == pytest.approx(2 / (SHARED.task_cpu_s + SHARED.update_s), rel=0.03)
    alone = Job(n_workers=1, n_in_flight=500, group_s=0.01, model_bytes=0.0, is_ordered=False)
    few, many = (Twin(replace(SHARED, cores=n), alone).run(5000).updates_per_s for n in (2, 0))
    assert few == pytest.approx(many, rel=0.01), "two ranks have a core each"


@pytest.mark.parametrize("true", [COSTS, SHARED])
def test_the_fit_finds_the_machine_that_made_the_points(true: Machine) -> None:
    def point(ranks: int, task_s: float) -> measure.Point:
        said = Twin(true, measure.job_of(ranks, task_s), seed=5).run(30_000)
        rate = said.updates_per_s
        return measure.Point(ranks, task_s, rate, 0.03 + said.server_busy, rate * true.task_cpu_s)  # 3 % of polling

    fitted = [point(ranks, measure.FIT_TASK_S) for ranks in measure.FIT_RANKS]
    found = measure.fit(fitted, replace(true, update_s=0.0, task_s=0.0, task_cpu_s=0.0))
    assert found.update_s == pytest.approx(true.update_s, rel=0.1)
    assert found.task_s == pytest.approx(true.task_s, rel=0.3)
    for ranks, task_s in ((3, 0.02), (9, 0.02), (5, 0.01), (9, 0.04)):
        other = point(ranks, task_s)
        assert measure.predicted(found, other) == pytest.approx(other.updates_per_s, rel=0.02)


def test_points_of_former_calls_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "points.json"
    assert measure.read_points(path) == []
    rest = {"updates_per_s": 46.0, "server_cpu_share": 0.1, "workers_cpu_share": 0.2}
    made = [measure.Point(ranks, task_s, *rest.values()) for ranks, task_s in (*measure.PLACES, *measure.PLACES[:3])]
    path.write_text(json.dumps([vars(point) for point in made]))
    assert measure.read_points(path) == made, "a round and a part of one"
    one = {"ranks": 2, "task_s": 0.02, **rest}
    for text in ("[1]", "{", json.dumps([{**one, "x": 1}]), json.dumps([{"ranks": 2}]), json.dumps([one, one])):
        path.write_text(text)
        with pytest.raises(DataError, match="points"):
            measure.read_points(path)


def test_a_forecast_has_a_line_for_each_way_to_run(tmp_path: Path) -> None:
    rows = forecast(COSTS, 1.25, 0.05, (16, 64))
    assert len(rows) == 2 * len(MODELS) * len(OPTIONS)
    assert all(row.low_per_s <= row.updates_per_s <= row.high_per_s for row in rows)
    assert markdown(rows).count("\n| ") == len(MODELS) * (2 + len(OPTIONS))
    assert plot(rows, tmp_path / "forecast.png").stat().st_size > 10_000
    assert look_ahead_markdown(look_ahead((64,), (0.0, 0.5))).splitlines()[0].endswith("| 0 % fixed | 50 % fixed |")
