"""Plans of tasks: worked examples of durations, pauses and losses; what is drawn once and what each time."""

import math
from pathlib import Path

import numpy as np
import pytest

from fedsim import seeding
from fedsim.config import DevicesConfig
from fedsim.errors import ConfigError, DataError
from fedsim.population.devices import Devices, TaskPlan
from fedsim.seeding import Purpose

HERE = Path(".")


def constant(mean: float) -> dict[str, object]:
    return {"law": "constant", "mean": mean}


def make(
    base: Path = HERE, n_clients: int = 4, seed: int = 7, sizes: tuple[int, int] = (0, 0), **config: object
) -> Devices:
    return Devices(DevicesConfig.model_validate(config), seed, n_clients, base, *sizes)


def traced(base: Path, rows: str, **config: object) -> Devices:
    """Devices whose clients are there in the given rows of client,start_s,end_s."""
    (base / "windows.csv").write_text("client,start_s,end_s\n" + rows)
    period = config.pop("period_s", None)
    return make(base, availability={"kind": "trace", "path": "windows.csv", "period_s": period}, **config)


def seconds(n: float) -> dict[str, object]:
    """A compute configuration under which `n_steps` is the number of `n`-second units."""
    return {"time": constant(n), "per": "step"}


def test_a_plan_is_the_sum_of_its_parts() -> None:
    devices = make(
        sizes=(1000, 600),
        compute={"time": constant(0.5), "per": "sample", "slowness": constant(3.0)},
        download={"latency_s": constant(0.25), "bytes_per_s": constant(500.0)},
        upload={"latency_s": constant(1.0), "bytes_per_s": constant(200.0)},
    )
    assert devices.plan(2, 9, n_steps=4, n_samples=20, dispatch_s=100.0) == TaskPlan(2.25, 30.0, 4.0, 136.25, False)


@pytest.mark.parametrize(("per", "compute_s"), [("task", 2.0), ("step", 6.0), ("sample", 60.0)])
def test_compute_time_counts_what_per_says(per: str, compute_s: float) -> None:
    devices = make(compute={"time": constant(2.0), "per": per})
    assert devices.plan(0, 0, n_steps=3, n_samples=30, dispatch_s=1.0).compute_s == compute_s
    assert devices.plan_many(*(np.array([n]) for n in (0, 0, 3, 30)), dispatch_s=1.0)[0].compute_s == compute_s


def test_without_rates_size_does_not_matter_and_durations_may_be_zero() -> None:
    devices = make(sizes=(10**12, 10**12), compute={"time": constant(0.0)})
    assert devices.plan(0, 0, 1, 1, 5.0) == TaskPlan(0.0, 0.0, 0.0, 5.0, False)


def test_draws_belong_to_the_documented_keys() -> None:
    devices = make(
        n_clients=10**12,
        sizes=(0, 100),
        compute={
            "time": {"law": "exponential", "mean": 2.0},
            "slowness": {"law": "pareto", "minimum": 1.0, "shape": 2.0},
        },
        upload={"bytes_per_s": {"law": "shifted-exponential", "shift": 5.0, "mean": 10.0}},
        loss_probability=0.5,
    )
    for client, task in [(0, 0), (999_999_999_999, 1023), (3, 1024), (70_000, 5_000_000_000)]:
        time, loss = (seeding.uniforms(7, p, 0, task, 1)[0] for p in (Purpose.COMPUTE_TIME, Purpose.LOSS))
        slow, rate = (seeding.uniforms(7, p, client, 0, 1)[0] for p in (Purpose.SLOWNESS, Purpose.UPLOAD_RATE))
        plan = devices.plan(client, task, 1, 1, 0.0)
        assert plan.compute_s == pytest.approx(-2.0 * math.log(1 - time) * (1 - slow) ** -0.5, rel=1e-12)
        assert plan.upload_s == pytest.approx(100 / (5.0 - 5.0 * math.log(1 - rate)), rel=1e-12)
        assert plan.lost == (loss < 0.5)


