"""Hand-made arrival lists: each expected log was worked out on paper; the comments say how."""

from __future__ import annotations

import math
from typing import Any

FOREVER = 1e6
ASYNC = {"policy": "async", "concurrency": 2}


def test_async(given_devices: Any, drive: Any) -> None:
    # Two slots. Task 0 takes so long that versions 1 and 2 are made of tasks 1 and 2 meanwhile: staleness 2.
    # Task 3 starts from version 2 at 2, sees version 3 made of task 0 at 3: staleness 1.
    devices = given_devices([3, 1, 1, 2])
    assert drive(ASYNC, devices).until(4) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "1 apply 1 stale 0",
        "1 version 1",
        "1 start 2 from 1",
        "2 apply 2 stale 0",
        "2 version 2",
        "2 start 3 from 2",
        "3 apply 0 stale 2",
        "3 version 3",
        "3 start 4 from 3",
        "4 apply 3 stale 1",
        "4 version 4",
        "4 start 5 from 4",
    ]


def test_async_arrivals_of_one_instant(given_devices: Any, drive: Any) -> None:
    # 0, 1 and 2 arrive together: applied by number, the second meets the version of the first. Only then, from
    # version 3, three start. 3 is lost at 2, when 4 arrives: arrivals before losses, although 3 has the lower number.
    devices = given_devices([1, 1, 1, 1, 1], lost=[3])
    assert drive({"policy": "async", "concurrency": 3}, devices).until(2) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "1 apply 0 stale 0",
        "1 version 1",
        "1 apply 1 stale 1",
        "1 version 2",
        "1 apply 2 stale 2",
        "1 version 3",
        "1 start 3 from 3",
        "1 start 4 from 3",
        "1 start 5 from 3",
        "2 apply 4 stale 0",
        "2 version 4",
        "2 lost 3",
        "2 start 6 from 4",
        "2 start 7 from 4",
    ]


def test_async_without_time(given_devices: Any, drive: Any) -> None:
    # Tasks that take no time: what starts at 0 arrives at 0, after what was there, and all of it before the next start.
    devices = given_devices([0, 0, 0, 5])
    assert drive(ASYNC, devices).until(0) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 apply 0 stale 0",
        "0 version 1",
        "0 apply 1 stale 1",
        "0 version 2",
        "0 start 2 from 2",
        "0 start 3 from 2",
        "0 apply 2 stale 0",
        "0 version 3",
        "0 start 4 from 3",
    ]


def test_buffered(given_devices: Any, drive: Any) -> None:
    # Two arrivals a version, slots restart at once: 3 starts at 1, still from version 0, and arrives at 2 with 1.
    # 1 fills the buffer (version 1), 3 meets version 1. At 3 likewise: 2 makes version 2, 4 meets it.
    devices = given_devices([1, 2, 3, 1, 1, 5])
    assert drive({"policy": "buffered", "concurrency": 3, "buffer": 2}, devices).until(3) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "1 apply 0 stale 0",
        "1 start 3 from 0",
        "2 apply 1 stale 0",
        "2 version 1",
        "2 apply 3 stale 1",
        "2 start 4 from 1",
        "2 start 5 from 1",
        "3 apply 2 stale 1",
        "3 version 2",
        "3 apply 4 stale 1",
        "3 start 6 from 2",
        "3 start 7 from 2",
    ]


def test_buffered_loss_frees_its_slot(given_devices: Any, drive: Any) -> None:
    # The lost task counts for nothing in the buffer; its slot starts again at the time at which it would have arrived.
    devices = given_devices([1, 4, 1, 9], lost=[0])
    assert drive({"policy": "buffered", "concurrency": 2, "buffer": 2}, devices).until(4) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "1 lost 0",
        "1 start 2 from 0",
        "2 apply 2 stale 0",
        "2 start 3 from 0",
        "4 apply 1 stale 0",
        "4 version 1",
        "4 start 4 from 1",
    ]


