"""items.arrow: every stored type is read back, and every other form of file is refused."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from index.errors import ItemTableError
from index.items.item_ids import ItemIds
from index.items.items_file import ItemsFile

STORED = {
    "text": (pa.array(["a", None]), pa.large_string()),
    "view": (pa.array(["é", "👟"], pa.string_view()), pa.large_string()),
    "raw": (pa.array([b"\xff", None]), pa.large_binary()),
    "tags": (pa.array([["x", None], None]), pa.large_list(pa.large_string())),
    "pair": (pa.array([[1.0, 2.0], [3.0, None]], pa.list_(pa.float64(), 2)), pa.list_(pa.float64(), 2)),
    "part": (
        pa.array([{"a": ["x"], "b": 1}, None]),
        pa.struct([("a", pa.large_list(pa.large_string())), ("b", pa.int64())]),
    ),
    "word": (pa.array(["s", "m"]).dictionary_encode(), pa.dictionary(pa.int32(), pa.large_string())),
    "words": (
        pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), pa.array(["s", "m"]).dictionary_encode()),
        pa.large_list(pa.large_string()),
    ),
    "half": (pa.array([np.float16(0.5), None], pa.float16()), pa.float16()),
    "cost": (pa.array([Decimal("1.25"), None]), pa.decimal128(3, 2)),
    "day": (pa.array([dt.date(2026, 1, 2), None]), pa.date32()),
    "at": (pa.array([0, None], pa.timestamp("s", "UTC")), pa.timestamp("s", "UTC")),
    "code": (pa.array([b"ab", b"cd"], pa.binary(2)), pa.binary(2)),
    "none": (pa.nulls(2), pa.null()),
    "yes": (pa.array([True, None]), pa.bool_()),
}


def rows(metadata, names=("a", "b"), popularity=(3, 0)):
    return ItemsFile(ItemIds(names), np.array(popularity), metadata)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "items.arrow"


def test_every_stored_type_comes_back(path):
    given = pa.table({name: array for name, (array, _) in STORED.items()})
    rows(given).save(path)
    read = ItemsFile.load(path)
    assert read.metadata.schema.names == list(STORED)
    for name, (array, kind) in STORED.items():
        assert read.metadata.column(name).type == kind, name
        assert read.metadata.column(name).to_pylist() == array.to_pylist(), name
        assert read.metadata.column(name).num_chunks == 1
    assert [read.ids.id(row) for row in range(2)] == ["a", "b"]
    assert (read.popularity.tolist(), read.popularity.dtype) == ([3, 0], np.int64)


def test_chunks_and_their_dictionaries_become_one(path):
    words = pa.chunked_array([pa.array(["s"]).dictionary_encode(), pa.array(["m"]).dictionary_encode()])
    texts = pa.chunked_array([["x"], [], ["y"]], pa.string())
    rows(pa.table({"word": words, "text": texts})).save(path)
    read = ItemsFile.load(path).metadata
    assert read.to_pydict() == {"word": ["s", "m"], "text": ["x", "y"]}
    assert [column.num_chunks for column in read.columns] == [1, 1]


def test_without_metadata(path):
    rows(pa.table({"x": [1, 2]}).drop_columns(["x"])).save(path)
    assert (ItemsFile.load(path).metadata.num_rows, ItemsFile.load(path).metadata.num_columns) == (2, 0)


def test_it_is_mapped(path):
    """The values lie in the file's own pages, and the file may go while they are used."""
    rows(pa.table({"title": ["one", "two"]})).save(path)
    before = pa.total_allocated_bytes()
    read = ItemsFile.load(path)
    assert pa.total_allocated_bytes() - before < 1000
    path.unlink()
    assert read.metadata.column("title").to_pylist() == ["one", "two"]
    assert not read.popularity.flags.writeable


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        pa.UnionArray.from_dense(pa.array([0, 0], pa.int8()), pa.array([0, 1], pa.int32()), [pa.array([1, 2])]),
        pa.RunEndEncodedArray.from_arrays([2], [7]),
        pa.array([[1], [2]], pa.list_view(pa.int8())),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 2, pa.binary(16))),
        pa.array([{"u": [("k", 1)]}, None], pa.struct([("u", pa.map_(pa.string(), pa.int64()))])),
    ],
)
def test_refuses_to_store_other_types(path, column):
    with pytest.raises(ItemTableError, match=r"metadata column 'odd' of type .* cannot be stored"):
        rows(pa.table({"odd": column})).save(path)