def test_links_draw_latency_and_rate_once_a_client_and_independently() -> None:
    law = {"law": "lognormal", "mean": 1.0, "sigma": 1.0}
    link = {"latency_s": law, "bytes_per_s": law}
    devices = make(n_clients=500, sizes=(1, 1), download=link, upload=link)
    plans = [devices.plan(client, client, 1, 1, 0.0) for client in range(500)]
    again = [devices.plan(client, 10_000 + client, 1, 1, 3.0) for client in range(500)]
    assert [(p.download_s, p.upload_s) for p in plans] == [(p.download_s, p.upload_s) for p in again]
    down, up = np.array([p.download_s for p in plans]), np.array([p.upload_s for p in plans])
    assert len(set(down.tolist())) == len(set(up.tolist())) == 500
    assert abs(np.corrcoef(np.log(down), np.log(up))[0, 1]) < 5 / math.sqrt(500)


def test_a_cohort_is_drawn_in_bulk_and_memos_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    config = DevicesConfig.model_validate({"compute": {"slowness": {"law": "exponential", "mean": 1.0}}})
    devices = Devices(config, 7, 1000, HERE, 0, 0, kept_profiles=60, kept_blocks=2)
    one_by_one = [devices.plan(client, 5000 - client, 1, 1, 0.0) for client in range(100)]
    monkeypatch.delattr(seeding, "uniform_pair")
    clients = np.concatenate([np.arange(50, 100), np.arange(100)[::-1]])  # the first 50 are kept: others push them out
    ones = np.ones(150, np.int64)
    plans = devices.plan_many(clients, 5000 - clients, ones, ones, 0.0)
    assert plans == [one_by_one[client] for client in clients]
    assert len(devices._profiles) == 60 and len(devices._blocks) <= 2


# ------------------------------------------------------------------------------------------------ pauses


@pytest.mark.parametrize(
    ("steps", "dispatch_s", "arrival_s"),
    [
        (3, 1.0, 4.0),  # ends with the first window, not after it
        (4, 1.0, 11.0),  # one second of the second window
        (5, 1.0, 12.0),  # the whole second window
        (6, 1.0, 21.0),
        (9, 1.0, 24.0),  # 3 + 2 + 4
        (2, 5.0, 12.0),  # dispatched in a gap: starts with the next window
        (0, 5.0, 10.0),
        (0, 2.5, 2.5),
    ],
)
def test_pause_with_a_trace(tmp_path: Path, steps: int, dispatch_s: float, arrival_s: float) -> None:
    devices = traced(tmp_path, "0,0,4\n0,10,12\n0,20,24\n", compute=seconds(1.0))
    assert devices.plan(0, 0, steps, 1, dispatch_s) == TaskPlan(0.0, float(steps), 0.0, arrival_s, False)


def test_pause_stops_transfers_too(tmp_path: Path) -> None:
    devices = traced(
        tmp_path,
        "0,0,1\n0,10,11\n0,20,22\n",
        sizes=(2, 2),
        compute=seconds(0.5),
        download={"bytes_per_s": constant(1.0)},
        upload={"bytes_per_s": constant(2.0)},
    )
    # 2 s down, 0.5 s compute, 1 s up: seconds 1, 2, and 1.5 of the third window.
    assert devices.plan(0, 0, 1, 1, 0.0) == TaskPlan(2.0, 0.5, 1.0, 21.5, False)


@pytest.mark.parametrize(
    ("steps", "arrival_s"), [(1, 3.0), (2, 8.0), (3, 9.0), (4, 13.0), (5, 18.0), (6, 19.0), (3 * 10**9 + 2, 1e10 + 8.0)]
)
def test_pause_with_a_repeated_trace(tmp_path: Path, steps: int, arrival_s: float) -> None:
    # In every 10 s the client is there for 3: [2, 3) and [7, 9).
    devices = traced(tmp_path, "0,2,3\n0,7,9\n", period_s=10.0, compute=seconds(1.0))
    assert devices.plan(0, 0, steps, 1, 2.0).arrival_s == arrival_s


