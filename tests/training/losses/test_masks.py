"""What may be compared with what, and what happens where nothing may."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.loss_configs import loss_config
from training.losses.crtr import crtr_loss
from training.losses.info_nce import info_nce
from training.losses.method_loss import method_loss
from training.losses.modality_pairs import ModalityPairs
from training.losses.similarities import false_negatives, fused_similarities, similarities

Make = Callable[..., ModalityPairs]
LossOf = Callable[..., Any]


def leaves(*parts: ModalityPairs) -> list[torch.Tensor]:
    found = [vectors for part in parts for vectors in (part.sequences, part.items)]
    for vectors in found:
        vectors.requires_grad_()
    return found


def test_false_negatives_are_the_same_item_and_items_of_the_history() -> None:
    excluded = false_negatives(torch.tensor([5, 7, 5]), torch.tensor([[7, -1], [-1, -1], [1, 2]]))
    assert excluded.tolist() == [[True, True, True], [False, True, False], [True, False, True]]


def test_a_false_negative_does_not_enter_its_row(pairs: Make) -> None:
    """Item 1 is in row 0's history and is what row 0 is most like: with the mask that costs nothing."""
    sequences, items = np.eye(3), np.eye(3)
    sequences[0] = [0.6, 0.8, 0]
    text = pairs(sequences, items)
    masked = similarities(text, false_negatives(torch.arange(3), torch.tensor([[1], [-1], [-1]])), 0.1)
    row = math.log(1 + math.exp(-6))
    rest = math.log(1 + 2 * math.exp(-10))
    assert info_nce(masked).item() == pytest.approx((row + 2 * rest) / 3, rel=1e-9)


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_no_gradient_reaches_a_vector_that_every_row_leaves_out(random_pairs: Make, fusion: str) -> None:
    """Item 3 is in all histories and its own row has no sequence: whatever it is, no term may feel it."""
    text, image = random_pairs(6, 4, seed=0), random_pairs(6, 4, seed=1)
    for part in (text, image):
        part.sequence_present[3] = False
    ids, histories = torch.arange(6), torch.full((6, 1), 3)
    inputs = leaves(text, image)
    config = loss_config(temperature=0.2, fusion=fusion, wpcl_weight=1.0, alpha=2.0)
    loss = method_loss(text, image, ids, histories, config)
    text_sequences, text_items, image_sequences, image_items = torch.autograd.grad(loss.total, inputs)
    for of_items, of_sequences in ((text_items, text_sequences), (image_items, image_sequences)):
        assert not of_items[3].any()
        assert not of_sequences[3].any()
        assert of_items[0].any()


def test_a_missing_picture_leaves_the_text_alone(pairs: Make) -> None:
    """Row 2's item has no picture: fused it is compared by its text, whatever stands in the picture's place."""
    batch = 4
    text = pairs(np.eye(batch), np.eye(batch))
    for filler in (0.0, 7.0):
        items = np.eye(batch)
        items[2] = filler
        image = pairs(np.eye(batch), items, item_present=[True, True, False, True])
        for fusion in ("sum", "concat"):
            scores = fused_similarities(text, image, torch.eye(batch, dtype=torch.bool), 1.0, fusion)
            assert scores.rows.all()
            assert scores.logits[2, 2].item() == pytest.approx(1.0)
        by_image = similarities(image, torch.eye(batch, dtype=torch.bool), 1.0)
        assert by_image.rows.tolist() == [True, True, False, True]
        assert not by_image.negatives[:, 2].any()


def test_a_pair_without_anything_to_compare_does_not_count(pairs: Make, loss_of: LossOf) -> None:
    none = np.zeros(3, dtype=bool)
    text = pairs(np.eye(3), np.eye(3), item_present=none)
    image = pairs(np.eye(3), np.eye(3), sequence_present=none)
    loss = loss_of(text, image, temperature=0.1, fusion="concat", wpcl_weight=1.0, crtr_weight=1.0)
    assert loss.rows == 0
    assert loss.total.item() == 0.0
    assert loss.wpcl.item() == 0.0
    assert loss.confidence_gap.item() == 0.0


@pytest.mark.parametrize("weak_by", ["ema", "row"])
@pytest.mark.parametrize("detach_strong", [False, True])
def test_no_qualifying_row_is_exactly_zero_with_zero_gradient(
    pairs: Make, random_pairs: Make, loss_of: LossOf, weak_by: str, detach_strong: bool
) -> None:
    text = random_pairs(5, 4, seed=0)
    image = pairs(np.zeros((5, 4)), np.zeros((5, 4)), np.zeros(5, dtype=bool), np.zeros(5, dtype=bool))
    inputs = leaves(text, image)
    loss = loss_of(
        text,
        image,
        temperature=0.1,
        wpcl_weight=1.0,
        crtr_weight=1.0,
        confidence_gap=0.7,
        weak_by=weak_by,
        detach_strong=detach_strong,
    )
    assert loss.wpcl.item() == 0.0
    assert loss.crtr.item() == 0.0
    assert loss.confidence_gap.item() == pytest.approx(0.7)
    for gradient in torch.autograd.grad(loss.wpcl + loss.crtr, inputs, retain_graph=True, allow_unused=True):
        assert gradient is None or not gradient.any()
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss.total, inputs))


def test_relations_need_two_shared_others(random_pairs: Make) -> None:
    text, image = random_pairs(2, 4, seed=0), random_pairs(2, 4, seed=1)
    none = torch.eye(2, dtype=torch.bool)
    options: dict[str, Any] = {"temperature": 0.1, "relation_temperature": 1.0, "image_weak": None}
    assert crtr_loss(text, image, torch.arange(2), none, **options).item() == 0.0


def test_one_pair_alone_has_no_loss(random_pairs: Make) -> None:
    one = random_pairs(1, 4, seed=0)
    config = loss_config(temperature=0.1, wpcl_weight=1.0, crtr_weight=1.0)
    loss = method_loss(one, one, torch.tensor([3]), torch.tensor([[1]]), config)
    assert loss.total.item() == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_stands_in_place_of_an_absent_vector_is_never_read_as_a_negative(random_pairs: Make, value: float) -> None:
    """Finite fillers change nothing; one that is not finite is no defined input and must at least be noticed."""
    text, image = random_pairs(5, 4, seed=0), random_pairs(5, 4, seed=1)
    image.item_present[2] = False
    ids, histories = torch.arange(5), torch.full((5, 1), -1)
    config = loss_config(temperature=0.2, wpcl_weight=1.0, crtr_weight=1.0)
    before = method_loss(text, image, ids, histories, config).total.item()
    image.items[2] = 3.0
    assert method_loss(text, image, ids, histories, config).total.item() == before
    text.items[2] = value
    assert not math.isfinite(method_loss(text, image, ids, histories, loss_config(temperature=0.2)).total.item())