def test_k_async(given_devices: Any, drive: Any) -> None:
    # k = 2 of 3. The finisher of time 1 waits: nothing starts until 1 makes version 1 at 2. Task 4 is lost at 2.5: a
    # replacement starts at once, from version 1, although no version was made. 2 saw two versions.
    devices = given_devices([1, 2, 5, 1, 0.5, 1], lost=[4])
    assert drive({"policy": "k-async", "concurrency": 3, "k": 2}, devices).until(5) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "1 apply 0 stale 0",
        "2 apply 1 stale 0",
        "2 version 1",
        "2 start 3 from 1",
        "2 start 4 from 1",
        "2.5 lost 4",
        "2.5 start 5 from 1",
        "3 apply 3 stale 0",
        "3.5 apply 5 stale 0",
        "3.5 version 2",
        "3.5 start 6 from 2",
        "3.5 start 7 from 2",
        "5 apply 2 stale 2",
    ]


def test_k_async_more_than_k_at_one_instant(given_devices: Any, drive: Any) -> None:
    # Three arrive at 1 and k = 2: 0 and 1 make version 1, 2 meets it and waits for the next. Only two slots restart.
    devices = given_devices([1, 1, 1, 1])
    assert drive({"policy": "k-async", "concurrency": 3, "k": 2}, devices).until(2) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0 start 2 from 0",
        "1 apply 0 stale 0",
        "1 apply 1 stale 0",
        "1 version 1",
        "1 apply 2 stale 1",
        "1 start 3 from 1",
        "1 start 4 from 1",
        "2 apply 3 stale 0",
        "2 version 2",
        "2 start 5 from 2",
        "2 start 6 from 2",
    ]


def test_window(given_devices: Any, drive: Any) -> None:
    # Windows of 2 s. 0 waits from 0.5 to the end at 2. 2 arrives at 4, exactly at the end, and counts in the window
    # that ends then. 3 is lost at 4.5 and replaced at once. At 6 and 8 nothing had arrived: no version.
    devices = given_devices([0.5, 3, 2, 0.5, 5, 5], lost=[3])
    assert drive({"policy": "window", "concurrency": 2, "window_s": 2.0}, devices).until(10) == [
        "0 start 0 from 0",
        "0 start 1 from 0",
        "0.5 apply 0 stale 0",
        "2 version 1",
        "2 start 2 from 1",
        "3 apply 1 stale 1",
        "4 apply 2 stale 0",
        "4 version 2",
        "4 start 3 from 2",
        "4 start 4 from 2",
        "4.5 lost 3",
        "4.5 start 5 from 2",
        "9 apply 4 stale 0",
        "9.5 apply 5 stale 0",
        "10 version 3",
        "10 start 6 from 3",
        "10 start 7 from 3",
    ]


def test_windows_count_from_the_first_dispatch(given_devices: Any, drive: Any) -> None:
    # The only client comes at 25: the first window of 10 s ends at 35, not in the past.
    devices = given_devices([4, 50], windows={0: [(25.0, math.inf)]})
    assert drive({"policy": "window", "concurrency": 1, "window_s": 10.0}, devices, n_clients=1).until(40) == [
        "25 start 0 from 0",
        "29 apply 0 stale 0",
        "35 version 1",
        "35 start 1 from 1",
    ]


def test_windows_keep_their_grid_over_a_pause(given_devices: Any, drive: Any) -> None:
    # Version 1 at 10; nobody is there from 6 to 47. The next window that ends is the grid's: 50, though 47 + 10 = 57.
    # At 60 the client is away again, for ever: one last window has nothing in it, then there are no events.
    devices = given_devices([1, 1], windows={0: [(0.0, 6.0), (47.0, 48.5)]})
    run = drive({"policy": "window", "concurrency": 1, "window_s": 10.0}, devices, n_clients=1)
    assert run.until(FOREVER) == [
        "0 start 0 from 0",
        "1 apply 0 stale 0",
        "10 version 1",
        "47 start 1 from 1",
        "48 apply 1 stale 0",
        "50 version 2",
    ]
    assert run.schedule.peek() is None and run.schedule.now_s == 60.0


def test_window_dispatch_at_an_end_belongs_to_the_next(given_devices: Any, drive: Any) -> None:
    # The client is back exactly at 20, an end of the grid: its window ends at 30.
    devices = given_devices([1, 1, 50], windows={0: [(0.0, 6.0), (20.0, math.inf)]})
    run = drive({"policy": "window", "concurrency": 1, "window_s": 10.0}, devices, n_clients=1)
    assert run.until(30)[3:] == ["20 start 1 from 1", "21 apply 1 stale 0", "30 version 2", "30 start 2 from 2"]
