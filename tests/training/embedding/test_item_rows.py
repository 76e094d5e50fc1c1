"""Embedding with encoders of items: memory that does not grow with the vectors, and the same bytes after a kill."""

import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from training.backbones.batches import spread
from training.backbones.items.feature_batches import FeatureCollator
from training.backbones.items.heads import ModalityHeads
from training.backbones.items.source import ItemSource
from training.backbones.items.text_blocks import TextBlocks
from training.backbones.items.trained_heads import ItemEmbedding
from training.config.types import MODALITIES
from training.data.dataset import Dataset, load_dataset
from training.data.picture_reader import open_picture
from training.embedding.catalogue_encoder import catalogue_encoder
from training.embedding.job import embed_catalogue, pending_items
from training.embedding.store import Embeddings
from training.errors import PictureError

SIZES = {"shard_items": 8, "batch_items": 4}
MODEL = {"kind": "vlm", "weights": "made"}
LENGTH = 12
Made = dict[str, NDArray[np.float32]]


class Killed(Exception):
    pass


@dataclass
class LetterCounts:
    """An encoder of letters and pixels. As with real models, the size of a batch changes the last digits."""

    length: int = LENGTH
    read: list[int] = field(default_factory=list)
    model: nn.Module = field(default_factory=nn.Identity)
    picture_pixels: int = 64

    @property
    def dims(self) -> dict[str, int]:
        return dict.fromkeys(MODALITIES, self.length)

    def prepare_texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        counts = [np.bincount(np.frombuffer(text.encode(), dtype=np.uint8), minlength=256) for text in texts]
        return {"seen": torch.from_numpy(np.array(counts, dtype=np.float32))}

    def prepare_pictures(self, pictures: Sequence[Image.Image]) -> dict[str, Tensor]:
        small = [np.asarray(picture.resize((8, 8)), dtype=np.float32).reshape(-1) for picture in pictures]
        return {"seen": torch.from_numpy(np.array(small))}

    def encode(self, _modality: str, inputs: dict[str, Tensor]) -> Tensor:
        seen = inputs["seen"] * (1 + 1e-6 * len(inputs["seen"]))
        self.read.append(len(seen))
        directions = torch.randn(seen.shape[1], self.length, generator=torch.Generator().manual_seed(0))
        return nn.functional.normalize(seen @ directions, dim=1) * (1 + 1e-6 * len(seen))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> ItemSource:
    monkeypatch.setattr(ItemSource, "provenance", lambda _self: MODEL)
    return ItemSource("towers", {}, {}, "mean", 6, None, (64, 64), "float32", "sdpa")


