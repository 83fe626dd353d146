"""What a person sees of a run: pace, lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
import itertools
import math
import timeit

import pytest

from fedsim.config import StopConfig
from fedsim.engine.progress import Bar, Limits, Log, Pace, Silence, describe, duration, metric_texts, watcher
from fedsim.engine.roles import Pulse


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def pulse(wall_s: float, rate: float = 2.0, **changes: float | dict[str, float]) -> Pulse:
    """A run that makes `rate` updates a second, a version of each two, and lives ten times as fast as the wall."""
    n = int(wall_s * rate)
    made = Pulse(version=n // 2, n_updates=n, virtual_s=10.0 * wall_s, wall_s=wall_s)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def seen(limits: Limits, *moments: Pulse) -> Pace:
    pace = Pace(limits)
    for moment in moments:
        pace.observe(moment)
    return pace


def test_limits_are_the_stop_conditions() -> None:
    assert Limits.of(StopConfig(versions=3, wall_s=2.5)) == Limits(versions=3, wall_s=2.5)


def test_pace_and_time_left() -> None:
    pace = seen(Limits(updates=100), pulse(10.0), pulse(20.0))
    assert pace.updates_per_s == pytest.approx(2.0)
    assert pace.fraction == pytest.approx(0.4)
    assert pace.remaining_s == pytest.approx(30.0)


def test_the_nearest_limit_counts() -> None:
    pace = seen(Limits(versions=1000, updates=1000, virtual_s=250.0, wall_s=1000.0), pulse(20.0))
    assert pace.fraction == pytest.approx(0.8)
    assert pace.remaining_s == pytest.approx(5.0)


def test_pace_is_that_of_the_last_minute() -> None:
    slow = [pulse(float(t), n_updates=t) for t in range(0, 601)]
    fast = [pulse(600.0 + t, n_updates=600 + 10 * t) for t in range(1, 61)]
    pace = seen(Limits(updates=1800), *slow, *fast)
    assert pace.updates_per_s == pytest.approx(10.0, rel=0.05)
    assert pace.remaining_s == pytest.approx(60.0, rel=0.05)


def test_nothing_known_yet() -> None:
    pace = Pace(Limits(updates=10))
    assert math.isnan(pace.updates_per_s) and pace.remaining_s is None and pace.fraction == 0.0
    stuck = seen(Limits(updates=10), Pulse(wall_s=5.0))
    assert stuck.updates_per_s == 0.0 and stuck.remaining_s is None
    assert seen(Limits(), pulse(5.0)).fraction is None


def test_past_the_limit_nothing_is_left() -> None:
    pace = seen(Limits(updates=10), pulse(20.0))
    assert pace.fraction == 1.0 and pace.remaining_s == 0.0


def test_the_line() -> None:
    now = pulse(2000.0, metrics={"loss": 0.61234, "accuracy": 0.7})
    line = describe(now, seen(Limits(updates=10_000), now), on_wall=False)
    assert line == (
        "version 2,000 | 4,000 updates (2/s) | virtual 20,000 s | accuracy 0.7000 | loss 0.6123 | 50:00 left"
    )
    assert "virtual" not in describe(now, seen(Limits(), now), on_wall=True)
    assert "left" not in describe(now, seen(Limits(), now), on_wall=True)


def test_durations_and_metrics_in_words() -> None:
    texts = [duration(seconds) for seconds in (0.2, 59.6, 61, 3600, 90000.4, math.inf)]
    assert texts[:5] == ["0 s", "1:00", "1:01", "1:00:00", "25:00:00"]
    assert metric_texts({"loss": 1.0, "accuracy": 0.5, "f1": 0.25}) == ["accuracy 0.5000", "f1 0.2500", "loss 1.0000"]


def lines_of(log: io.StringIO) -> list[str]:
    return [line.split(":")[0] for line in log.getvalue().splitlines()]


def test_a_log_gets_a_line_a_minute() -> None:
    stream = io.StringIO()
    log = Log(stream, Limits(updates=10_000), on_wall=False)
    for tenth in range(0, 2000):
        log(pulse(tenth / 10))
    assert [line.split(": ")[0] for line in stream.getvalue().splitlines()] == ["1:00", "2:00", "3:00"]


def test_evaluations_have_lines_that_become_rarer() -> None:
    stream = io.StringIO()
    log = Log(stream, Limits(), on_wall=False)
    for second in range(0, 240):
        log(pulse(float(second), metrics={"accuracy": second / 1000}))
    times = [line.split(": ")[0] for line in stream.getvalue().splitlines()]
    assert times == ["5 s", "15 s", "35 s", "1:15", "2:15", "3:15"]
    assert "accuracy 0.0050" in stream.getvalue().splitlines()[0]


def test_a_quiet_evaluation_has_no_line_twice() -> None:
    stream = io.StringIO()
    log = Log(stream, Limits(), on_wall=False)
    for second in range(0, 60):
        log(pulse(float(second), metrics={"accuracy": 0.5}))
    assert lines_of(stream) == ["5 s"]


def test_a_terminal_gets_a_bar_that_goes_away() -> None:
    terminal = Terminal()
    with Bar(terminal, Limits(updates=100), on_wall=False) as bar:
        for tenth in range(0, 250):
            bar(pulse(tenth / 10))
    text = terminal.getvalue()
    assert "48%" in text and "version 24" in text and "49 updates" in text
    assert text.endswith("\x1b[2K"), "the line is erased at the end"


def test_a_bar_is_drawn_five_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, drawn = Terminal(), []
    monkeypatch.setattr(Pace, "observe", lambda self, moment: drawn.append(moment.wall_s))
    with Bar(terminal, Limits(), on_wall=False) as bar:
        for thousandth in range(0, 2000):
            bar(pulse(thousandth / 1000))
    assert 8 <= len(drawn) <= 10
    assert min(b - a for a, b in itertools.pairwise(drawn)) >= 0.2 - 1e-9


def test_a_run_shorter_than_a_look_draws_nothing() -> None:
    terminal = Terminal()
    with Bar(terminal, Limits(updates=1), on_wall=False) as bar:
        bar(pulse(0.1))
    assert terminal.getvalue() == ""


def test_who_watches() -> None:
    assert isinstance(watcher(io.StringIO(), Limits(), False, quiet=False), Log)
    assert isinstance(watcher(Terminal(), Limits(), False, quiet=False), Bar)
    quiet = watcher(Terminal(), Limits(), False, quiet=True)
    assert type(quiet) is Silence
    with quiet:
        quiet(pulse(1e6))


@pytest.mark.parametrize("kind", [Log, Bar])
def test_looking_costs_next_to_nothing(kind: type[Log] | type[Bar]) -> None:
    """Under a microsecond where nothing is due; the best of several takes, since other processes disturb."""
    watching, now = kind(Terminal(), Limits(updates=100), False), pulse(0.1)
    assert min(timeit.repeat(lambda: watching(now), number=2000, repeat=7)) / 2000 < 1e-6