def test_pause_from_the_start_of_any_cycle(tmp_path: Path) -> None:
    devices = traced(tmp_path, "0,0,0.5\n", period_s=0.7, compute=seconds(0.25))
    cycles = np.arange(2000)
    assert (np.floor(cycles * 0.7 / 0.7) < cycles).any()  # the quotient alone is not enough
    for k in cycles.tolist():
        assert devices.plan(0, 0, 2, 1, k * 0.7).arrival_s == pytest.approx(k * 0.7 + 0.5, abs=1e-9)
        assert devices.plan(0, 0, 3, 1, k * 0.7).arrival_s == pytest.approx((k + 1) * 0.7 + 0.25, abs=1e-9)


def test_windows_join_over_the_end_of_a_period(tmp_path: Path) -> None:
    devices = traced(tmp_path, "0,0,1\n0,8,10\n1,0,10\n", period_s=10.0, compute=seconds(1.0))
    assert devices.plan(0, 0, 3, 1, 8.0).arrival_s == 11.0
    assert devices.plan(0, 0, 4, 1, 8.0).arrival_s == 19.0
    assert devices.plan(0, 0, 1, 1, 0.0).arrival_s == 1.0  # the window that began before time zero
    assert devices.plan(0, 0, 2, 1, 0.0).arrival_s == 9.0
    assert devices.remaining_s(np.array([0, 1]), 28.5).tolist() == [2.5, math.inf]
    assert devices.plan(1, 0, 10**6, 1, 3.0).arrival_s == 1e6 + 3.0


def test_decimal_sums_that_fill_a_window_do_not_wait_for_the_next(tmp_path: Path) -> None:
    devices = traced(tmp_path, "0,0.1,0.3\n0,5,5.2\n0,9,10\n", compute=seconds(0.2))
    assert 0.1 + 0.2 > 0.3
    assert devices.plan(0, 0, 1, 1, 0.1).arrival_s == 0.3
    assert devices.plan(0, 0, 2, 1, 0.1).arrival_s == 5.2
    assert not traced(tmp_path, "0,0.1,0.3\n", compute=seconds(0.2), on_offline="lose").plan(0, 0, 1, 1, 0.1).lost


def test_work_beyond_the_last_window_is_lost_when_that_ends(tmp_path: Path) -> None:
    devices = traced(tmp_path, "0,0,4\n0,10,12\n", compute=seconds(1.0))
    assert devices.plan(0, 0, 6, 1, 0.0) == TaskPlan(0.0, 6.0, 0.0, 12.0, False)
    assert devices.plan(0, 0, 7, 1, 0.0) == TaskPlan(0.0, 7.0, 0.0, 12.0, True)
    assert devices.plan(0, 0, 1, 1, 50.0) == TaskPlan(0.0, 1.0, 0.0, 50.0, True)
    assert devices.plan(3, 0, 1, 1, 50.0) == TaskPlan(0.0, 1.0, 0.0, 50.0, True)


def test_pause_with_periodic_windows() -> None:
    # 4 s of every 16, from an offset of the client's own.
    devices = make(compute=seconds(1.0), availability={"kind": "periodic", "period_s": 16.0, "on_fraction": 0.25})
    for client in range(4):
        offset = seeding.uniforms(7, Purpose.AVAILABILITY_PHASE, client, 0, 1)[0] * 16.0
        start = 160.0 + offset
        for steps, after_s in [(3, 3.5), (4, 16.5), (5, 17.5), (7, 19.5), (8, 32.5), (4 * 10**6, 16.0 * 10**6 + 0.5)]:
            arrival_s = devices.plan(client, 0, steps, 1, start + 0.5).arrival_s
            assert arrival_s == pytest.approx(start + after_s, abs=1e-7), (client, steps)
        assert devices.plan(client, 0, 2, 1, start - 3.0).arrival_s == pytest.approx(start + 2.0, abs=1e-9)


