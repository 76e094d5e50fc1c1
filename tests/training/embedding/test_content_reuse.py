"""Vectors are kept by content: a text or picture that returns is not embedded again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.backbones.vlm import Embedding
from training.data.dataset import load_dataset
from training.embedding import unused_vectors
from training.embedding.content_hashes import IMAGE, MTIME, PICTURE_HASH, SCHEMA, SIZE, TEXT_HASH, ContentHashes
from training.embedding.job import Pending, embed_catalogue, pending_items
from training.embedding.store import Embeddings, load_unused
from training.embedding.unused_vectors import CONTENT, PLACE, SLOT, UnusedVectors, next_unused

PICTURED = 27  # of the shop's 30 items, two name no picture and one is broken


class Night:
    """Embeds a shop as it is."""

    def __init__(self, data: Path, embedding: Embedding, out: Path) -> None:
        self.data, self.embedding, self.out = data, embedding, out

    def __call__(self) -> Pending:
        dataset = load_dataset(self.data)
        pending = pending_items(dataset, self.embedding.model, self.out)
        embed_catalogue(dataset, pending, lambda: self.embedding, self.out, shard_items=8, batch_items=3)
        return pending

    def vectors(self) -> dict[str, np.ndarray]:
        return {name: np.array(block) for name, block in Embeddings.load(self.out).vectors.items()}

    def unmount(self) -> None:
        (self.data / "images").rename(self.data / "elsewhere")

    def mount(self) -> None:
        (self.data / "elsewhere").rename(self.data / "images")

    def items(self, change: Callable[[list[str]], list[str]]) -> None:
        path = self.data / "items.csv"
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *change(rows)]) + "\n")


@pytest.fixture
def night(own_shop: Path, embedding: Embedding, tmp_path: Path) -> Night:
    """A shop that is embedded already."""
    made = Night(own_shop, embedding, tmp_path / "embeddings")
    made()
    return made


def test_pictures_that_go_and_come_back_are_never_embedded_again(night: Night, encoded: list[list[int]]) -> None:
    before = night.vectors()
    encoded.clear()
    night.unmount()
    pending = night()
    assert (pending.delta.changed, pending.reused, int(pending.wanted.sum())) == (28, 28, 0)
    assert encoded == []
    assert not night.vectors()["image"].any()
    np.testing.assert_array_equal(night.vectors()["text"], before["text"])
    assert len(load_unused(night.out)) == PICTURED
    night()  # a second such night
    night.mount()
    night()
    assert encoded == [[5]]  # whose picture cannot be read, so that it has no vector to come back
    for name, block in before.items():
        np.testing.assert_array_equal(night.vectors()[name], block)
    assert len(load_unused(night.out)) == 0
    assert not list(night.out.glob("unused*"))


def test_items_that_are_deleted_and_come_back(night: Night, encoded: list[list[int]]) -> None:
    """A cut export, and the whole one the night after."""
    before = night.vectors()
    rows: list[str] = []
    night.items(lambda all_rows: rows.extend(all_rows) or all_rows[:7])
    encoded.clear()
    night()
    assert len(Embeddings.load(night.out)) == 7
    night.items(lambda _: rows)
    pending = night()
    assert (pending.delta.new, pending.reused) == (23, 23)
    assert encoded == []
    for name, block in before.items():
        np.testing.assert_array_equal(night.vectors()[name], block)


def test_a_text_that_changed_in_the_meantime_is_embedded(night: Night, encoded: list[list[int]]) -> None:
    night.unmount()
    night()
    night.mount()
    night.items(lambda rows: [row.replace("thing 9", "quite another") for row in rows])
    encoded.clear()
    night()
    assert sorted(row for rows in encoded for row in rows) == [5, 9]


def test_the_unused_vectors_stay_while_nothing_but_times_or_order_change(night: Night) -> None:
    night.unmount()
    night()
    before = sorted(load_unused(night.out).frame[CONTENT])
    night.items(lambda rows: rows[::-1])
    night()
    assert sorted(load_unused(night.out).frame[CONTENT]) == before
    night.items(lambda rows: [row.replace("images/", "elsewhere/../images/") for row in rows])
    night()  # other names of files that are not there
    assert sorted(load_unused(night.out).frame[CONTENT]) == before


def test_another_model_has_no_use_for_them(night: Night, embedding: Embedding) -> None:
    night.unmount()
    night()
    embedding.model["dtype"] = "another"
    night()
    assert len(load_unused(night.out)) == 0


@pytest.mark.parametrize("damage", ["gone", "cut", "other shape", "altered"])
def test_damaged_ones_are_embedded_again(night: Night, encoded: list[list[int]], damage: str) -> None:
    before = night.vectors()
    night.unmount()
    night()
    (path,) = night.out.glob("unused_image-*.npy")
    block = np.load(path)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "other shape":
        np.save(path, block[1:])
    else:
        block[:3] *= 2
        np.save(path, block)
    encoded.clear()
    night.mount()
    night()
    assert sum(map(len, encoded)) == (4 if damage == "altered" else 28)
    for name, vectors in before.items():
        np.testing.assert_allclose(night.vectors()[name], vectors, atol=2e-6)


def test_what_an_earlier_version_wrote_has_none(night: Night) -> None:
    path = night.out / "embeddings.json"
    assert "unused" not in json.loads(path.read_text())["files"]
    assert len(load_unused(night.out)) == 0
    assert len(load_unused(night.out / "nowhere")) == 0


# The bounds on what is kept, on contents made by hand.


def made_of(*pictures: str | None) -> ContentHashes:
    ids = [f"i{number}" for number in range(len(pictures))]
    columns = {"item_id": ids, TEXT_HASH: None, PICTURE_HASH: list(pictures), IMAGE: None, SIZE: None, MTIME: None}
    return ContentHashes(pl.DataFrame(columns, schema=SCHEMA))


def unused_of(frame: pl.DataFrame) -> UnusedVectors:
    return UnusedVectors(frame.drop(PLACE))


def test_unused_vectors_have_their_place() -> None:
    first = next_unused(made_of("a", "b", None, "a", "cannot be read"), UnusedVectors(), made_of("b"), 2)
    assert first.rows() == [("image", "a", 2, 5, 0)]
    second = next_unused(made_of("b"), unused_of(first), made_of(None), 3)
    assert second.rows() == [("image", "b", 3, 1, 0), ("image", "a", 2, 5, 1)]
    assert next_unused(made_of(None), unused_of(second), made_of("a"), 4).select(SLOT, CONTENT).rows() == [
        ("image", "b")
    ]


def test_no_more_are_kept_than_there_were_items_those_that_went_last_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unused_vectors, "KEPT_SETS", 3)
    frame = next_unused(made_of("a", "b", "c"), UnusedVectors(), made_of("d"), 2)
    assert sorted(frame[CONTENT]) == ["a", "b", "c"]  # the catalogue had three items, though it has but one now
    frame = next_unused(made_of("d"), unused_of(frame), made_of("e"), 3)
    assert frame[CONTENT].to_list()[0] == "d"
    assert len(frame) == 3
    frame = next_unused(made_of("e"), unused_of(frame), made_of("e"), 4)
    assert len(frame) == 3
    frame = next_unused(made_of("e"), unused_of(frame), made_of("e"), 5)
    assert frame[CONTENT].to_list() == ["d"]  # those of the second set are too old
    assert next_unused(made_of("e"), unused_of(frame), made_of("e"), 6).is_empty()
