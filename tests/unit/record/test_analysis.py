"""Tables and plots of runs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedsim.analysis.plots import plot_run
from fedsim.analysis.tables import compare, comparison_json, comparison_table, summary_table
from fedsim.analysis.workers import worker_use
from fedsim.errors import RecordError
from fedsim.record.reader import Run, open_run
from fedsim.record.schema import WorkerRow


def printed(renderable: Any) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_table_shows_state_metrics_and_places(records: Any) -> None:
    run = open_run(records.finished())
    text = printed(summary_table(run, [("plot", "[red]plot.png")]))
    for part in ("made-up-3", "done", "8 applied, 4 lost, 0 aborted", "12 s", "2 updates a second", "north", "south"):
        assert part in text
    for part in (
        "0.625",
        "mean of clients",
        "0.875",
        "max 5",
        "record.h5",
        "[red]plot.png",
        run.summary()["model_sha256"],
    ):
        assert part in text


def test_a_run_without_anything_has_a_table_too(records: Any) -> None:
    writer = records.begin()
    text = printed(summary_table(open_run(records.folder)))
    writer.close("failed")
    assert "running (or killed)" in text and "none yet" in text


def runs_of(records: Any, *seeds: int) -> list[Run]:
    runs, top = [], records.folder
    for seed in seeds:
        records.folder = top / str(seed)
        records.folder.mkdir()
        runs.append(open_run(records.finished(seed=seed)))
    return runs


def test_runs_are_compared_over_their_seeds(records: Any) -> None:
    (row,) = compare(runs_of(records, 1, 3, 5))
    assert (row.seeds, row.statuses) == ((1, 3, 5), ("done",) * 3)
    # loss of seed s: the mean of .25 + s/8 and .75 + s/8
    assert row.values["loss"] == pytest.approx((0.875, 0.25, 3))
    assert row.values["accuracy/north"] == (0.75, 0.0, 3)
    assert "0.875 ± 0.25" in printed(comparison_table([row]))


def test_another_configuration_is_another_row(records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of(records, 1, 2)
    other = runs[1].config_text.replace("fixed", "free")
    monkeypatch.setitem(runs[1]._cache, "config", other)
    rows = compare(runs)
    assert [row.seeds for row in rows] == [(1,), (2,)]
    assert math.isnan(rows[0].values["loss"].deviation)
    assert [row.differs for row in rows] == [{"data.seed": "fixed"}, {"data.seed": "free"}]
    assert "data.seed" in printed(comparison_table(rows)) and "free" in printed(comparison_table(rows))


def test_a_comparison_as_json(records: Any) -> None:
    runs = runs_of(records, 1, 3)
    (row,) = comparison_json(compare(runs))
    assert row["seeds"] == [1, 3] and row["runs"] == [str(run.path) for run in runs] and row["differs"] == {}
    loss = row["values"]["loss"]
    assert (loss["mean"], loss["n_runs"]) == (0.75, 2) and loss["deviation"] == pytest.approx(0.125 * math.sqrt(2.0))
    (alone,) = comparison_json(compare(runs[:1]))
    assert alone["values"]["loss"] == {"mean": 0.625, "deviation": None, "n_runs": 1}


def test_the_use_of_workers_is_added_over_attempts(records: Any) -> None:
    writer = records.begin(range(4))
    writer.append("workers", WorkerRow(2.0, 1, 8, 2, 1.0, 0.25, 0.5, 0.25, 90, 80, 1.5, 5000))
    writer.append("workers", WorkerRow(2.0, 2, 3, 3, 0.5, 0.0, 1.5, 0.0, 9, 8, 0.5, 3000))
    writer.close("failed")
    records.begin(range(4, 8), attempt=1, start_rows={"tasks": 4, "versions": 4}).close("done")
    one, two = worker_use(open_run(records.folder))
    assert (one.worker, one.n_tasks, one.wall_s, one.busy_s) == (1, 12, 2.4, 1.2)
    assert (one.peak_rss_bytes, one.share(one.busy_s)) == (5000, 0.5)
    assert (two.worker, two.n_tasks, two.wall_s) == (2, 3, 2.0)


def test_a_plot_is_a_picture_of_some_size_with_something_on_it(records: Any) -> None:
    from matplotlib.image import imread

    path = plot_run(open_run(records.finished()), records.folder / "plot.png")
    pixels = imread(path)
    assert pixels.shape[0] > 800 and pixels.shape[1] > 1200
    assert (pixels[..., :3] < 0.9).any(axis=-1).mean() > 0.02
    # The four parts are different pictures, none of them empty.
    halves = [np.array_split(half, 2, axis=1) for half in np.array_split(pixels, 2, axis=0)]
    assert all((part[..., :3] < 0.9).any(axis=-1).mean() > 0.01 for half in halves for part in half)


@pytest.mark.parametrize("n_clients", [0, 3, 40])
def test_any_run_can_be_drawn(records: Any, n_clients: int) -> None:
    writer = records.begin(range(n_clients))
    for version in (0, 1, 2):
        for client in range(-1, n_clients) if n_clients else ():
            loss = math.nan if client == 1 else 1.0 / (version + 1)
            writer.append("evaluations", records.evaluation(version, client, loss, math.inf if client == 2 else 0.5))
    writer.close("done")
    assert plot_run(open_run(records.folder), records.folder / "plot.png").stat().st_size > 10_000


def test_a_plot_that_cannot_be_written_is_one_clear_line(records: Any) -> None:
    run = open_run(records.finished())
    for path in (records.folder / "nowhere" / "plot.png", records.folder / "plot.xyz"):
        with pytest.raises(RecordError, match="cannot write the plot") as caught:
            plot_run(run, path)
        assert "\n" not in str(caught.value)


def test_analysis_knows_of_the_record_its_reader_only() -> None:
    for path in (Path(__file__).parents[3] / "fedsim" / "analysis").glob("*.py"):
        for line in path.read_text().splitlines():
            if line.lstrip().startswith(("from fedsim", "import fedsim")):
                assert line.split()[1].startswith(
                    ("fedsim.analysis", "fedsim.record.reader", "fedsim.errors", "fedsim.types")
                )


def test_tables_are_imported_without_rich_and_pandas() -> None:
    code = (
        "import sys, fedsim.analysis.tables; print([m for m in ('rich', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
