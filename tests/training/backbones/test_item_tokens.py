"""Tokens of item texts are those of one call for all, whatever is kept of them."""

import numpy as np
import pytest

from training.backbones.backbone import Backbone
from training.backbones.item_tokens import ItemTokens
from training.backbones.prompts import PromptWriter
from training.data.dataset import Dataset


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_they_are_those_of_one_call_for_all(backbone: Backbone, shop: Dataset, most: int) -> None:
    writer = PromptWriter(backbone.tokenizer)
    expected = writer.tokenise(list(shop.texts()), 3)
    tokens = ItemTokens(writer, shop.texts(), 3, most=most)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(shop)), 2))
    for rows in np.array_split(order, 9):
        for row, found in zip(rows, tokens.of(rows.tolist()), strict=True):
            np.testing.assert_equal(found, expected[row])
    assert any(found is None for found in expected)


def test_a_text_whose_tokens_are_kept_is_not_read_again(backbone: Backbone) -> None:
    class Texts(list[str | None]):
        read: list[int] = []

        def __getitem__(self, row: int) -> str | None:  # type: ignore[override]
            self.read.append(row)
            return super().__getitem__(row)

    texts = Texts(["red thing", "blue thing", None, "green thing"])
    tokens = ItemTokens(PromptWriter(backbone.tokenizer), texts, 3, most=2)
    for rows in ([0, 1], [1, 0], [2], [0], [1, 1, 3]):
        tokens.of(rows)
    assert texts.read == [0, 1, 2, 1, 3]
