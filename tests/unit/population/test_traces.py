"""Reading device traces: what is understood, and one clear line for everything else."""

from pathlib import Path

import pytest

from fedsim.errors import DataError
from fedsim.population import traces
from fedsim.population.traces import Columns, read_columns


def read(path: Path) -> Columns:
    return read_columns(path, required=("value",), optional=("client",), n_clients=3)


def test_columns_in_any_order_with_others_between_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes('\ufeffnote, value ,client\r\n"a, b",1.5,2\r\n\r\n  \r\nx,"2e3",0\r\n'.encode())
    columns = read(path)
    assert columns.floats["value"].tolist() == [1.5, 2000.0]
    assert columns.clients is not None and columns.clients.tolist() == [2, 0]
    assert columns.lines.tolist() == [2, 5]


def test_an_optional_column_may_be_absent(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("value\n1\n")
    assert read(tmp_path / "t.csv").clients is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["line 1", "value", "got nothing"]),
        (b"client,values\n0,1\n", ["line 1", "got client, values", "no 'value'"]),
        (b"value,value\n1,2\n", ["line 1", "'value' is named 2 times"]),
        (b"value\n", ["no rows"]),
        (b"value\n\n\n", ["no rows"]),
        (b"value\n1\nfast\n", ["line 3", "value is 'fast'", "finite number"]),
        (b"value\nnan\n", ["line 2", "value is 'nan'"]),
        (b"value\n-inf\n", ["line 2", "value is '-inf'"]),
        (b"value\n1e999\n", ["line 2", "value is '1e999'"]),
        (b"value\n1_0\n", ["line 2", "value is '1_0'"]),
        (b"value,client\n1,0\n\n2\n", ["line 4", "1 fields", "2 columns"]),
        (b"value,client\n1,3\n", ["line 2", "client is '3'", "0 to 2"]),
        (b"value,client\n1,-1\n", ["line 2", "client is '-1'"]),
        (b"value,client\n1,1.0\n", ["line 2", "client is '1.0'"]),
        (b"value,client\n1,\xc2\xb2\n", ["line 2", "client is"]),
        (b"value,client\n1,99999999999999999999999\n", ["line 2", "client is '99999"]),
        (b"value\n1\n\xff\xfe\n", ["line 3", "UTF-8"]),
        (b'value\n"1\n', ["t.csv", "line 2"]),
        (b"value\n" + b"9" * 200_000 + b"\n", ["line 2", "field limit"]),
    ],
)
def test_nonsense_is_refused_in_one_line(tmp_path: Path, content: bytes, words: list[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400 and str(path) in text
    assert all(word in text for word in words), text


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="not a regular file"):
        read(tmp_path)
    with pytest.raises(DataError, match="not a regular file"):
        read(Path("/dev/zero"))
    (tmp_path / "t.csv").write_text("value\n" + "1\n" * 100)
    monkeypatch.setattr(traces, "MAX_FILE_BYTES", 100)
    with pytest.raises(DataError, match="larger than 100 bytes"):
        read(tmp_path / "t.csv")
