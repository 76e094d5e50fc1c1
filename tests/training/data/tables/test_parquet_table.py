"""One table in many Parquet files: order, Hive partitions, mixed schemas, and values that stay on disk."""

import datetime as dt
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.dataset import load_dataset, read_items
from training.data.tables import parquet_table
from training.data.tables.table_files import ROW, read_table
from training.errors import DatasetError


def written(folder: Path, files: dict[str, pl.DataFrame]) -> Path:
    for name, frame in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(folder / name)
    return folder


def items(*ids: str, **more: object) -> pl.DataFrame:
    return pl.DataFrame({"item_id": list(ids)} | more)


def refusal(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        read_items(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=["in memory", "mapped"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(tmp_path / "cache"))
    if request.param == "mapped":
        monkeypatch.setattr(parquet_table, "LARGE_BYTES", 0)
    return request.param


@pytest.mark.usefixtures("kept")
def test_files_of_a_folder_follow_each_other_by_path_and_rows_count_through(tmp_path: Path) -> None:
    folder = written(
        tmp_path / "items",
        {"part-10.parquet": items("d"), "part-02.parquet": items("b", "c"), "part-01.parquet": items("a")},
    )
    (folder / "_SUCCESS").touch()
    (folder / ".part-01.parquet.crc").write_bytes(b"crc")
    (folder / "_temporary").mkdir()
    (folder / "_temporary" / "half.csv").touch()
    frame = read_table(folder, text=["item_id"], required=["item_id"])
    assert frame.rows() == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    assert frame.columns == [ROW, "item_id"]


@pytest.mark.usefixtures("kept")
def test_partitions_are_columns_and_become_numbers_only_without_loss(tmp_path: Path) -> None:
    folder = written(
        tmp_path / "items",
        {
            "day=2026-01-02/shop=007/n=12/a.parquet": items("b", title=["B"]),
            "day=2026-01-01/shop=a%2Fb/n=__HIVE_DEFAULT_PARTITION__/b.parquet": items("a", title=["A"]),
        },
    )
    frame = read_items(folder)
    assert frame.select("item_id", "title", "day", "shop", "n").rows() == [
        ("a", "A", "2026-01-01", "a/b", None),
        ("b", "B", "2026-01-02", "007", 12),
    ]


@pytest.mark.usefixtures("kept")
def test_a_data_set_of_folders_is_that_of_single_files(tmp_path: Path) -> None:
    catalogue = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["A", None, "C"], "price": [1.5, None, 3.0]})
    events = pl.DataFrame({"user_id": ["u"] * 4, "item_id": ["a", "b", "a", "c"], "timestamp": [4, 3, 2, 1]})
    written(tmp_path / "whole", {"items.parquet": catalogue, "interactions.parquet": events})
    written(tmp_path / "parts" / "items", {f"{row}.parquet": catalogue[row : row + 1] for row in range(3)})
    written(
        tmp_path / "parts" / "interactions.parquet",
        {f"day={row}/part-0.parquet": events[row : row + 1] for row in range(4)},
    )
    whole, parts = load_dataset(tmp_path / "whole"), load_dataset(tmp_path / "parts")
    assert parts.items.equals(whole.items)
    assert parts.interactions.equals(whole.interactions)
    assert parts.metadata().equals(whole.metadata())
    assert list(parts.texts()) == ["A", None, "C"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_folder_beside_a_file_of_the_same_name_may_hold_pictures(tmp_path: Path, suffix: str) -> None:
    content = {"csv": b"item_id,image\na,items/1.png\n", "jsonl": b'{"item_id": "a", "image": "items/1.png"}\n'}
    if suffix == "parquet":
        items("a", image=["items/1.png"]).write_parquet(tmp_path / "items.parquet")
    else:
        (tmp_path / f"items.{suffix}").write_bytes(content[suffix])
    events = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]})
    written(tmp_path / "interactions.parquet", {"day=1/a.parquet": events})
    for folder in ("items", "interactions"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(b"a picture")
    dataset = load_dataset(tmp_path)
    assert dataset.item_ids() == ["a"]
    assert dataset.image_path(0) == tmp_path / "items" / "1.png"


def test_two_files_or_a_file_and_a_folder_with_the_suffix_are_refused(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id\na\n")
    written(tmp_path / "items.parquet", {"a.parquet": items("a")})
    written(tmp_path / "items", {"a.parquet": items("a")})
    with pytest.raises(DatasetError, match=r"found items\.csv and items\.parquet; keep one of them$"):
        load_dataset(tmp_path)


def test_mapped_values_are_those_in_memory_for_every_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame(
        {
            "item_id": [f"item {row}" for row in range(40_000)],
            "text": [None if row % 3 == 0 else "word " * (row % 40) for row in range(40_000)],
            "number": [None if row % 7 == 0 else row for row in range(40_000)],
            "small": pl.Series([row % 100 for row in range(40_000)], dtype=pl.UInt8),
            "share": [row / 7 for row in range(40_000)],
            "flag": [row % 2 == 0 for row in range(40_000)],
            "day": [dt.date(2026, 1, 1 + row % 28) for row in range(40_000)],
            "moment": [dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=row) for row in range(40_000)],
            "price": [Decimal(row) / 4 for row in range(40_000)],
            "tags": [["a", None, "b"][: row % 4] for row in range(40_000)],
            "colour": pl.Series([("red", "blue", None)[row % 3] for row in range(40_000)], dtype=pl.Categorical),
        }
    )
    frame.write_parquet(tmp_path / "items.parquet", row_group_size=9_000)
    expected = read_items(tmp_path / "items.parquet")
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet_table, "LARGE_BYTES", 0)
    mapped = read_items(tmp_path / "items.parquet")
    assert mapped.schema == expected.schema
    assert mapped.equals(expected)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items("a").write_parquet(tmp_path / "items.parquet")
    (tmp_path / "cache").write_text("a file in place of the directory")
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet_table, "LARGE_BYTES", 0)
    message = refusal(tmp_path / "items.parquet")
    assert str(tmp_path / "cache") in message
    assert "VLM2REC_DATA_CACHE" in message


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (items("b", price=["4"]), "column 'price' holds String, in {}/items/1.parquet it holds Int64"),
        (items("b"), "items/2.parquet: column 'price' is missing, which {}/items/1.parquet has"),
        (items("b", price=[1], size=[2]), "items/1.parquet: column 'size' is missing, which {}/items/2.parquet has"),
    ],
)
def test_files_with_other_columns_or_types_are_named(tmp_path: Path, second: pl.DataFrame, words: str) -> None:
    folder = written(tmp_path / "items", {"1.parquet": items("a", price=[3]), "2.parquet": second})
    message = refusal(folder)
    assert words.format(tmp_path) in message
    assert "write all files of a table with the same" in message


