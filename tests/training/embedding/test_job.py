"""Embedding a catalogue: complete, in order, with absent and unreadable pictures recorded."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.backbones.vlm import Embedding
from training.data.dataset import Dataset, load_dataset
from training.embedding.catalogue_encoder import CatalogueEncoder
from training.embedding.job import embed_catalogue, pending_items
from training.embedding.plan import EmbeddingPlan
from training.embedding.shards import Shard
from training.embedding.store import Embeddings
from training.errors import EmbeddingsError


def run(dataset: Dataset, embedding: Embedding, directory: Path, **options: Any) -> Embeddings:
    pending = pending_items(dataset, embedding.model, directory)
    chosen = {"shard_items": 8, "batch_items": 3, **options}
    return embed_catalogue(dataset, pending, lambda: embedding, directory, **chosen).embeddings


def test_every_item_has_its_own_vectors_in_the_catalogues_order(
    shop: Dataset, embedding: Embedding, tmp_path: Path
) -> None:
    done: list[int] = []
    made = run(
        shop, embedding, tmp_path, progress=lambda step, n, _all: done.append(n) if step == "embedding" else None
    )
    assert made.item_ids == shop.item_ids()
    alone = CatalogueEncoder(embedding, shop)
    for row in range(len(shop)):
        for name, block in alone.items(np.array([row])).items():
            np.testing.assert_allclose(made.vectors[name][row], block[0], atol=2e-6)
    assert done == sorted(done)
    assert done[-1] == 30


def test_absent_and_unreadable_modalities_are_zero_and_recorded(
    shop: Dataset, embedding: Embedding, tmp_path: Path
) -> None:
    made = run(shop, embedding, tmp_path)
    absent = {name: np.flatnonzero(~block.any(axis=1)).tolist() for name, block in made.vectors.items()}
    assert absent == {"text": [3, 6], "image": [4, 5, 6]}
    recorded = json.loads((tmp_path / "unreadable.json").read_text())
    assert list(recorded) == ["i05"]


def test_it_is_saved_with_its_provenance(shop: Dataset, embedding: Embedding, tmp_path: Path) -> None:
    made = run(shop, embedding, tmp_path)
    loaded = Embeddings.load(tmp_path)
    np.testing.assert_array_equal(loaded.vectors["image"], made.vectors["image"])
    assert loaded.model["weights"] == "abc"
    assert loaded.model["inputs"]
    assert loaded.unreadable.keys() == {"i05"}
    files = ["embeddings.json", "image-000001.npy", "items-000001.parquet", "text-000001.npy", "unreadable.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_the_rows_order_does_not_change_the_shards(own_shop: Path, embedding: Embedding, tmp_path: Path) -> None:
    made = run(load_dataset(own_shop), embedding, tmp_path / "a")
    lines = (own_shop / "items.csv").read_text().splitlines()
    (own_shop / "items.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    turned = run(load_dataset(own_shop), embedding, tmp_path / "b")
    assert turned.item_ids == made.item_ids[::-1]
    np.testing.assert_allclose(turned.vectors["text"], made.vectors["text"][::-1], atol=2e-6)
    assert turned.model == made.model


def test_shards_are_put_together_one_after_another(
    shop: Dataset, embedding: Embedding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their vectors would need the memory of the whole catalogue."""
    results, living = EmbeddingPlan.results, list[int]()

    def watched(plan: EmbeddingPlan) -> Iterator[Shard]:
        shards = weakref.WeakSet[Shard]()
        for shard in results(plan):
            shards.add(shard)
            living.append(len(shards))
            yield shard
            del shard

    monkeypatch.setattr(EmbeddingPlan, "results", watched)
    monkeypatch.setattr(Shard, "__hash__", object.__hash__)
    run(shop, embedding, tmp_path, shard_items=3)
    assert len(living) == 10
    assert max(living) <= 3


def test_a_catalogue_without_anything_is_refused(own_shop: Path, embedding: Embedding, tmp_path: Path) -> None:
    lines = ["item_id,text,image", *(f"i{n:02d},," for n in range(30))]
    (own_shop / "items.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(EmbeddingsError, match="none of the 30 items"):
        run(load_dataset(own_shop), embedding, tmp_path / "out")


def test_values_that_are_not_finite_are_refused(shop: Dataset, embedding: Embedding, tmp_path: Path) -> None:
    with torch.no_grad():
        for weight in embedding.embedder.parameters():
            weight.fill_(float("nan"))
    with pytest.raises(EmbeddingsError, match="not finite"):
        run(shop, embedding, tmp_path)


def test_histories_are_encoded_for_direct_ranking(shop: Dataset, embedding: Embedding) -> None:
    found = CatalogueEncoder(embedding, shop, picture_bytes=10**7).sequences([np.array([0, 1]), np.array([6])])
    assert {name: block.shape for name, block in found.items()} == {"text": (2, 16), "image": (2, 16)}
    assert [bool(row.any()) for row in found["text"]] == [True, False]


def test_the_shards_are_those_of_sorted_ids(
    own_shop: Path, embedding: Embedding, tmp_path: Path, encoded: list[list[int]]
) -> None:
    lines = (own_shop / "items.csv").read_text().splitlines()
    (own_shop / "items.csv").write_text("\n".join([lines[0], lines[30], *lines[1:30]]) + "\n")  # i29 comes first
    run(load_dataset(own_shop), embedding, tmp_path / "out", shard_items=29, batch_items=29)
    assert encoded == [list(range(1, 30)), [0]]