# -------------------------------------------------------------------------------------- the other answers


def test_lose_loses_what_arrives_after_the_window_at_its_unpaused_time(tmp_path: Path) -> None:
    devices = traced(tmp_path, "0,0,4\n0,10,12\n", compute=seconds(1.0), on_offline="lose")
    assert devices.plan(0, 0, 3, 1, 1.0) == TaskPlan(0.0, 3.0, 0.0, 4.0, False)
    assert devices.plan(0, 0, 4, 1, 1.0) == TaskPlan(0.0, 4.0, 0.0, 5.0, True)
    assert devices.plan(0, 0, 10, 1, 1.0) == TaskPlan(0.0, 10.0, 0.0, 11.0, True)  # back again, but it had gone
    assert devices.plan(0, 0, 1, 1, 5.0).lost


def test_finish_ignores_absence(tmp_path: Path) -> None:
    devices = traced(tmp_path, "0,0,4\n", compute=seconds(1.0), on_offline="finish")
    assert devices.plan(0, 0, 100, 1, 1.0) == TaskPlan(0.0, 100.0, 0.0, 101.0, False)
    assert not devices.always_available


def test_windows_are_half_open_and_merged(tmp_path: Path) -> None:
    devices = traced(tmp_path, "2,5.75,6\n0,10,12\n0,0,2\n0,2,4\n0,1,2\n0,11,11.5\n2,5,5.75\n")
    clients = np.arange(4)
    for time_s, there, remaining, following in [
        (0.0, [1, 0, 0, 0], [4.0, 0, 0, 0], [0.0, math.inf, 5.0, math.inf]),
        (2.0, [1, 0, 0, 0], [2.0, 0, 0, 0], [2.0, math.inf, 5.0, math.inf]),
        (4.0, [0, 0, 0, 0], [0, 0, 0, 0], [10.0, math.inf, 5.0, math.inf]),
        (5.5, [0, 0, 1, 0], [0, 0, 0.5, 0], [10.0, math.inf, 5.5, math.inf]),
        (6.0, [0, 0, 0, 0], [0, 0, 0, 0], [10.0, math.inf, math.inf, math.inf]),
        (11.75, [1, 0, 0, 0], [0.25, 0, 0, 0], [11.75, math.inf, math.inf, math.inf]),
        (12.0, [0, 0, 0, 0], [0, 0, 0, 0], [math.inf] * 4),
    ]:
        assert devices.available(clients, time_s).tolist() == [bool(x) for x in there]
        assert [devices.is_available(c, time_s) for c in range(4)] == [bool(x) for x in there]
        assert devices.remaining_s(clients, time_s).tolist() == remaining
        assert devices.next_available_s(clients, time_s).tolist() == following


def test_always_available() -> None:
    for availability in ({"kind": "always"}, {"kind": "periodic", "period_s": 3.0, "on_fraction": 1.0}):
        devices = make(availability=availability, compute=seconds(1.0))
        assert devices.always_available and devices.is_available(1, 1e9)
        clients = np.arange(3)
        assert devices.available(clients, 7.0).tolist() == [True] * 3
        assert devices.remaining_s(clients, 7.0).tolist() == [math.inf] * 3
        assert devices.next_available_s(clients, 7.0).tolist() == [7.0] * 3
        assert devices.plan(0, 0, 10, 1, 7.0).arrival_s == 17.0


