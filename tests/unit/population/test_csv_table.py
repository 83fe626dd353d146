"""CSV tables with a client column: what is read, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config import CsvData
from fedsim.errors import DataError
from fedsim.population import nodecache
from fedsim.population.datasets import csv_table
from fedsim.population.datasets.csv_table import csv_population
from fedsim.population.population import ArrayPopulation

HEADER = "a,site,b,y"


def population(folder: Path, text: str | bytes, seed: int = 0, **options: Any) -> ArrayPopulation:
    content = text.encode() if isinstance(text, str) else text
    (folder / "t.csv").write_bytes(content)
    return csv_population(CsvData(dataset="csv", path="t.csv", client="site", label="y", **options), seed, folder)


def table(n: int = 40) -> str:
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal(3, 2):.6f},{'bergen' if i % 4 else 'oslo'},{i},{i % 3}" for i in range(n)]
    return "\n".join([HEADER, *rows]) + "\n"


def test_clients_in_the_order_of_the_file(tmp_path: Path) -> None:
    people = population(tmp_path, table(), standardize=False)
    assert [people.client_name(i) for i in range(2)] == ["oslo", "bergen"]
    assert (people.n_clients, people.n_classes, people.sample_shape) == (2, 3, (2,))
    assert people.n_samples(np.array([0, 1])).tolist() == [8, 24]
    assert tuple(people.test_clients()) == (0, 1) and people.central_test() is None
    rows = []
    for client, size in ((0, 2), (1, 6)):
        assert people.test_shard(client).y.size == size
        rows.append(np.r_[people.shard(client).x[:, 1], people.test_shard(client).x[:, 1]])
    assert sorted(rows[0]) == list(range(0, 40, 4)) and sorted(np.concatenate(rows)) == list(range(40))
    shard = people.shard(1)
    assert (shard.y == shard.x[:, 1].astype(int) % 3).all()


def test_the_test_split_follows_the_seed(tmp_path: Path) -> None:
    splits = [population(tmp_path, table(), seed).test_shard(1).y.tobytes() for seed in (0, 0, 1, 2)]
    assert splits[0] == splits[1] and len(set(splits)) > 1


def test_scaled_by_the_clients_own_training_rows(tmp_path: Path) -> None:
    scaled, plain = population(tmp_path, table()), population(tmp_path, table(), standardize=False)
    for client in (0, 1):
        train, test = plain.shard(client).x, plain.test_shard(client).x
        mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, ddof=1, dtype=np.float64)
        np.testing.assert_allclose(scaled.shard(client).x, (train - mean) / deviation, atol=1e-5)
        np.testing.assert_allclose(scaled.test_shard(client).x, (test - mean) / deviation, atol=1e-5)


def test_constants_and_single_rows_are_only_centred(tmp_path: Path) -> None:
    lines = [HEADER, *(f"0.1,x,{i},{i % 2}" for i in range(10)), "5,alone,6,1"]
    people = population(tmp_path, "\n".join(lines))
    np.testing.assert_allclose(people.shard(0).x[:, 0], 0.0, atol=1e-6)
    np.testing.assert_allclose(people.test_shard(0).x[:, 0], 0.0, atol=1e-6)
    assert people.shard(1).x.tolist() == [[0.0, 0.0]] and people.shard(1).y.tolist() == [1]
    assert tuple(people.test_clients()) == (0,)


def test_quotes_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    text = '\ufeffa,"site",b,y\r\n1,"St. Mary\'s, ""old""",2,0\r\n\r\n3,"two\nlines",4,1\r\n'
    people = population(tmp_path, text, standardize=False)
    assert [people.client_name(i) for i in range(2)] == ['St. Mary\'s, "old"', "two\nlines"]
    assert people.shard(1).x.tolist() == [[3.0, 4.0]]


