"""Item tables and evaluation queries: round trips, and errors that name the broken rule."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.errors import ItemTableError
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from index.items.modality_status import imputed
from index.items.slots import Slot, SlotLayout
from tests.support.processes.started_threads import started_threads

LAYOUT = SlotLayout((Slot("text", 2), Slot("image", 2)))


def table(**changes: object) -> ItemTable:
    parts: dict[str, object] = {
        "layout": LAYOUT,
        "ids": ItemIds(["a", "ünï", "c"]),
        "vectors": np.array([[1, 0, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 0]], dtype=np.float16),
        "popularity": np.array([3, 0, 1]),
        "metadata": pa.table({"title": ["A", None, "C"], "price": [1.5, 2.0, None]}),
        "model": {"kind": "no-vlm"},
    }
    return ItemTable(**(parts | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("mmap", [True, False])
def test_round_trip(tmp_path: Path, mmap: bool) -> None:
    table().save(tmp_path / "t")
    read = ItemTable.load(tmp_path / "t", mmap=mmap)
    assert read.layout == LAYOUT
    assert [read.ids.id(row) for row in range(3)] == ["a", "ünï", "c"]
    assert read.vectors.dtype == np.float16
    np.testing.assert_array_equal(read.vectors, table().vectors)
    assert read.popularity.tolist() == [3, 0, 1]
    assert read.metadata.to_pydict() == {"title": ["A", None, "C"], "price": [1.5, 2.0, None]}
    assert read.model == {"kind": "no-vlm"}
    assert read.indexed.tolist() == [True, True, False]


def test_the_missing_record_is_derived_or_kept(tmp_path: Path) -> None:
    layout = SlotLayout((Slot("image", 1), Slot("behaviour", 2), Slot("sound", 1)))
    vectors = np.array([[1, 0, 0, 0], [0, 0, 1, 1], [-0.0, 0, 0, 0]], dtype=np.float16)
    plain = table(layout=layout, vectors=vectors)
    derived = [[0, 3, 1], [1, 0, 0], [1, 3, 1]]
    assert (plain.missing, plain.missing_record().tolist()) == (None, derived)
    assert plain.missing_record().dtype == np.uint8
    plain.save(tmp_path)
    assert ItemTable.load(tmp_path).missing is None
    given = np.array([[0, 3, 1], [2, 0, 0], [2, 1, 1]], dtype=np.uint8)
    table(layout=layout, vectors=vectors, missing=given).save(tmp_path)
    assert ItemTable.load(tmp_path).missing_record().tolist() == given.tolist()
    (tmp_path / "missing.npy").unlink()
    with pytest.raises(ItemTableError, match=r"missing\.npy"):
        ItemTable.load(tmp_path)
    plain.save(tmp_path)
    assert ItemTable.load(tmp_path).missing_record().tolist() == derived


def test_reads_a_table_of_an_earlier_version_without_the_record(tmp_path: Path) -> None:
    table().save(tmp_path)
    description = json.loads((tmp_path / "table.json").read_text())
    del description["missing"]
    (tmp_path / "table.json").write_text(json.dumps(description))
    assert ItemTable.load(tmp_path).missing_record().tolist() == [[0, 1], [0, 0], [1, 1]]


def test_finds_a_wrong_code_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.items.modality_status._BLOCK_ROWS", 2)
    assert table().missing_record().tolist() == [[0, 1], [0, 0], [1, 1]]
    wrong = np.array([[0, 1], [0, 0], [1, 0]], dtype=np.uint8)
    with pytest.raises(ItemTableError, match="row 2: slot 'image' is zero, but its missing-modality code is PRESENT"):
        table(missing=wrong)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"vectors": np.zeros((3, 3), np.float32)}, r"must be \(3, 4\)"),
        ({"vectors": np.zeros((3, 4))}, "float16 or float32"),
        ({"popularity": np.array([1, 2])}, "need 3 rows"),
        ({"popularity": np.array([1, 2, -1])}, "cannot be negative"),
        ({"metadata": pa.table({"title": ["A"]})}, "need 3 rows"),
        ({"metadata": pa.table({"item_id": ["a", "b", "c"]})}, r"must not be called \['item_id'\]"),
        ({"metadata": pa.table([[1, 2, 3]] * 2, ["a", "a"])}, "must have different names"),
        ({"missing": np.zeros((3, 4), np.uint8)}, r"must be uint8 of shape \(3, 2\), got uint8 \(3, 4\)"),
        ({"missing": np.zeros((3, 2), np.int64)}, r"must be uint8 of shape \(3, 2\), got int64"),
        ({"missing": np.full((3, 2), 5, np.uint8)}, "must lie in 0 … 4, got 5"),
        ({"missing": np.full((3, 2), 2, np.uint8)}, "row 0: slot 'text' is not zero, but its .* is UNREADABLE"),
        ({"missing": np.zeros((3, 2), np.uint8)}, "row 0: slot 'image' is zero, but its .* is PRESENT"),
    ],
)
def test_refuses_parts_that_disagree(changes: dict[str, object], rule: str) -> None:
    with pytest.raises(ItemTableError, match=rule):
        table(**changes)


def test_refuses_to_save_vectors_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ItemTableError, match="finite"):
        table(vectors=np.full((3, 4), np.nan, np.float32)).save(tmp_path)
    assert not (tmp_path / "table.json").exists()


@pytest.mark.parametrize("name", ["table.json", "items.parquet", "vectors.npy"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage"])
def test_refuses_a_damaged_table(tmp_path: Path, name: str, damage: str) -> None:
    table().save(tmp_path)
    victim = tmp_path / name
    if damage == "missing":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-20])
    else:
        victim.write_bytes(b"\x00garbage" * 9)
    with pytest.raises(ItemTableError, match="embed the catalogue again"):
        ItemTable.load(tmp_path)


def test_refuses_another_format_version(tmp_path: Path) -> None:
    table().save(tmp_path)
    description = json.loads((tmp_path / "table.json").read_text())
    (tmp_path / "table.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(ItemTableError, match="format 99"):
        ItemTable.load(tmp_path)


def test_evaluation_queries_round_trip(tmp_path: Path) -> None:
    EvaluationQueries(np.array([[4, 2, -1], [1, -1, -1]]), np.array([0, 3])).save(tmp_path / "probes.npz")
    read = EvaluationQueries.load(tmp_path / "probes.npz")
    assert [read.history(query).tolist() for query in range(len(read))] == [[4, 2], [1]]
    assert read.targets.tolist() == [0, 3]
    read.check_rows(5)
    with pytest.raises(ItemTableError, match=r"0 … 3, got 4"):
        read.check_rows(4)


@pytest.mark.parametrize(
    ("histories", "targets", "rule"),
    [
        ([[1, 2]], [1, 2], "evaluation queries need"),
        ([[-1, 2]], [1], "at least one item"),
        ([[1, -1, 2]], [1], "right-padded"),
    ],
)
def test_refuses_malformed_evaluation_queries(histories: list[list[int]], targets: list[int], rule: str) -> None:
    with pytest.raises(ItemTableError, match=rule):
        EvaluationQueries(np.array(histories), np.array(targets))


def test_refuses_unreadable_evaluation_queries(tmp_path: Path) -> None:
    (tmp_path / "probes.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ItemTableError, match="cannot be read"):
        EvaluationQueries.load(tmp_path / "probes.npz")


SLOTS = SlotLayout((Slot("text", 2), Slot("behaviour", 2)))
COLD = np.array([[0, 3], [0, 0], [1, 3]], dtype=np.uint8)


def imputed_vectors(length: float) -> np.ndarray:
    slots = {"text": np.array([[3, 0], [0, 1], [0, 0]]), "behaviour": np.array([[0, 2], [1, 0], [0, 0]])}
    return SLOTS.stack(slots, {"behaviour": np.array([length, 1, 1])}).astype(np.float16)


@pytest.mark.parametrize("length", [0.3, 0.75, 1])
def test_a_cold_item_may_have_an_imputed_behaviour_vector(tmp_path: Path, length: float) -> None:
    table(layout=SLOTS, vectors=imputed_vectors(length), missing=COLD).save(tmp_path)
    read = ItemTable.load(tmp_path)
    assert imputed(read.missing_record(), SLOTS, read.vectors).tolist() == [True, False, False]
    assert SLOTS.lengths("behaviour", read.vectors).tolist() == pytest.approx([length, 1, 0], abs=1e-3)
    only = SLOTS.keep_only(["behaviour"], read.vectors)
    assert np.linalg.norm(only, axis=1).tolist() == pytest.approx([length, 1, 0], abs=1e-3)


def test_an_imputed_vector_is_no_longer_than_one_and_not_alone() -> None:
    long = imputed_vectors(1)
    long[0, 2:] *= 1.1
    with pytest.raises(ItemTableError, match=r"row 0: an imputed behaviour slot must have length 1 or less, got 1\."):
        table(layout=SLOTS, vectors=long, missing=COLD)
    alone = imputed_vectors(0.5)
    alone[2, 3] = 0.5
    with pytest.raises(ItemTableError, match="row 2: the behaviour slot is imputed, but no slot is present"):
        table(layout=SLOTS, vectors=alone, missing=COLD)
    other = np.array([[3, 3], [0, 0], [1, 3]], dtype=np.uint8)  # only the behaviour slot is imputed
    with pytest.raises(ItemTableError, match="row 0: slot 'text' is not zero, but its missing-modality code is COLD"):
        table(layout=SLOTS, vectors=imputed_vectors(0.5), missing=other)
    assert not imputed(np.zeros((3, 2), np.uint8), LAYOUT, table().vectors).any()


@pytest.mark.parametrize("lengths", [[0, 1, 1], [1.5, 1, 1], [np.nan, 1, 1], [1, 1]])
def test_lengths_of_a_slot_are_above_zero_and_at_most_one(lengths: list[float]) -> None:
    with pytest.raises(ItemTableError, match="lengths of slot 'behaviour' must be"):
        SLOTS.stack({"behaviour": np.ones((3, 2))}, {"behaviour": np.array(lengths)})


def test_reading_starts_no_thread(tmp_path: Path) -> None:
    """Where there is no memory for the stack of a thread, Arrow waits for it without end."""
    table().save(tmp_path / "t")
    setup = "from pathlib import Path\nfrom index.items.item_table import ItemTable"
    assert started_threads(setup, "ItemTable.load(Path(sys.argv[1]))", str(tmp_path / "t")) == 0


def test_too_little_memory_is_no_damaged_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table().save(tmp_path / "t")

    def fail(*_arguments: object, **_named: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 1664 failed")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", fail)
    with pytest.raises(MemoryError, match="malloc of size 1664 failed"):
        ItemTable.load(tmp_path / "t")
