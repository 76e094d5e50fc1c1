"""Item-to-item lists on disk: what is written is read back, and every damaged value is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import BundleInvalid, IndexingError, ItemListError
from index.lists.item_lists import LISTS_FILE, ItemList, ItemLists, ListWeights
from tests.support.listed_bundles import compressed


def item_list(name: str = "co") -> ItemList:
    lists = [([1, 2], [0.5, 0.25]), ([], []), ([0], [1.0])]
    return compressed(name, [(np.array(rows, np.int32), np.array(values, np.float16)) for rows, values in lists])


def weights(**chosen: float) -> ListWeights:
    return ListWeights(np.array([1.0, 0.7], np.float32), chosen)


def saved(directory: Path) -> Path:
    ItemLists(3, (item_list("co"), item_list("words")), weights(co=0.3, words=0.1)).save(directory)
    return directory


def test_the_lists_are_read_back_as_they_were_written(tmp_path: Path):
    found = ItemLists.load(saved(tmp_path), 3)
    assert found.names == ("co", "words")
    assert found.slots == ("behaviour", "text")
    assert found.weights.weights == {"co": 0.3, "words": 0.1}
    assert found.weights.recency.tolist() == np.array([1.0, 0.7], np.float32).tolist()
    for part in found.lists:
        assert [[rows.tolist(), values.tolist()] for rows, values in map(part.of, range(3))] == [
            [[1, 2], [0.5, 0.25]], [[], []], [[0], [1.0]],
        ]  # fmt: skip


def test_lists_without_entries_and_no_lists_at_all_are_read_back(tmp_path: Path):
    empty = compressed("look", [(np.zeros(0, np.int32), np.zeros(0, np.float16))] * 2)
    ItemLists(2, (empty,), weights(look=1.0)).save(tmp_path)
    assert len(ItemLists.load(tmp_path, 2).lists[0].rows) == 0
    ItemLists(2, (), weights()).save(tmp_path)
    assert ItemLists.load(tmp_path, 2).names == ()
    assert [path.name for path in tmp_path.iterdir()] == [LISTS_FILE]


def test_the_files_have_the_form_of_version_1(tmp_path: Path):
    """Golden: a bundle written now must be readable later, so the form must not change unseen."""
    saved(tmp_path)
    assert json.loads((tmp_path / LISTS_FILE).read_text()) == {
        "format": 1,
        "items": 3,
        "recency": [1.0, 0.699999988079071],
        "lists": [{"name": "co", "weight": 0.3, "entries": 3}, {"name": "words", "weight": 0.1, "entries": 3}],
    }
    values = {path.name: np.load(path) for path in tmp_path.glob("co-*.npy")}
    assert {name: (str(array.dtype), array.tolist()) for name, array in values.items()} == {
        "co-offsets.npy": ("int64", [0, 2, 2, 3]),
        "co-rows.npy": ("int32", [1, 2, 0]),
        "co-similarities.npy": ("float16", [0.5, 0.25, 1.0]),
    }


def test_an_item_and_list_of_50_neighbours_takes_about_300_bytes(tmp_path: Path):
    rng = np.random.default_rng(0)
    near = [
        (np.delete(np.arange(51, dtype=np.int32), item), np.sort(rng.random(50).astype(np.float16) + 0.1)[::-1])
        for item in range(51)
    ]
    ItemLists(51, (compressed("co", near),), weights(co=1.0)).save(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.glob("co-*.npy")) == 51 * 308 + 8 + 3 * 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2"),
        ({"items": 4}, "of 4 items"),
        ({"recency": []}, "recency must be"),
        ({"recency": [1.0] * 513}, "recency must be"),
        ({"recency": [-1.0]}, "at least 0"),
        ({"recency": [float("nan")]}, "finite"),
        ({"recency": ["x"]}, "not a readable"),
        ({"recency": None}, "not a readable"),
        ({"lists": [{"name": "../x", "weight": 1.0, "entries": 3}]}, "one of co"),
        ({"lists": [{"name": ["co"], "weight": 1.0, "entries": 3}]}, "not a readable"),
        ({"lists": [{"name": "co", "weight": -0.1, "entries": 3}]}, "at least 0"),
        ({"lists": [{"name": "co", "weight": float("inf"), "entries": 3}]}, "finite"),
        ({"lists": [{"name": "co", "weight": 1.0, "entries": -1}]}, "cannot have -1"),
        ({"lists": [{"name": "co", "weight": 1.0, "entries": 7}]}, "cannot have 7"),
        ({"lists": [{"name": "co", "weight": 1.0, "entries": True}]}, "cannot have True"),
        ({"lists": [{"name": "co", "weight": 1.0, "entries": 2}]}, "manifest says"),
        ({"lists": [{"name": "co", "weight": 1.0}]}, "not a readable"),
        ({"lists": [{"name": "co", "weight": 1.0, "entries": 3}] * 2}, "once"),
        ({"lists": [{"name": n, "weight": 1.0, "entries": 3} for n in ("words", "co")]}, "in the order"),
        ({"lists": 5}, "not a readable"),
    ],
)
def test_a_changed_description_is_refused(tmp_path: Path, change: dict[str, Any], message: str):
    path = saved(tmp_path) / LISTS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(IndexingError, match=message):
        ItemLists.load(tmp_path, 3)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'])
def test_a_description_that_is_none_is_refused(tmp_path: Path, content: bytes):
    (saved(tmp_path) / LISTS_FILE).write_bytes(content)
    with pytest.raises(ItemListError, match=LISTS_FILE):
        ItemLists.load(tmp_path, 3)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("offsets", [1, 2, 2, 3], "rise from 0"),
        ("offsets", [0, 2, 1, 3], "rise from 0"),
        ("offsets", [0, 2, 2, 2], "rise from 0"),
        ("offsets", [0, 2**40, 2**40, 3], "rise from 0"),
        ("offsets", [0, -5, 2, 3], "rise from 0"),
        ("rows", [1, 3, 0], "0 … 2"),
        ("rows", [-1, 2, 0], "0 … 2"),
        ("rows", [0, 2, 0], "its own list"),
        ("rows", [1, 1, 0], "twice"),
        ("similarities", [0.25, 0.5, 1.0], "descend"),
        ("similarities", [0.5, 0.0, 1.0], "> 0"),
        ("similarities", [0.5, -0.5, 1.0], "> 0"),
        ("similarities", [np.inf, 0.5, 1.0], "finite"),
        ("similarities", [0.5, np.nan, 1.0], "finite"),
    ],
)
def test_a_damaged_entry_is_refused(tmp_path: Path, name: str, values: list[float], message: str):
    path = saved(tmp_path) / f"co-{name}.npy"
    np.save(path, np.array(values, dtype=np.load(path).dtype))
    with pytest.raises(ItemListError, match=message):
        ItemLists.load(tmp_path, 3)


@pytest.mark.parametrize("name", ["offsets", "rows", "similarities"])
@pytest.mark.parametrize("damage", ["gone", "short", "other type", "pickle", "empty"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, damage: str):
    path = saved(tmp_path) / f"words-{name}.npy"
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "other type":
        np.save(path, np.load(path).astype(np.float64))
    elif damage == "pickle":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(b"")
    with pytest.raises(BundleInvalid, match="words"):
        ItemLists.load(tmp_path, 3)


def test_seeded_flips_of_bytes_are_read_as_valid_lists_or_refused(tmp_path: Path):
    whole = {path: path.read_bytes() for path in sorted(saved(tmp_path).iterdir())}
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        path = list(whole)[rng.integers(len(whole))]
        damaged = bytearray(whole[path])
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        path.unlink()  # mapped by what was loaded before
        path.write_bytes(damaged)
        try:
            ItemLists.load(tmp_path, 3).check()
        except IndexingError:
            refused += 1
        path.unlink()
        path.write_bytes(whole[path])
    assert refused > 150


def test_what_breaks_a_rule_is_not_saved(tmp_path: Path):
    broken = compressed("co", [(np.array([0], np.int32), np.array([1.0], np.float16))])
    with pytest.raises(ItemListError, match="its own list"):
        ItemLists(1, (broken,), weights(co=1.0)).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_arrays_of_other_types_and_unknown_names_are_refused():
    good = item_list()
    for name, offsets, rows, values in (
        ("next", good.offsets, good.rows, good.similarities),
        ("co", good.offsets.astype(np.int32), good.rows, good.similarities),
        ("co", good.offsets, good.rows.astype(np.int64), good.similarities),
        ("co", good.offsets, good.rows, good.similarities.astype(np.float32)),
        ("co", good.offsets[:0], good.rows, good.similarities),
        ("co", good.offsets, good.rows[:1], good.similarities),
    ):
        with pytest.raises(ItemListError):
            ItemList(name, offsets, rows, values)


def test_weights_of_other_lists_and_lists_of_other_lengths_are_refused():
    with pytest.raises(ItemListError, match="one weight each"):
        ItemLists(3, (item_list("co"),), weights(words=1.0))
    with pytest.raises(ItemListError, match="the catalogue 4"):
        ItemLists(4, (item_list("co"),), weights(co=1.0))
    with pytest.raises(ItemListError, match="next"):
        weights(next=1.0)


def test_a_list_of_weight_0_is_kept_on_disk_and_is_not_used(tmp_path: Path):
    ItemLists(3, (item_list("co"), item_list("words")), weights(co=0.0, words=0.5)).save(tmp_path)
    found = ItemLists.load(tmp_path, 3)
    assert found.names == ("co", "words")
    assert found.used().names == ("words",)
    other = found.weighed(weights(co=2.0))
    assert other.weights.weights == {"co": 2.0, "words": 0.0}
    assert other.used().names == ("co",)
