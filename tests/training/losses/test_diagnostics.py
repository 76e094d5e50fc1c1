"""Diagnostics of two modalities against values known by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from training.losses.diagnostics import (
    MOST_ROWS,
    balance_of,
    effective_rank,
    spread_of_items,
    squared_gradients,
    uniformity,
)
from training.losses.modality_pairs import ModalityPairs


def pairs(sequences: Tensor, items: Tensor, there: Tensor | None = None) -> ModalityPairs:
    present = torch.ones(len(items), dtype=torch.bool)
    return ModalityPairs(sequences, items, present, present if there is None else there)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_effective_rank_of_equal_singular_values_is_their_number(count: int) -> None:
    assert effective_rank(torch.eye(5)[:count].repeat(3, 1)) == pytest.approx(count, rel=1e-5)


def test_the_effective_rank_by_hand() -> None:
    """Singular values 3 and 1: entropy of (¾, ¼)."""
    rows = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(rows) == pytest.approx(expected)
    assert effective_rank(rows @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)) == pytest.approx(
        expected
    )
    assert effective_rank(torch.zeros(3, 2)) == 0.0
    assert effective_rank(torch.ones(4, 3).bfloat16()) == pytest.approx(1.0, abs=1e-2)


def test_uniformity_by_hand() -> None:
    """Orthonormal vectors are √2 apart, so every term is e^{−4}; alike ones give 0; opposite ones e^{−8}."""
    assert uniformity(torch.eye(6)) == pytest.approx(-4.0)
    assert uniformity(torch.ones(4, 1)) == 0.0
    assert uniformity(torch.tensor([[1.0], [-1.0]])) == pytest.approx(-8.0)
    mixed = torch.tensor([[1.0], [1.0], [-1.0]])  # one pair alike, two opposite
    assert uniformity(mixed) == pytest.approx(math.log((1 + 2 * math.exp(-8)) / 3), rel=1e-5)


def test_spread_looks_at_items_that_have_the_modality() -> None:
    text = pairs(torch.zeros(4, 3), torch.eye(3)[[0, 1, 2, 0]])
    image = pairs(torch.zeros(4, 3), -torch.eye(3)[[0, 0, 1, 2]], torch.tensor([True, True, False, False]))
    found = spread_of_items(text, image)
    assert found["effective rank image"] == pytest.approx(1.0)
    assert found["uniformity image"] == pytest.approx(0.0)
    assert found["uniformity text"] == pytest.approx(math.log((5 * math.exp(-4) + 1) / 6), rel=1e-5)
    centre = np.array([0.5, 0.25, 0.25]) - np.array([-1, 0, 0])
    assert found["cross-modal gap"] == pytest.approx(float(np.linalg.norm(centre)))
    lonely = pairs(torch.zeros(4, 3), torch.zeros(4, 3), torch.tensor([True, False, False, False]))
    assert set(spread_of_items(text, lonely)) == {"effective rank text", "uniformity text"}


def test_a_large_batch_is_sampled() -> None:
    """The rows beyond the limit lie elsewhere and are not looked at."""
    rows = torch.cat([torch.eye(2)[:1].expand(MOST_ROWS, 2), torch.eye(2)[1:].expand(50, 2)])
    found = spread_of_items(pairs(rows, rows), pairs(rows, rows))
    assert found["effective rank text"] == pytest.approx(1.0, abs=1e-3)
    assert found["uniformity text"] == pytest.approx(0.0, abs=1e-6)


def test_balance_by_hand() -> None:
    """Text is perfect; of the image row 0 is perfect and the others know nothing."""
    text = pairs(torch.eye(4), torch.eye(4))
    image = pairs(torch.cat([torch.eye(4)[:1], torch.zeros(3, 4)]), torch.eye(4))
    ids, histories = torch.arange(4), torch.full((4, 1), -1)
    found = balance_of(text, image, ids, histories, temperature=1.0)
    sure, blind = 1 - math.log(math.e + 3), -math.log(4)
    assert found["confidence text"] == pytest.approx(sure, rel=1e-5)
    assert found["confidence image"] == pytest.approx((sure + 3 * blind) / 4, rel=1e-5)
    assert found["gap"] == pytest.approx(0.75 * (sure - blind), rel=1e-5)
    assert found["image_weak"] == pytest.approx(0.75)
    third = pairs(image.sequences, image.items, torch.tensor([True, False, True, True]))
    assert balance_of(text, third, ids, histories, temperature=1.0)["confidence image"] == pytest.approx(
        (1 - math.log(math.e + 2) - 2 * math.log(3)) / 3, rel=1e-5
    )
    nobody = pairs(torch.zeros(4, 4), torch.zeros(4, 4), torch.zeros(4, dtype=torch.bool))
    assert set(balance_of(text, nobody, ids, histories, temperature=1.0)) == {"confidence text"}


def test_gradients_by_hand() -> None:
    """Of the histories' squares the gradient is twice the vector; the items of the image are not in the loss."""
    text = pairs(torch.tensor([[3.0], [4.0]], requires_grad=True), torch.tensor([[1.0], [2.0]], requires_grad=True))
    image = pairs(torch.tensor([[1.0], [1.0]], requires_grad=True), torch.tensor([[9.0], [9.0]], requires_grad=True))
    (text.sequences.square().sum() + text.items.sum() + 5 * image.sequences[0].sum()).backward()
    assert squared_gradients(text, image) == {"gradient text": 36 + 64 + 1 + 1, "gradient image": 25}
