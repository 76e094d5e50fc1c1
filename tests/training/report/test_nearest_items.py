"""The items nearest to a few: by brute force, and with every kind of gap."""

from pathlib import Path

import numpy as np
import polars as pl

from training.data.dataset import Dataset
from training.embedding.store import Embeddings
from training.report.nearest_items import nearest_items


def items(*titles: tuple[str | None, str | None]) -> Dataset:
    """A catalogue of titles and texts, without pictures."""
    rows = [
        {"item_id": f"s{row}", "title": title, "text": text, "image": None} for row, (title, text) in enumerate(titles)
    ]
    schema = {name: pl.String() for name in ("item_id", "title", "text", "image")}
    return Dataset(Path("nowhere"), pl.DataFrame(rows, schema=schema), pl.DataFrame())


def plain(count: int) -> Dataset:
    return items(*[(f"title {row}", None) for row in range(count)])


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_they_are_those_of_brute_force() -> None:
    block = unit(np.random.default_rng(0).normal(size=(50, 4)))
    found = nearest_items(plain(50), Embeddings([f"s{row}" for row in range(50)], {"text": block}))
    assert [example.item.item_id for example in found] == ["s0", "s8", "s16", "s25", "s33", "s41"]  # 50 / 6 apart
    for example in found:
        own = int(example.item.item_id[1:])
        angles = {row: float(block[own].astype(np.float64) @ block[row]) for row in range(50) if row != own}
        expected = sorted(angles, key=lambda row: -angles[row])[:5]
        assert [near.item.item_id for near in example.nearest["text"]] == [f"s{row}" for row in expected]
        np.testing.assert_allclose(
            [near.cosine for near in example.nearest["text"]], [angles[row] for row in expected], atol=1e-6
        )


def test_the_small_shop(small_shop: Dataset, small_shop_embeddings: Embeddings) -> None:
    """Text vectors lie on half a circle in the order of the items, 15° apart."""
    found = nearest_items(small_shop, small_shop_embeddings, examples=3, nearest=2)
    # 11 items have both; 4 has no picture. The first, fourth and eighth of them.
    assert [example.item.item_id for example in found] == ["s0", "s3", "s8"]
    assert [[near.item.item_id for near in example.nearest["text"]] for example in found] == [
        ["s1", "s2"], ["s2", "s4"], ["s7", "s9"]
    ]  # fmt: skip
    np.testing.assert_allclose(
        [near.cosine for near in found[0].nearest["text"]], np.cos(np.radians([15, 30])), atol=1e-6
    )
    # Image vector of item n lies at place 5 n mod 12: 3 → 3, so nearest are those at 2 and 4, items 10 and 8.
    assert sorted(near.item.item_id for near in found[1].nearest["image"]) == ["s10", "s8"]


def test_an_item_with_a_picture_is_shown_in_place_of_one_without(
    small_shop: Dataset, small_shop_embeddings: Embeddings
) -> None:
    text = Embeddings(small_shop_embeddings.item_ids, {"text": small_shop_embeddings.vectors["text"]})
    found = nearest_items(small_shop, text, examples=3, nearest=1)
    assert [example.item.item_id for example in found] == ["s0", "s5", "s8"]  # 4 has none
    assert set(found[0].nearest) == {"text"}


def test_what_lacks_a_modality_or_is_in_one_of_both_only_is_left_out() -> None:
    text = unit(np.array([[1.0, 0], [1, 0.1], [1, 0.2], [1, 0.3]]))
    image = text.copy()
    image[[0, 1, 3]] = 0
    found = nearest_items(plain(3), Embeddings(["s0", "s1", "s2", "gone"], {"text": text, "image": image}))
    assert [example.item.item_id for example in found] == ["s2"]  # the only one with both
    assert [near.item.item_id for near in found[0].nearest["text"]] == ["s1", "s0"]
    assert list(found[0].nearest["image"]) == []
    assert nearest_items(plain(3), Embeddings(["other"], {"text": text[:1]})) == []
    assert nearest_items(plain(3), Embeddings(["s0"], {"text": np.zeros((1, 2), dtype=np.float32)})) == []


def test_an_item_is_called_by_what_there_is() -> None:
    dataset = items(("  a \n b ", "x"), (None, "text"), (" ", None), ("t" * 500, None), ("t" * 120, None))
    found = nearest_items(dataset, Embeddings([f"s{row}" for row in range(5)], {"text": unit(np.eye(5) + 0.1)}))
    titles = {example.item.item_id: example.item.title for example in found}
    assert titles == {"s0": "a b", "s1": "text", "s2": "s2", "s3": "t" * 119 + "…", "s4": "t" * 120}