GOOD = "\n1,x,2,0\n1,x,2,1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: the file is empty"),
        (HEADER + "\n", "no rows below the header"),
        ("a,sites,b,y" + GOOD, r"data\.client: .* no column 'site'; did you mean 'sites'"),
        ("a,site,b,z" + GOOD, r"data\.label: .* no column 'y'"),
        ("a,site,a,y" + GOOD, "column 'a' appears more than once"),
        ("site,y\nx,1\n", "no column left for features"),
        (HEADER + GOOD + "1,x,2\n", "line 4: 3 values, allowed: 4"),
        (HEADER + GOOD + "1,x,2,0,9\n", "line 4: 5 values, allowed: 4"),
        (HEADER + GOOD + "1,,2,0\n", "line 4: column 'site' is empty"),
        (HEADER + GOOD + "1,x,,0\n", "line 4: column 'b' is empty, allowed: a number"),
        (HEADER + GOOD + "1,x,tall,0\n", "line 4: column 'b' is 'tall', allowed: a number"),
        (HEADER + "\n" + GOOD + "nan,x,1,0\n", "line 5: column 'a' is nan, allowed: finite"),
        (HEADER + GOOD + "1,x,inf,0\n", "line 4: column 'b' is inf"),
        (HEADER + GOOD + "1,x,1e39,0\n", r"line 4: column 'b' is 1e\+39"),
        (HEADER + GOOD + "1,x,2,-1\n", "line 4: column 'y' is -1, allowed: whole numbers 0 to 99999"),
        (HEADER + GOOD + "1,x,2,0.5\n", "line 4: column 'y' is 0.5"),
        (HEADER + GOOD + "1,x,2,nan\n", "line 4: column 'y' is nan"),
        (HEADER + GOOD + "1,x,2,ill\n", "line 4: column 'y' is 'ill'"),
        (b"a,site,b,y\n1,\xff,2,0\n", "not a CSV file in UTF-8"),
        (HEADER + '\n1,"x,2,0\n', "not a CSV file"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        population(tmp_path, text)
    assert "\n" not in str(caught.value) and "t.csv" in str(caught.value)


def test_a_configured_number_of_classes_bounds_the_labels(tmp_path: Path) -> None:
    assert population(tmp_path, table(), classes=5).n_classes == 5
    with pytest.raises(DataError, match="line 4: column 'y' is 2, allowed: whole numbers 0 to 1"):
        population(tmp_path, table(), classes=2)


def test_one_column_cannot_be_client_and_label(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(HEADER + GOOD)
    with pytest.raises(DataError, match="both name column 'y'"):
        csv_population(CsvData(dataset="csv", path="t.csv", client="y", label="y"), 0, tmp_path)
    with pytest.raises(DataError, match=r"data\.path: file .*none\.csv does not exist"):
        csv_population(CsvData(dataset="csv", path="none.csv", client="y", label="a"), 0, tmp_path)


def test_unknown_clients_are_refused_with_the_nearest_name(tmp_path: Path) -> None:
    people = population(tmp_path, table())
    assert people.client_named("bergen") == 1
    with pytest.raises(DataError, match="no client 'bergn'; did you mean 'bergen'"):
        people.client_named("bergn")


def test_labels_that_are_values(tmp_path: Path) -> None:
    text = "a,site,b,y\n" + "".join(f"{i},{'n' if i % 2 else 's'},{i * i},{i / 8 - 1}\n" for i in range(20))
    people = population(tmp_path, text, targets="values", standardize=False)
    assert (people.targets, people.n_classes) == ("values", 1)
    shard = people.shard(1)
    assert shard.y.shape == (8, 1) and shard.y.dtype == np.float32
    assert np.array_equal(shard.y[:, 0], shard.x[:, 0] / 8 - 1)
    assert people.test_shard(0).y.shape == (2, 1)
    with pytest.raises(DataError, match=r"t\.csv: line 3: column 'y' is inf, allowed: finite"):
        population(tmp_path, "a,site,b,y\n1,n,2,0.5\n2,n,3,inf\n", targets="values")


def test_a_table_of_values_trains_to_the_line(tmp_path: Path) -> None:
    """From the configuration to the record: the loss follows the targets, and the metrics the loss."""
    from fedsim.cli import main
    from fedsim.record.reader import open_run

    rows = "".join(f"{i % 7 - 3},{'n' if i % 2 else 's'},{0.5 * (i % 7 - 3) + 1}\n" for i in range(60))
    (tmp_path / "t.csv").write_text("a,site,y\n" + rows)
    (tmp_path / "c.yaml").write_text(
        "name: line\nseed: 1\ndata: {dataset: csv, path: t.csv, client: site, label: y, targets: values, "
        "standardize: false}\nmodel: {kind: logistic}\ntraining:\n  optimizer: {kind: sgd, learning_rate: 0.05}\n"
        "  batch_size: 8\n  epochs: 2\nschedule: {policy: sync, cohort: 2}\naggregation: {rule: fedavg}\n"
        "stop: {versions: 15, target: {metric: mse, value: 0.0}}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run"), "--quiet"])
    assert ended.value.code == 0
    run = open_run(tmp_path / "run")
    assert run.metric_names == ["mse", "mae"]
    last = run.evaluations.iloc[-1]
    assert last["mse"] == last["loss"] < 1e-3 and last["mae"] < 0.03


@pytest.mark.parametrize("text", [table(), HEADER + "\n1,lonely,2,1\n"], ids=["table", "nothing to test on"])
def test_a_large_table_is_read_once_a_host(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = population(tmp_path, text)
    monkeypatch.setenv(nodecache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(nodecache, "LEAST_BYTES", 1)
    population(tmp_path, text)
    with monkeypatch.context() as others:
        others.setattr(csv_table, "_read", lambda *_: pytest.fail("read again"))
        again = population(tmp_path, text)
    assert again.data_sha256() == plain.data_sha256() and again.n_classes == plain.n_classes
    assert tuple(again.test_clients()) == tuple(plain.test_clients())
    for client in range(plain.n_clients):
        assert again.client_name(client) == plain.client_name(client)
        pairs = [(again.shard(client), plain.shard(client))]
        pairs += [(again.test_shard(client), plain.test_shard(client))] if client in plain.test_clients() else []
        for a, b in pairs:
            assert np.array_equal(a.x, b.x) and np.array_equal(a.y, b.y) and a.y.dtype == b.y.dtype
    if plain.n_clients > 1:  # another seed is another copy
        assert not np.array_equal(population(tmp_path, text, seed=1).test_shard(1).x, plain.test_shard(1).x)


def test_a_large_table_that_is_damaged_is_refused_by_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nodecache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(nodecache, "LEAST_BYTES", 1)
    for _ in range(2):
        with pytest.raises(DataError, match="line 3: column 'a' is 'x'"):
            population(tmp_path, HEADER + "\n1,s,2,1\nx,s,2,1\n")