def test_refuses_to_store_invalid_metadata(path):
    wrong = pa.Array.from_buffers(
        pa.large_string(), 2, [None, pa.py_buffer(np.array([0, 1, 2]).tobytes()), pa.py_buffer(b"\xff\xff")]
    )
    with pytest.raises(ItemTableError, match=r"metadata are not valid .*UTF8"):
        rows(pa.table({"bad": wrong})).save(path)


def written(path, columns, *, batches=1, options=None, schema=None):
    batch = pa.record_batch(list(columns.values()), schema=schema) if schema else pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema, options=options) as writer:
        for _ in range(batches):
            writer.write_batch(batch)


GOOD = {
    "item_id": pa.array(["a", "b"], pa.large_string()),
    "popularity": pa.array([1, 2]),
    "title": pa.array(["x" * 200, "y" * 200], pa.large_string()),
}


def test_the_base_of_the_refused_files_is_valid(path):
    written(path, GOOD)
    assert len(ItemsFile.load(path).ids) == 2


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"item_id": pa.array(["a", "b"])}, "need a column 'item_id' of type large_string"),
        ({"item_id": pa.array(["a", None], pa.large_string())}, "must not be null"),
        ({"item_id": pa.array(["a", "a"], pa.large_string())}, "item ids must be unique"),
        ({"item_id": pa.array(["a", "\n"], pa.large_string())}, "control characters"),
        ({"popularity": pa.array([1, 2], pa.int32())}, "need a column 'popularity' of type int64"),
        ({"popularity": pa.array([1, None])}, "popularity counts events and cannot be null"),
        ({"popularity": pa.array([1, -1])}, "popularity counts events and cannot be negative"),
        ({"title": pa.array(["x", "y"])}, "column 'title' has the type string, which no bundle is built with"),
        ({"title": pa.array([["x"], []])}, "column 'title' has the type list"),
        ({"title": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64()))}, "no bundle stores map"),
    ],
)
def test_refuses_columns(path, changes, rule):
    written(path, GOOD | changes)
    with pytest.raises(ItemTableError, match=rule):
        ItemsFile.load(path)


def test_refuses_other_forms(path):
    written(path, GOOD, batches=2)
    with pytest.raises(ItemTableError, match="must be one record batch, got 2"):
        ItemsFile.load(path)
    written(path, GOOD, batches=0)
    with pytest.raises(ItemTableError, match="must be one record batch, got 0"):
        ItemsFile.load(path)
    for codec in ("lz4", "zstd"):
        written(path, GOOD, options=pa.ipc.IpcWriteOptions(compression=codec))
        with pytest.raises(ItemTableError, match="must be uncompressed"):
            ItemsFile.load(path)
    schema = pa.schema([("item_id", pa.large_string()), ("popularity", pa.int64()), ("popularity", pa.large_string())])
    written(path, GOOD, schema=schema)
    with pytest.raises(ItemTableError, match="two columns of one name"):
        ItemsFile.load(path)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, pa.record_batch(GOOD).schema) as writer:
        writer.write_batch(pa.record_batch(GOOD))
    with pytest.raises(ItemTableError, match="the items cannot be read"):
        ItemsFile.load(path)
    path.write_bytes(b"")
    with pytest.raises(ItemTableError, match="the items cannot be read"):
        ItemsFile.load(path)


def test_finds_offsets_and_texts_that_would_crash(path):
    """Offsets and letters of a sound file, overwritten where they lie."""
    written(path, GOOD)
    whole = path.read_bytes()
    offsets = np.array([0, 200, 400]).tobytes()
    for damage, rule in (
        (np.array([0, 2**62, 400]).tobytes(), "offset"),
        (np.array([0, -1, 400]).tobytes(), "offset"),
        (np.array([0, 200, 2**40]).tobytes(), "offset|span"),
    ):
        assert whole.count(offsets) == 1
        path.write_bytes(whole.replace(offsets, damage))
        with pytest.raises(ItemTableError, match=rule):
            ItemsFile.load(path)
    path.write_bytes(whole.replace(b"xxxx", b"x\xff\xfex", 1))
    with pytest.raises(ItemTableError, match="UTF8"):
        ItemsFile.load(path)
