"""Rows of items are found by their ids as in a dict."""

import random

import numpy as np
import polars as pl
import pytest

from training.data.tables.row_lookup import RowLookup
from training.errors import EmbeddingsError

IDS = [f"{prefix}{number}" for prefix in ("", "i", "ä", "item-00", "👟", "Z", "z") for number in range(70)]


@pytest.fixture
def ids() -> list[str]:
    return random.Random(1).sample(IDS, len(IDS))


def test_every_row_is_found_and_no_other(ids: list[str]) -> None:
    known = {item_id: row for row, item_id in enumerate(ids)}
    asked = random.Random(2).choices([*ids, "", "i70", "ä-1", "\U0010ffff", "item-00 "], k=2000)
    found = RowLookup(pl.Series(ids)).find(asked)
    assert found.tolist() == [known.get(item_id, -1) for item_id in asked]


def test_only_chosen_items_are_found(ids: list[str]) -> None:
    chosen = np.arange(len(ids)) % 3 == 1
    lookup = RowLookup(pl.Series(ids), chosen)
    assert lookup.find(ids).tolist() == [row if row % 3 == 1 else -1 for row in range(len(ids))]
    assert lookup.rows(ids[1::3]).tolist() == list(range(1, len(ids), 3))
    with pytest.raises(EmbeddingsError, match=f"item {ids[3]!r} is not among those to embed"):
        lookup.rows([ids[1], ids[3]])


def test_nothing_is_found_among_no_items() -> None:
    lookup = RowLookup(pl.Series([], dtype=pl.String))
    assert lookup.find(["a", "b"]).tolist() == [-1, -1]
    assert lookup.find([]).tolist() == []