def test_the_clock_goes_on_where_it_no_longer_resolves_periods(tmp_path: Path) -> None:
    periodic = make(availability={"kind": "periodic", "period_s": 1e-3, "on_fraction": 0.01}, compute=seconds(1.0))
    repeated = traced(tmp_path, "0,0.0001,0.0002\n", period_s=1e-3, compute=seconds(1.0))
    for devices in (periodic, repeated):
        for time_s in (1e8, 1e12, 1e15, 1e30):
            there_s = float(devices.next_available_s(np.array([0]), time_s)[0])
            assert time_s <= there_s < math.inf and devices.is_available(0, there_s)
            arrival_s = devices.plan(0, 0, 1000, 1, there_s).arrival_s
            # Paused 99 % (90 %) of the time while periods are resolved, and not at all afterwards.
            resolved = time_s < 1e-3 * 2**40
            assert (arrival_s > there_s + 5000.0) if resolved else arrival_s == there_s + 1000.0


# ---------------------------------------------------------------------------------------------- estimates


def test_expected_duration_takes_the_mean_of_the_task_and_the_draws_of_the_client() -> None:
    laws = {"law": "pareto", "minimum": 1.0, "shape": 3.0}
    devices = make(
        n_clients=50,
        sizes=(10, 20),
        compute={"time": {"law": "lognormal", "mean": 4.0, "sigma": 0.7}, "per": "step", "slowness": laws},
        download={"latency_s": laws},
        upload={"bytes_per_s": laws},
    )
    clients, steps, samples = np.arange(50), np.arange(50) % 5 + 1, np.full(50, 100)
    expected = devices.expected_s(clients, steps, samples)
    for client in range(50):
        plan = devices.plan(client, 0, int(steps[client]), 100, 0.0)
        time = plan.compute_s / devices.plan(0, 0, 1, 1, 0.0).compute_s  # cancels the task's draw
        slow0 = (1 - seeding.uniforms(7, Purpose.SLOWNESS, 0, 0, 1)[0]) ** (-1 / 3)
        assert expected[client] == pytest.approx(plan.download_s + 4.0 * slow0 * time + plan.upload_s, rel=1e-12)
    same = devices.expected_s(clients, np.full(50, 3), samples)
    assert devices.mean_task_s(3, 100) == pytest.approx(same.mean(), rel=1e-12)


def test_expected_duration_uses_the_median_where_the_mean_is_infinite() -> None:
    for shape, expected_s in [(1.25, 30.0), (1.0, 12.0), (0.5, 24.0)]:
        law = {"law": "pareto", "minimum": 3.0, "shape": shape}
        devices = make(compute={"time": law, "slowness": constant(2.0)})
        assert devices.expected_s(np.array([1]), np.array([1]), np.array([1])).tolist() == [pytest.approx(expected_s)]


def test_the_mean_task_of_a_large_population_is_near_the_mean_of_its_law() -> None:
    slowness = {"law": "exponential", "mean": 2.0}
    devices = make(n_clients=10**9, compute={"time": constant(3.0), "slowness": slowness})
    assert devices.mean_task_s(1, 1) == pytest.approx(6.0, rel=5 / math.sqrt(4096))


# --------------------------------------------------------------------------------------- traces of values


def test_trace_values_come_from_the_clients_own_rows(tmp_path: Path) -> None:
    rows = "client,value\n1,10\n0,1\n2,7\n1,20\n0,2\n"
    (tmp_path / "times.csv").write_text(rows)
    law = {"law": "trace", "path": "times.csv"}
    devices = make(tmp_path, n_clients=3, compute={"time": law})
    seen = {client: {devices.plan(client, task, 1, 1, 0.0).compute_s for task in range(60)} for client in range(3)}
    assert seen == {0: {1.0, 2.0}, 1: {10.0, 20.0}, 2: {7.0}}
    assert devices.expected_s(np.arange(3), np.ones(3, int), np.ones(3, int)).tolist() == [1.5, 15.0, 7.0]
    slow = make(tmp_path, n_clients=3, compute={"slowness": law})
    assert slow.plan(2, 5, 1, 1, 0.0).compute_s == 7.0
    assert slow.plan(1, 0, 1, 1, 0.0).compute_s in (10.0, 20.0)
    assert len({slow.plan(1, task, 1, 1, 0.0).compute_s for task in range(60)}) == 1


