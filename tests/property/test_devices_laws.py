"""Laws that hold for every key and every configuration of devices."""

import math
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import seeding
from fedsim.config import DevicesConfig
from fedsim.population.availability import Periodic
from fedsim.population.devices import Devices, _draw_many, _draw_one
from fedsim.population.laws import Constant, Exponential, Law, Lognormal, Pareto, Pool, PoolByClient
from fedsim.population.windows import Availability, Traced, _merged
from fedsim.seeding import Purpose

N = 3000
LAWS: dict[str, Law] = {
    "constant": Constant(2.5),
    "exponential": Exponential(3.7),
    "shifted-exponential": Exponential(3.7, 1.3),
    "lognormal": Lognormal(0.3, 1.9),
    "pareto": Pareto(2.0, 1.1),
    "pool": Pool(np.arange(1.0, 8.0)),
    "pool by client": PoolByClient(np.arange(1.0, 2.0 * N + 1), np.arange(2 * N) * 7 % N, N),
}
SLIGHTLY = Fraction(1, 10**9)
keys = st.integers(0, 2**48 - 1)
seeds = st.integers(0, 2**63 - 1)
clients_below_n = st.lists(st.integers(0, N - 1), min_size=1, max_size=40)


@given(seeds, st.sampled_from(Purpose), keys, keys)
def test_uniform_pair_is_uniforms(seed: int, purpose: Purpose, client: int, task: int) -> None:
    bulk = seeding.uniforms(seed, purpose, client, task, 2)
    assert list(seeding.uniform_pair(seed, purpose, client, task)) == bulk.tolist()


@pytest.mark.parametrize("name", LAWS)
@given(seed=seeds, clients=clients_below_n)
def test_one_draw_has_the_bits_of_many(name: str, seed: int, clients: list[int]) -> None:
    many = _draw_many(LAWS[name], seed, Purpose.SLOWNESS, np.array(clients))
    assert many.dtype == np.float64 and many.flags.c_contiguous
    assert many.tolist() == [_draw_one(LAWS[name], seed, Purpose.SLOWNESS, client) for client in clients]


@pytest.mark.parametrize("name", LAWS)
def test_a_draw_does_not_depend_on_how_many_there_are(name: str) -> None:
    clients = np.arange(70_000) % N
    full = _draw_many(LAWS[name], 3, Purpose.SLOWNESS, clients)
    for n in (*range(1, 41), 1023, 4097, 65_536):
        assert np.array_equal(_draw_many(LAWS[name], 3, Purpose.SLOWNESS, clients[n : 2 * n]), full[n : 2 * n])


@pytest.mark.parametrize("name", LAWS)
def test_a_law_keeps_its_bounds_for_the_extreme_uniforms(name: str) -> None:
    law, edge = LAWS[name], np.array([0.0, 2.0**-53, 0.5, 1.0 - 2.0**-53])
    u, v = (np.ascontiguousarray(a.ravel()) for a in np.meshgrid(edge, edge))
    values = law.draw(u, v, np.zeros(u.size, np.int64))
    assert np.isfinite(values).all()
    assert (values >= law.lowest * (1 - 1e-12)).all() and (values <= law.highest * (1 + 1e-12)).all()


# -------------------------------------------------------------------------------------------------- plans

law_configs = st.sampled_from(
    [
        {"law": "constant", "mean": 1.5},
        {"law": "shifted-exponential", "mean": 2.0, "shift": 0.5},
        {"law": "lognormal", "mean": 2.0, "sigma": 0.8},
        {"law": "pareto", "minimum": 0.5, "shape": 1.2},
        {"law": "trace", "path": "pool.csv"},
        {"law": "trace", "path": "by-client.csv"},
    ]
)
availabilities = st.sampled_from(
    [
        {"kind": "always"},
        {"kind": "periodic", "period_s": 5.0, "on_fraction": 0.3},
        {"kind": "trace", "path": "windows.csv"},
        {"kind": "trace", "path": "windows.csv", "period_s": 12.0},
    ]
)
links = st.fixed_dictionaries({"latency_s": law_configs, "bytes_per_s": st.none() | law_configs})
configs = st.fixed_dictionaries(
    {
        "compute": st.fixed_dictionaries(
            {"time": law_configs, "slowness": law_configs, "per": st.sampled_from(["task", "step", "sample"])}
        ),
        "download": links,
        "upload": links,
        "availability": availabilities,
        "on_offline": st.sampled_from(["pause", "lose", "finish"]),
        "loss_probability": st.sampled_from([0.0, 0.3]),
    }
)