@pytest.fixture
def turned_shop(own_shop: Path) -> Dataset:
    """The shop with its rows in descending order of the ids, so that rows of a shard are not ascending."""
    lines = (own_shop / "items.csv").read_text().splitlines()
    (own_shop / "items.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    return load_dataset(own_shop)


@pytest.fixture
def embedding(source: ItemSource, turned_shop: Dataset, tmp_path: Path) -> ItemEmbedding:
    """Heads on text vectors that are joined with TF-IDF, without stored vectors."""
    features = features_of_batches(turned_shop)
    blocks = TextBlocks.fit(turned_shop.texts(), features["text"], 5, share=0.5)
    assert blocks is not None
    joined = {**features, "text": blocks.join(features["text"], turned_shop.texts())}
    heads = ModalityHeads({name: block.shape[1] for name, block in joined.items()}, 6, 4)
    heads.start_at(joined)
    return ItemEmbedding(source, LetterCounts(), heads.eval(), tmp_path / "none", MODEL, blocks)


def batches(shop: Dataset) -> list[NDArray[np.int64]]:
    """Rows of the batches of a job: by id, in shards."""
    order = np.argsort(shop.item_ids()).astype(np.int64)
    shards = [order[start : start + SIZES["shard_items"]] for start in range(0, len(order), SIZES["shard_items"])]
    size = SIZES["batch_items"]
    return [shard[start : start + size] for shard in shards for start in range(0, len(shard), size)]


def features_of_batches(shop: Dataset) -> Made:
    """The encoder's vectors of the whole catalogue, of the same batches by hand."""
    encoder, texts = LetterCounts(), shop.texts()
    made = {name: np.zeros((len(shop), LENGTH), dtype=np.float32) for name in MODALITIES}
    for rows in batches(shop):
        written = [row for row in rows.tolist() if (texts[row] or "").strip()]
        shown: dict[int, Image.Image] = {}
        for row in rows.tolist():
            try:
                path = shop.image_path(row)
                shown |= {} if path is None else {row: open_picture(path, 64)}
            except PictureError:
                continue
        prepared = encoder.prepare_texts([str(texts[row]) for row in written])
        made["text"][written] = encoder.encode("text", prepared).numpy()
        pictures = encoder.prepare_pictures(list(shown.values()))
        made["image"][list(shown)] = encoder.encode("image", pictures).numpy()
    return made


def vectors_of_batches(embedding: ItemEmbedding, shop: Dataset) -> Made:
    """What the heads give for the whole catalogue, from one array of what they read of all items."""
    assert embedding.text_blocks is not None
    assert embedding.heads is not None
    read = features_of_batches(shop)
    read["text"] = embedding.text_blocks.join(read["text"], shop.texts())
    made = {name: np.zeros((len(shop), embedding.heads.dim), dtype=np.float32) for name in MODALITIES}
    for rows in batches(shop):
        batch, places = FeatureCollator(read, max_history=4).items(rows)
        with torch.inference_mode():
            outputs = embedding.heads(batch)
        for name, found in places.items():
            made[name][rows] = spread(outputs, found).numpy()
    return made


def embed(shop: Dataset, embedding: ItemEmbedding, directory: Path, **options: Any) -> Embeddings:
    pending = pending_items(shop, MODEL, directory)
    return embed_catalogue(shop, pending, lambda: embedding, directory, **{**SIZES, **options}).embeddings


def check_same_bytes(found: Embeddings, expected: Made) -> None:
    assert found.dims() == {name: block.shape[1] for name, block in expected.items()}
    for name, block in expected.items():
        assert found.vectors[name].tobytes() == block.tobytes(), name


def test_the_bytes_are_those_of_one_array_of_the_whole_catalogue(
    turned_shop: Dataset, embedding: ItemEmbedding, source: ItemSource, tmp_path: Path
) -> None:
    check_same_bytes(embed(turned_shop, embedding, tmp_path / "heads"), vectors_of_batches(embedding, turned_shop))
    alone = ItemEmbedding(source, LetterCounts(), None, tmp_path / "none", MODEL)
    check_same_bytes(embed(turned_shop, alone, tmp_path / "alone"), features_of_batches(turned_shop))


def test_a_killed_job_encodes_no_item_of_a_finished_shard_again(
    turned_shop: Dataset, embedding: ItemEmbedding, tmp_path: Path
) -> None:
    def kill(step: str, done: int, _every: int) -> None:
        if step == "embedding" and done == 20:  # within the third shard
            raise Killed

    whole = embed(turned_shop, embedding, tmp_path / "whole")
    with pytest.raises(Killed):
        embed(turned_shop, embedding, tmp_path / "killed", progress=kill)
    embedding.encoder.read.clear()  # type: ignore[attr-defined]
    resumed = embed(turned_shop, embedding, tmp_path / "killed")
    check_same_bytes(resumed, whole.vectors)
    assert sum(embedding.encoder.read) == 2 * 14  # type: ignore[attr-defined]


@pytest.mark.parametrize("with_heads", [False, True])
def test_memory_does_not_grow_with_the_vectors(
    source: ItemSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_heads: bool
) -> None:
    length, sizes = 1_024, (200, 800)
    for module in ("job", "store"):  # as if there were more items
        monkeypatch.setattr(f"training.embedding.{module}._BLOCK_ROWS", 64)
    peaks = []
    for items in (100, *sizes):  # the first loads modules
        shop = texts_of(tmp_path / str(items), items)
        heads = ModalityHeads(dict.fromkeys(MODALITIES, length), 8, 4) if with_heads else None
        embedding = ItemEmbedding(source, LetterCounts(length), heads, tmp_path / "none", MODEL)
        tracemalloc.start()
        try:
            embed(shop, embedding, tmp_path / f"{items}-embeddings", shard_items=32)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    vectors = (sizes[1] - sizes[0]) * length * 4  # of one modality
    assert peaks[2] - peaks[1] < vectors / 4


def texts_of(directory: Path, items: int) -> Dataset:
    """A catalogue of texts."""
    directory.mkdir()
    rows = [f"i{number:05d},thing {number}" for number in range(items)]
    (directory / "items.csv").write_text("\n".join(["item_id,text", *rows]) + "\n")
    (directory / "interactions.csv").write_text("user_id,item_id,timestamp\nu,i00000,1\n")
    return load_dataset(directory)


def test_histories_that_share_items_encode_them_once_where_vectors_are_kept(
    turned_shop: Dataset, embedding: ItemEmbedding
) -> None:
    histories = [np.array([0, 7, 20]), np.array([7, 20, 9])]
    read, made = [], []
    for keep in (True, False):
        embedding.encoder.read.clear()  # type: ignore[attr-defined]
        encoder = catalogue_encoder(embedding, turned_shop, keep_vectors=keep)
        made.append([encoder.sequences([history]) for history in histories])
        read.append(sum(embedding.encoder.read))  # type: ignore[attr-defined]
    assert read == [8, 12]
    for kept, anew in zip(*made, strict=True):
        for name, block in kept.items():
            np.testing.assert_allclose(block, anew[name], atol=2e-6)