def test_trace_without_clients_draws_from_all_rows(tmp_path: Path) -> None:
    (tmp_path / "times.csv").write_text("value\n" + "".join(f"{x}\n" for x in range(5)))
    devices = make(tmp_path, compute={"time": {"law": "trace", "path": "times.csv"}})
    counts = np.bincount([int(devices.plan(0, task, 1, 1, 0.0).compute_s) for task in range(2000)], minlength=5)
    assert (np.abs(counts - 400) < 5 * math.sqrt(2000 * 0.2 * 0.8)).all()
    absolute = make(compute={"time": {"law": "trace", "path": str(tmp_path / "times.csv")}})
    assert absolute.mean_task_s(1, 1) == 2.0


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"upload": {"bytes_per_s": constant(0.0)}}, ["devices.upload.bytes_per_s", "rates above 0"]),
        (
            {"download": {"bytes_per_s": {"law": "exponential", "mean": 1.0}}},
            ["devices.download.bytes_per_s", "shifted-exponential"],
        ),
        (
            {"download": {"bytes_per_s": {"law": "shifted-exponential", "mean": 1.0, "shift": 0.0}}},
            ["devices.download", "shift above 0"],
        ),
        (
            {"upload": {"bytes_per_s": {"law": "lognormal", "mean": 1.0, "sigma": 100.0}}},
            ["devices.upload", "rates above 0"],
        ),
        ({"compute": {"time": {"law": "pareto", "minimum": 1.0, "shape": 0.1}}}, ["devices.compute.time", "1e+100"]),
        ({"compute": {"slowness": constant(1e101)}}, ["devices.compute.slowness", "1e+100"]),
        (
            {"availability": {"kind": "periodic", "period_s": 1.0, "on_fraction": 1e-12}},
            ["devices.availability", "on_fraction"],
        ),
        (
            {"availability": {"kind": "periodic", "period_s": 1e70, "on_fraction": 0.5}},
            ["devices.availability.period_s", "1e+70"],
        ),
    ],
)
def test_laws_that_cannot_be_simulated_are_refused(config: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make(sizes=(1, 1), **config)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("client,value\n0,1\n0,2\n", ["no row for client 1"]),
        ("client,value\n3,1\n1,2\n", ["no row for client 0"]),
        ("value\n1\n0\n", ["devices.upload.bytes_per_s", "rates above 0"]),
        ("value\n1\n-2\n", ["line 3", "value is -2", "at least 0"]),
        ("value\n1e101\n", ["1e+100"]),
    ],
)
def test_value_traces_that_cannot_be_simulated_are_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "rates.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        make(tmp_path, sizes=(1, 1), upload={"bytes_per_s": {"law": "trace", "path": "rates.csv"}})
    assert "\n" not in str(caught.value) and "rates.csv" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("rows", "period_s", "words"),
    [
        ("0,1,1\n", None, ["line 2", "end_s is 1", "after start_s"]),
        ("0,1,2\n0,4,3\n", None, ["line 3", "end_s is 3", "after start_s"]),
        ("0,-1,1\n", None, ["line 2", "start_s is -1", "at least 0"]),
        ("0,5,11\n", 10.0, ["line 2", "end_s is 11", "up to 10"]),
        ("0,5,1e70\n", None, ["line 2", "end_s is 1e+70"]),
        ("4,0,1\n", None, ["line 2", "client is '4'", "0 to 3"]),
    ],
)
def test_windows_that_make_no_sense_are_refused(
    tmp_path: Path, rows: str, period_s: float | None, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        traced(tmp_path, rows, period_s=period_s)
    assert "\n" not in str(caught.value) and "windows.csv" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