def test_a_column_of_nulls_alone_takes_the_type_of_the_other_files(tmp_path: Path) -> None:
    folder = written(tmp_path / "items", {"1.parquet": items("a", price=[None]), "2.parquet": items("b", price=[4])})
    assert read_items(folder)["price"].to_list() == [None, 4]


def test_a_file_of_a_folder_that_is_cut_foreign_or_gone_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path / "items", {"1.parquet": items("a"), "2.parquet": items("b")})
    whole = (folder / "2.parquet").read_bytes()
    (folder / "2.parquet").write_bytes(whole[:-20])
    assert refusal(folder) == (
        f"{folder}/2.parquet: is a Parquet file without its end, it was cut; fetch or export it again"
    )
    (folder / "2.parquet").write_bytes(b"PAR1" + b"\0" * 40 + b"PAR1")
    assert refusal(folder).startswith(f"{folder}/2.parquet: is not a readable parquet file (")
    (folder / "2.parquet").write_bytes(whole)
    (folder / "3.csv").write_text("item_id\nc\n")
    assert f"{folder}/3.csv: the folder of a table holds .parquet files only" in refusal(folder)
    (folder / "3.csv").unlink()
    opened = parquet_table.ParquetTable.open(folder)
    (folder / "2.parquet").unlink()
    with pytest.raises(DatasetError, match=r"2\.parquet: was removed while it was being read; start again"):
        opened.read(["item_id"])
    (folder / "1.parquet").unlink()
    assert f"{folder}: a folder of a table needs at least one .parquet file, got none" in refusal(folder)