@pytest.fixture(scope="module")
def folder() -> Any:
    with TemporaryDirectory() as name:
        base = Path(name)
        (base / "pool.csv").write_text("value\n1\n2\n3.5\n0.1\n")
        rows = (f"{client},{1 + client % 7 + extra}\n" for client in range(50) for extra in range(1 + client % 3))
        (base / "by-client.csv").write_text("client,value\n" + "".join(rows))
        windows = (f"{c},{k * 4 + c / 50},{k * 4 + 1 + c / 25}\n" for c in range(0, 50, 2) for k in range(2))
        (base / "windows.csv").write_text("client,start_s,end_s\n" + "".join(windows) + "5,0,1\n5,11,12\n7,0,12\n")
        yield base


asked = st.tuples(st.integers(0, 49), st.integers(0, 5000), st.integers(1, 9), st.integers(1, 90))
cohorts = st.lists(asked, max_size=40)


@settings(max_examples=60, deadline=None)
@given(config=configs, seed=seeds, cohort=cohorts, dispatch_s=st.floats(0.0, 100.0))
def test_a_plan_depends_neither_on_its_cohort_nor_on_the_memos(
    folder: Path, config: Any, seed: int, cohort: Any, dispatch_s: float
) -> None:
    parsed = DevicesConfig.model_validate(config)
    wide, narrow, fresh = (
        Devices(parsed, seed, 50, folder, 100, 200, kept_profiles=kept, kept_blocks=blocks)
        for kept, blocks in [(100, 16), (1, 1), (7, 2)]
    )
    columns = np.array(cohort, np.int64).reshape(-1, 4).T
    plans = wide.plan_many(*columns, dispatch_s)
    assert plans == [narrow.plan(*row, dispatch_s) for row in cohort]
    assert plans == fresh.plan_many(*columns, dispatch_s)
    assert plans[::-1] == [wide.plan(*row, dispatch_s) for row in cohort[::-1]]
    assert plans == narrow.plan_many(*columns, dispatch_s)
    for plan in plans:
        assert dispatch_s <= plan.arrival_s < math.inf and min(plan[:3]) >= 0.0
        unpaused = dispatch_s + plan.download_s + plan.compute_s + plan.upload_s
        if parsed.on_offline != "pause" or parsed.availability.kind == "always":
            assert plan.arrival_s == unpaused
        elif not plan.lost:
            assert plan.arrival_s >= unpaused * (1 - 1e-12)


@settings(max_examples=60, deadline=None)
@given(config=configs, seed=seeds, time_s=st.floats(0.0, 1e7))
def test_bulk_questions_have_the_bits_of_single_ones(folder: Path, config: Any, seed: int, time_s: float) -> None:
    devices = Devices(DevicesConfig.model_validate(config), seed, 50, folder, 100, 200)
    clients = np.arange(50)
    bounds = [devices._windows.window(client, time_s) for client in range(50)]
    starts, ends = devices._windows.windows(clients, time_s)
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == bounds
    there = devices.available(clients, time_s)
    assert there.tolist() == [devices.is_available(client, time_s) for client in range(50)]
    assert (there == (devices.remaining_s(clients, time_s) > 0.0)).all()
    following = devices.next_available_s(clients, time_s)
    assert (there == (following == time_s)).all()
    for client, start, end in zip(range(50), following.tolist(), ends.tolist(), strict=True):
        if start < math.inf:
            assert devices.is_available(client, start)
            assert start == time_s or not devices.is_available(client, math.nextafter(start, 0.0))
        if end < math.inf:
            assert not devices.is_available(client, end)
            assert devices.is_available(client, math.nextafter(end, 0.0))
    for edge in (*starts[:20].tolist(), *ends[:20].tolist()):
        if edge < math.inf:
            single = [devices._windows.window(client, edge) for client in range(50)]
            assert [tuple(pair) for pair in np.column_stack(devices._windows.windows(clients, edge)).tolist()] == single


