"""Item-to-item lists of the nightly job: new items at once, deleted ones gone, the others as they were fitted."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from index.bundle.manifest import Manifest
from index.items.item_ids import ItemIds
from index.lists.item_lists import ItemLists
from tests.support.listed_bundles import compressed
from training.data.dataset import load_dataset
from training.embedding.store import Embeddings
from training.lists.build import look_list, words_list
from training.nightly.list_updates import remap_list

if TYPE_CHECKING:
    from conftest import Shop

NAMES = ("co", "words", "look")


def by_id(lists: ItemLists, name: str, ids: list[str]) -> dict[str, list[tuple[str, float]]]:
    """The entries of every item of one list, as ids."""
    (item_list,) = lists.only([name]).lists
    return {
        item_id: [(ids[other], float(similarity)) for other, similarity in zip(*item_list.of(row), strict=True)]
        for row, item_id in enumerate(ids)
    }


def current(shop: "Shop") -> tuple[ItemLists, list[str]]:
    """The lists of the current bundle, checked entry by entry, and its ids."""
    bundle = shop.bundle()
    return ItemLists.load(bundle.path / "lists", len(bundle)), [bundle.ids.id(row) for row in range(len(bundle))]


def test_the_first_job_publishes_the_fitted_lists_as_they_are(nightly: "Shop") -> None:
    fitted = nightly.run / "encoder" / "lists"
    assert nightly.lists() == {path.name: path.read_bytes() for path in fitted.iterdir()}
    manifest = nightly.bundle().manifest
    assert (manifest.format, manifest.model["reindex"]["format"]) == (3, "3")
    assert [part.name for part in manifest.lists.lists] == list(NAMES)  # type: ignore[union-attr]


def test_new_changed_and_deleted_items(nightly: "Shop") -> None:
    before, old_ids = current(nightly)
    nightly.edit(lambda rows: [{**rows[14], "item_id": "twin"}, *rows[1:]])
    nightly.set(12, text="crimson thing 4711")
    nightly.reindex()
    lists, ids = current(nightly)
    assert ids[0] == "twin"
    assert "i00" not in ids
    dataset, embeddings = load_dataset(nightly.data), Embeddings.load(nightly.run / "embeddings")
    for name, made in (
        ("words", words_list(dataset.texts(), 50)), ("look", look_list(embeddings.vectors["image"], 50))
    ):  # fmt: skip
        (found,) = lists.only([name]).lists
        np.testing.assert_array_equal(found.offsets, made.offsets)
        np.testing.assert_array_equal(found.rows, made.rows)
        np.testing.assert_array_equal(found.similarities, made.similarities)
        entries = by_id(lists, name, ids)
        assert ("i14", 1.0) in entries["twin"]
        assert ("twin", 1.0) in entries["i14"]
    co, co_before = by_id(lists, "co", ids), by_id(before, "co", old_ids)
    assert co["twin"] == []
    assert any(other == "i00" for entries in co_before.values() for other, _ in entries)
    for item_id in ids[1:]:
        assert co[item_id] == [entry for entry in co_before[item_id] if entry[0] != "i00"]
    assert lists.weights.weights == before.weights.weights
    np.testing.assert_array_equal(lists.weights.recency, before.weights.recency)


def test_the_lists_do_not_depend_on_the_nights_before(nightly: "Shop", tmp_path: Path) -> None:
    other = type(nightly)(Path(shutil.copytree(nightly.home, tmp_path / "other")))
    for shop in (nightly, other):
        if shop is nightly:
            shop.edit(lambda rows: [{**rows[3], "item_id": "passing", "text": "teal guest"}, *rows[2:]])
            shop.reindex()
            shop.edit(lambda rows: rows[1:])
        else:
            shop.edit(lambda rows: rows[2:])
        shop.reindex()
    assert nightly.lists() == other.lists()


def test_lists_are_made_once_for_the_same_texts_and_pictures(nightly: "Shop", monkeypatch: pytest.MonkeyPatch) -> None:
    before = nightly.lists()
    monkeypatch.setattr(
        "training.nightly.list_updates.updated_lists", lambda *_arguments: pytest.fail("the lists were made again")
    )
    nightly.edit(lambda rows: [{**row, "colour": "red"} for row in rows])
    assert nightly.reindex()["why"] == ["metadata changed"]
    assert nightly.lists() == before


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x93NUMPY"])
def test_damaged_lists_of_the_last_job_are_made_again(nightly: "Shop", damage: bytes) -> None:
    before = nightly.lists()
    (kept,) = nightly.run.glob("reindex/lists-*")
    (kept / ("lists.json" if damage == b"{}" else "co-rows.npy")).write_bytes(damage)
    nightly.set(0, title="another title")
    nightly.reindex()
    assert nightly.lists() == before


@pytest.mark.parametrize("missing", ["lists", "offsets"])
def test_damaged_lists_of_the_run_are_refused(nightly: "Shop", missing: str) -> None:
    fitted = nightly.run / "encoder" / "lists"
    shutil.rmtree(fitted) if missing == "lists" else (fitted / "co-offsets.npy").unlink()
    nightly.set(0, title="another title")
    summary = nightly.reindex(code=2)
    assert "the fitted encoder cannot be read" in summary["error"]
    assert "run `vlm2rec fit-encoder` again" in summary["error"]


def test_a_run_without_lists_has_a_bundle_of_the_earlier_format(nightly: "Shop") -> None:
    path = nightly.run / "encoder" / "fit.json"
    record = json.loads(path.read_text())
    del record["lists"]  # as earlier versions wrote it
    path.write_text(json.dumps(record))
    assert set(nightly.reindex()["why"]) == {"encoder changed", "format changed"}
    manifest = Manifest.read(nightly.bundle().path)
    assert (manifest.format, manifest.lists) == (2, None)
    assert not (nightly.bundle().path / "lists").exists()
    assert not list(nightly.run.glob("reindex/lists-*"))


def test_remapped_rows() -> None:
    def entries(*pairs: tuple[int, float]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([row for row, _ in pairs], np.int32), np.array([value for _, value in pairs], np.float16)

    before = compressed("co", [entries((1, 0.5), (2, 0.25)), entries((2, 1.0)), entries((0, 0.5), (1, 0.5)), entries()])
    moved = remap_list(before, ItemIds("abcd"), ItemIds("xcdab"))
    found = [[(int(row), float(value)) for row, value in zip(*moved.of(item), strict=True)] for item in range(5)]
    assert found == [[], [(3, 0.5), (4, 0.5)], [], [(4, 0.5), (1, 0.25)], [(1, 1.0)]]
    none = remap_list(before, ItemIds("abcd"), ItemIds("bx"))
    assert none.offsets.tolist() == [0, 0, 0]
    assert len(none.rows) == 0