def test_files_in_different_partitions_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "items", {"day=1/1.parquet": items("a"), "hour=1/1.parquet": items("b")})
    assert (
        f"{folder}/hour=1/1.parquet: lies in the partitions ['hour'], {folder}/day=1/1.parquet in ['day']"
        in refusal(folder)
    )
    folder = written(tmp_path / "others", {"day=1/1.parquet": items("a", day=["1"])})
    assert "column 'day' is in the file and in the name of its folder" in refusal(folder)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("written_over", [b"\xff\xfe", b"\x00\xd8"])
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, written_over: bytes) -> None:
    path = tmp_path / "items.parquet"
    items("a", title=["some text here"]).write_parquet(path, compression="uncompressed", statistics=False)
    path.write_bytes(path.read_bytes().replace(b"xt he", written_over + b"xhe"))
    assert refusal(path).startswith(f"{path}: is not a readable parquet file (")


@pytest.mark.usefixtures("kept")
def test_a_damaged_page_is_refused_with_the_remedy_of_a_damaged_file(tmp_path: Path) -> None:
    folder = written(tmp_path / "items", {"a.parquet": items("a"), "b.parquet": items(*map(str, range(2000)))})
    content = bytearray((folder / "b.parquet").read_bytes())
    content[200:400] = bytes(200)
    (folder / "b.parquet").write_bytes(content)
    message = refusal(folder)
    assert message.startswith(f"{folder}/b.parquet: is not a readable parquet file (")
    assert message.endswith("fetch or export it again")


@pytest.mark.usefixtures("kept")
def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame(schema={"item_id": pl.String, "kind": pl.Categorical, "n": pl.Int8}).write_parquet(path)
    found = read_table(path, text=["item_id"], required=["item_id"])
    assert found.schema == {ROW: pl.UInt32, "item_id": pl.String, "kind": pl.String, "n": pl.Int8}
    assert found.height == 0


_READING = """
import json, sys
from pathlib import Path
from training.data.tables import parquet_table
from training.data.tables.table_files import read_table

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) >> 10

parquet_table.LARGE_BYTES = 16 << 20
folder, small, cache = map(Path, sys.argv[1:])
read_table(small, text=["item_id"], required=["item_id"])
before = anonymous()
found = read_table(folder, text=["item_id"], required=["item_id"])
mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(cache) in line]
print(json.dumps([found.height, found["text"][-1], anonymous() - before, len(mapped)]))
"""


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "RLE_DICTIONARY"])
def test_the_values_of_a_large_table_are_no_memory_of_the_process(tmp_path: Path, encoding: str) -> None:
    """Pages of a file may be dropped at any time; anonymous memory may not. The files are smaller than the values."""
    rows, text = 50_000, "0123456789" * 100
    table = pa.table({"item_id": [str(row) for row in range(rows)], "text": [text] * rows})
    options = {"use_dictionary": ["text"]} if encoding == "RLE_DICTIONARY" else {"column_encoding": {"text": encoding}}
    folder, small, cache = tmp_path / "items", tmp_path / "small.parquet", tmp_path / "cache"
    folder.mkdir()
    for name in "ab":
        pq.write_table(table, folder / f"{name}.parquet", **{"use_dictionary": False} | options)
    items("a").write_parquet(small)
    found = subprocess.run(
        [sys.executable, "-c", _READING, folder, small, cache],
        env=os.environ | {"VLM2REC_DATA_CACHE": str(cache)},
        check=True,
        capture_output=True,
    )
    height, last, grown_mib, mapped = json.loads(found.stdout)
    assert (height, last, mapped) == (2 * rows, text, 1)
    assert grown_mib < 40  # of 95


@pytest.mark.parametrize("kind", [pa.decimal256(50, 3), pa.list_(pa.decimal256(50, 3))])
def test_decimals_that_no_library_holds_are_refused_by_name(
    kind: pa.DataType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    value = [Decimal("1.5")] if pa.types.is_list(kind) else Decimal("1.5")
    pq.write_table(pa.table({"item_id": ["a"], "price": pa.array([value], kind)}), tmp_path / "items.parquet")
    message = refusal(tmp_path / "items.parquet")
    assert "column 'price' holds decimals of 50 digits, at most 38 are read; write it with fewer" in message
    assert capfd.readouterr().err == ""  # no panic of a library


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_column_that_is_there_twice_is_refused_by_name(in_folder: bool, tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["item_id", "x", "x"])
    path = tmp_path / "items" / "1.parquet" if in_folder else tmp_path / "items.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)
    message = refusal(path.parent if in_folder else path)
    assert message == f"{path}: column 'x' appears more than once; rename or drop one"
