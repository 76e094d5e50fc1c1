"""ItemIds against a plain dict, with forced collisions, and errors that name the broken rule."""

import gc
import mmap
import weakref
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import ItemTableError
from index.items.item_ids import ItemIds, check_item_id

ids_by_rule = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40)


def test_maps_both_ways() -> None:
    ids = ItemIds(["b", "a"])
    rows, unknown = ids.rows(["a", "x", "b", "x"])
    assert rows.tolist() == [1, 0]
    assert rows.dtype == np.int64
    assert unknown == ["x", "x"]
    assert (len(ids), ids.row("a"), ids.row("x"), ids.id(0), "a" in ids, "x" in ids) == (2, 1, None, "b", True, False)
    assert 7 not in ids
    assert ids.rows([])[0].tolist() == []
    assert ids.among(["a", "x", "a", "\ud800"]).tolist() == [False, True]
    assert ids.among([]).tolist() == [False, False]
    assert ids.among(iter(["b", "a"])).dtype == np.bool_


@settings(max_examples=60, deadline=None)
@given(st.lists(ids_by_rule, unique=True, max_size=60), st.lists(ids_by_rule, max_size=10), st.sampled_from([0, 1, 2]))
def test_answers_as_a_dict_does(names: list[str], others: list[str], collide: int) -> None:
    """With Python's hash, with few different hashes, and with a single one."""
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(
                "index.items.item_ids.hash", lambda text: (len(text) % 2 - 1) * (collide - 1) * 2**62, raising=False
            )
        ids = ItemIds(names)
        by_dict = {name: row for row, name in enumerate(names)}
        for name in [*names, *others, "", "\ud800", "a\n"]:
            assert ids.row(name) == by_dict.get(name)
        assert [ids.id(row) for row in range(len(names))] == names


def test_answers_that_were_given_before_are_the_same_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.items.item_ids._REMEMBERED", 4)
    names = [f"item {number}" for number in range(20)]
    ids = ItemIds(names)
    for _ in range(3):
        assert [ids.row(name) for name in names] == list(range(20))
        assert [ids.id(row) for row in range(20)] == names
        assert ids.row("item 20") is None
    assert ids._row_of.cache_info().currsize == ids._id_of.cache_info().currsize == 4


def test_a_text_longer_than_any_id_is_not_kept() -> None:
    ids = ItemIds(["é" * 128])
    assert ids.row("é" * 128) == 0
    before = ids._row_of.cache_info().currsize
    assert ids.row("x" * 257) is None
    assert ids._row_of.cache_info().currsize == before


def test_nothing_keeps_dropped_ids() -> None:
    ids = ItemIds(["a", "b"])
    assert (ids.row("a"), ids.id(1)) == (0, "b")
    dropped = weakref.ref(ids)
    gc.disable()
    try:
        del ids
        assert dropped() is None
    finally:
        gc.enable()


def test_finds_every_row_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index.items.item_ids._BLOCK_ROWS", 64)
    names = [f"item {number * 7}" for number in range(1000)]
    ids = ItemIds(names)
    assert ids.rows(names)[0].tolist() == list(range(1000))
    assert ids.rows([f"item {number * 7 + 1}" for number in range(1000)])[0].size == 0
    for position, bad in ((0, "a\nb"), (63, "a\x85b"), (64, ""), (999, "é" * 129)):
        wrong = [*names[:position], bad, *names[position + 1 :]]
        with pytest.raises(ItemTableError, match="an item id must"):
            ItemIds(wrong)


@pytest.mark.parametrize("hashed", [None, lambda _text: -1, ord], ids=["by Python", "equal", "equal high bits"])
def test_names_the_repeated_id(monkeypatch: pytest.MonkeyPatch, hashed: Callable[[str], int] | None) -> None:
    if hashed is not None:
        monkeypatch.setattr("index.items.item_ids.hash", hashed, raising=False)
    with pytest.raises(ItemTableError, match="'b' is repeated"):
        ItemIds(["a", "b", "c", "b"])
    assert len(ItemIds(["a", "b", "c", "d"])) == 4


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("", "1 to 256 bytes"),
        ("é" * 129, "got 258"),
        ("a" * 257, "got 257"),
        ("a\nb", "control"),
        ("a\x7f", "control"),
        ("a\x80", "control"),
        ("a\x9f", "control"),
        ("\ud800", "must be valid Unicode text .*surrogates"),
        (None, "must be text, got None"),
        (b"bytes", "must be text, got b'bytes'"),
        (7, "must be text, got 7"),
    ],
)
def test_refuses_an_id_that_breaks_the_rule(bad: object, rule: str) -> None:
    with pytest.raises(ItemTableError, match=rule):
        ItemIds(["fine", bad])  # type: ignore[list-item]


@pytest.mark.no_cover
@given(st.text(max_size=6))
@settings(max_examples=300, deadline=None)
def test_the_rule_on_all_bytes_is_the_rule_on_one_id(text: str) -> None:
    try:
        check_item_id(text)
        fine = True
    except ItemTableError:
        fine = False
    try:
        ItemIds(["é", text + "", "z"] if text not in {"é", "z"} else [text])
        taken = True
    except ItemTableError:
        taken = False
    assert taken == fine


def test_ids_that_are_just_allowed() -> None:
    names = ["\xa0", "é" * 128, " ", "Â\xa0", "ÿ", "\U0010ffff"]
    assert ItemIds(names).rows(names)[0].tolist() == list(range(6))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_an_arrow_array_and_a_part_of_one(kind: pa.DataType) -> None:
    array = pa.array(["zz", "a", "é", "👟 x"], kind)
    ids = ItemIds(array.slice(1, 2))
    assert (len(ids), ids.id(0), ids.id(1)) == (2, "a", "é")
    assert [ids.row(name) for name in ("zz", "a", "é", "👟 x")] == [None, 0, 1, None]


def test_keeps_a_large_string_array_where_it_is() -> None:
    array = pa.array(["a", "b"], pa.large_string())
    assert ItemIds(array).array.buffers()[2].address == array.buffers()[2].address


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (pa.array(["a", None]), "must not be null, 1 are"),
        (pa.array([[1]]), "must be valid Unicode text"),
        (pa.array([b"\xff"]), "must be valid Unicode text .*UTF8"),
        (
            pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]),
            "UTF8",
        ),
    ],
)
def test_refuses_arrays(array: pa.Array, rule: str) -> None:
    with pytest.raises(ItemTableError, match=rule):
        ItemIds(array)


@pytest.mark.parametrize("row", [-1, 2, 10**12])
def test_refuses_rows(row: int) -> None:
    with pytest.raises(ItemTableError, match=rf"rows must lie in 0 … 1, got {row}"):
        ItemIds(["a", "b"]).id(row)


def test_no_items() -> None:
    empty = ItemIds([])
    assert (len(empty), empty.row("a"), "a" in empty) == (0, None, False)


def test_no_python_object_per_item_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the array there are only two tables of 4-byte numbers, at most 12 bytes an item."""
    names = pa.array([f"{number:08x}" for number in range(5000)], pa.large_string())
    ids = ItemIds(names)
    kept = [value for value in vars(ids).values() if isinstance(value, memoryview | np.ndarray | mmap.mmap)]
    own = sum(view.nbytes for view in kept) - names.nbytes
    assert own <= 12 * 5000 + 8
    assert not any(isinstance(value, dict | list | tuple | set) for value in vars(ids).values())