@given(seeds, st.floats(0.1, 1e5), st.integers(0, 10**9))
def test_windows_with_the_smallest_gaps_between_hold_their_own_bounds(seed: int, period_s: float, cycle: int) -> None:
    windows, clients = Periodic(seed, 20, period_s, math.nextafter(period_s, 0.0)), np.arange(20)
    for client in range(20):
        start = cycle * period_s + windows.offset_s(client)
        for time_s in (math.nextafter(start, 0.0), start, math.nextafter(start, math.inf)):
            bulk = [bounds.tolist() for bounds in windows.windows(clients, time_s)]
            assert list(zip(*bulk, strict=True)) == [windows.window(c, time_s) for c in range(20)]
            found, end = windows.window(client, time_s)
            assert time_s < end and (found == start if found > time_s or time_s >= start else found < start)


# ------------------------------------------------------------------------------------------------- pauses


def walk(windows: list[tuple[Fraction, Fraction]], begin: Fraction, work: Fraction) -> Fraction | None:
    """When the work is over, by walking through the windows in exact arithmetic."""
    for start, end in windows:
        at = max(start, begin)
        if at < end:
            if work <= end - at:
                return at + work
            work -= end - at
    return None


eighths = st.integers(1, 200).map(lambda n: n / 8)


@st.composite
def traces(draw: Any) -> tuple[Availability, list[tuple[Fraction, Fraction]], bool]:
    """Windows on eighths of seconds, in floats and, for 100 cycles, in exact arithmetic."""
    rows, at = [], draw(st.integers(0, 8)) / 8
    for gap, length in draw(st.lists(st.tuples(eighths, eighths), min_size=1, max_size=5)):
        rows.append((at, at + length))
        at += length + draw(st.sampled_from([0.0, gap]))
    period = draw(st.sampled_from([None, at, rows[-1][1]]))
    exact = [(Fraction(s), Fraction(e)) for s, e in rows]
    cycles = 1 if period is None else 100
    shift = Fraction(period or 0)
    unrolled = [(s + k * shift, e + k * shift) for k in range(cycles) for s, e in exact]
    return Traced([(0, _merged(iter(rows), period))], period), unrolled, period is not None


@settings(max_examples=150, deadline=None)
@given(made=traces(), data=st.data())
def test_a_paused_task_ends_where_walking_through_the_windows_ends(made: Any, data: Any) -> None:
    windows, exact, repeated = made
    at = exact[data.draw(st.integers(0, min(len(exact), 10) - 1))]
    begin = data.draw(st.integers(0, int((at[1] - at[0]) * 8) - 1)) / 8 + float(at[0])
    work = data.draw(st.integers(0, 2000)) / 8
    total = sum(e - s for s, e in exact)
    if repeated and Fraction(work) > total / 2:
        work = float(total / 2 * 8 // 1) / 8
    over = walk(exact, Fraction(begin), Fraction(work))
    assert windows.resumed_end_s(0, begin, begin + work) == (math.inf if over is None else float(over))


@given(seeds, st.integers(0, 10**6), st.integers(1, 63), st.integers(0, 300), st.floats(0.0, 1.0, exclude_max=True))
def test_a_paused_task_under_periodic_windows_ends_where_walking_ends(
    seed: int, client: int, on: int, cycle: int, into: float
) -> None:
    windows = Periodic(seed, 10**7, 8.0, on / 8)
    start, end = windows.window(client, cycle * 8.0)
    begin = max(start + into * (end - start) * 0.999, cycle * 8.0)
    exact = [(Fraction(start) + 8 * k, Fraction(start) + 8 * k + Fraction(on, 8)) for k in range(200)]
    for work in (0.0, 0.125, 1.0, on / 8 * 3 + 0.0625, on / 8 * 150.5):
        over = windows.resumed_end_s(client, begin, begin + work)
        # The end jumps where a window is used up: work that is a little less, or more, bounds it.
        soonest, latest = (walk(exact, Fraction(begin), Fraction(work) + by) for by in (-SLIGHTLY, SLIGHTLY))
        assert soonest is not None and latest is not None
        assert soonest - SLIGHTLY <= Fraction(over) <= latest + SLIGHTLY
