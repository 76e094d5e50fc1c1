"""Losses whose value can be written down."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.loss_configs import loss_config
from training.losses.crtr import crtr_loss
from training.losses.info_nce import info_nce
from training.losses.method_loss import method_loss
from training.losses.modality_balance import weak_modality
from training.losses.modality_pairs import ModalityPairs
from training.losses.similarities import false_negatives, fused_similarities, similarities

Make = Callable[..., ModalityPairs]
LossOf = Callable[..., Any]


def orthonormal_loss(temperature: float, batch: int) -> float:
    """log(e^{1/τ} + B − 1) − 1/τ, written so that e^{1/τ} cannot overflow."""
    return math.log1p((batch - 1) * math.exp(-1 / temperature))


@pytest.mark.parametrize("temperature", [1e-3, 0.05, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("fusion", ["sum", "concat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthonormal_pairs_have_the_closed_form_loss(
    pairs: Make, loss_of: LossOf, temperature: float, fusion: str, dtype: torch.dtype
) -> None:
    batch = 6
    rows = torch.eye(batch, dtype=dtype)
    there = torch.ones(batch, dtype=torch.bool)
    same = ModalityPairs(rows, rows, there, there)
    loss = loss_of(same, same, temperature=temperature, fusion=fusion)
    expected = orthonormal_loss(temperature, batch)
    tolerance = {"rel": 1e-9} if dtype == torch.float64 else {"rel": 2e-6, "abs": 2e-6}
    assert loss.total.item() == pytest.approx(expected, **tolerance)
    assert loss.rows == batch


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_a_permuted_target_loses(pairs: Make, loss_of: LossOf, fusion: str) -> None:
    batch, temperature = 6, 0.1
    right = pairs(np.eye(batch), np.eye(batch))
    wrong = pairs(np.eye(batch), np.roll(np.eye(batch), 1, axis=0))
    assert loss_of(right, right, temperature=temperature, fusion=fusion).total.item() < 0.01
    # every row's own similarity is 0 and one negative's is 1
    expected = math.log(math.exp(1 / temperature) + batch - 1)
    assert loss_of(wrong, wrong, temperature=temperature, fusion=fusion).total.item() == pytest.approx(expected)


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_the_two_fusions_differ_by_the_cross_terms(pairs: Make, fusion: str) -> None:
    """Text and image in planes of their own: ``sum`` halves the products, ``concat`` is their mean: the same.

    With both in the same plane and the image turned by a right angle, ``sum`` sees the other modality's products too.
    """
    apart = np.eye(4)
    none = torch.eye(2, dtype=torch.bool)
    text, image = pairs(apart[:2], apart[:2]), pairs(apart[2:], apart[2:])
    alone = fused_similarities(text, image, none, 1.0, fusion).logits
    np.testing.assert_allclose(alone.numpy(), np.eye(2), atol=1e-12)
    plane = np.eye(2)
    text, image = pairs(plane, plane), pairs(plane[::-1].copy(), plane[::-1].copy())
    crossed = fused_similarities(text, image, none, 1.0, fusion).logits
    np.testing.assert_allclose(crossed.numpy(), np.ones((2, 2)) if fusion == "sum" else np.eye(2), atol=1e-12)


def test_weak_penalty_by_hand(pairs: Make, loss_of: LossOf) -> None:
    """Text is perfect, the image knows nothing: c^image = 1/B, so g and β follow by hand."""
    batch = 4
    text = pairs(np.eye(batch), np.eye(batch))
    blind = np.tile(np.eye(batch)[:1], (batch, 1))
    loss = loss_of(text, pairs(blind, blind), temperature=1.0, wpcl_weight=1.0, alpha=2.0, confidence_gap_decay=0.0)
    log_text, log_image = 1 - math.log(math.e + 3), -math.log(4)
    beta = 1 + 2 * (log_text - log_image)
    assert loss.confidence_gap.item() == pytest.approx(log_text - log_image)
    assert loss.gap.item() == pytest.approx(log_text - log_image)
    assert loss.log_beta.item() == pytest.approx(math.log(beta))
    assert loss.wpcl.item() == pytest.approx(math.log(1 + 3 * beta))
    assert loss.image_weak.item() == 1.0


@pytest.mark.parametrize("weak_by", ["ema", "row"])
def test_the_probability_gap_by_hand(pairs: Make, loss_of: LossOf, weak_by: str) -> None:
    batch = 4
    text = pairs(np.eye(batch), np.eye(batch))
    blind = np.tile(np.eye(batch)[:1], (batch, 1))
    loss = loss_of(
        text, pairs(blind, blind), temperature=1.0, wpcl_weight=1.0, alpha=2.0, gap_kind="probability", weak_by=weak_by
    )
    gap = math.e / (math.e + 3) - 1 / 4
    assert loss.gap.item() == pytest.approx(gap)
    assert loss.wpcl.item() == pytest.approx(math.log(1 + 3 * (1 + 2 * gap)))


def test_the_log_ratio_gap_is_clipped_at_4(pairs: Make, loss_of: LossOf) -> None:
    text = pairs(np.eye(4), np.eye(4))
    image = pairs(np.eye(4), np.roll(np.eye(4), 1, axis=0))
    loss = loss_of(text, image, temperature=0.01, wpcl_weight=1.0)
    assert loss.gap.item() == 4.0
    assert loss.log_beta.item() == pytest.approx(math.log(5))


def test_relations_by_hand(pairs: Make) -> None:
    """Three items: text similarities of the two others are 1 and 0, the image's 0 and 1."""
    items_text = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    items_image = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    text, image = pairs(items_text, items_text), pairs(items_image, items_image)
    got = crtr_loss(
        text,
        image,
        torch.arange(3),
        torch.eye(3, dtype=torch.bool),
        temperature=1.0,
        relation_temperature=1.0,
        image_weak=None,
    ).item()
    p = math.e / (math.e + 1)
    opposed = p - (1 - p)  # ½ (KL + KL) of (p, 1 − p) against (1 − p, p), as log p − log(1 − p) = 1
    # row 0 is opposed; row 1: text (1, 0), image (0, 0); row 2: text (0, 0), image (1, 0)
    half = 0.5 * ((p - 0.5) * math.log(p / 0.5) + ((1 - p) - 0.5) * math.log((1 - p) / 0.5))
    assert got == pytest.approx((opposed + half + half) / 3)


def test_equal_modalities_have_no_relational_loss_and_no_penalty(random_pairs: Make, loss_of: LossOf) -> None:
    same = random_pairs(8, 5, seed=0)
    loss = loss_of(same, same, temperature=0.2, wpcl_weight=1.0, crtr_weight=1.0)
    assert loss.crtr.item() == pytest.approx(0.0, abs=1e-12)
    assert loss.log_beta.item() == 0.0
    plain = info_nce(similarities(same, torch.eye(8, dtype=torch.bool), 0.2))
    assert loss.wpcl.item() == pytest.approx(plain.item(), rel=1e-12)


# --- weights of 0


@pytest.mark.parametrize("fusion", ["sum", "concat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 4.0])
def test_zero_weights_are_plain_fine_tuning_bit_for_bit(
    random_pairs: Make, fusion: str, dtype: torch.dtype, alpha: float
) -> None:
    text, image = (
        ModalityPairs(
            made.sequences.to(dtype).requires_grad_(),
            made.items.to(dtype).requires_grad_(),
            made.sequence_present,
            made.item_present,
        )
        for made in (random_pairs(9, 7, seed=1, missing=0.2), random_pairs(9, 7, seed=2, missing=0.2))
    )
    ids, histories = torch.arange(9) % 7, torch.arange(18).reshape(9, 2) % 7

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, (text.sequences, text.items, image.sequences, image.items)))

    off = method_loss(text, image, ids, histories, loss_config(temperature=0.3, fusion=fusion, alpha=alpha))
    plain = info_nce(fused_similarities(text, image, false_negatives(ids, histories), 0.3, fusion))
    assert off.total is off.nce
    assert off.total.item() == plain.item()
    assert all(torch.equal(a, b) for a, b in zip(gradients(off.total), gradients(plain), strict=True))


@pytest.mark.parametrize(("wpcl_weight", "crtr_weight"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_a_term_with_a_weight_of_0_is_not_computed(
    random_pairs: Make, loss_of: LossOf, monkeypatch: pytest.MonkeyPatch, wpcl_weight: float, crtr_weight: float
) -> None:
    def never(*_: object, **__: object) -> Tensor:
        raise AssertionError

    if wpcl_weight == 0:
        monkeypatch.setattr("training.losses.method_loss.wpcl_loss", never)
    if crtr_weight == 0:
        monkeypatch.setattr("training.losses.method_loss.crtr_loss", never)
    loss = loss_of(
        random_pairs(5, 4, seed=0),
        random_pairs(5, 4, seed=1),
        temperature=0.2,
        wpcl_weight=wpcl_weight,
        crtr_weight=crtr_weight,
    )
    assert (loss.wpcl is None, loss.crtr is None) == (wpcl_weight == 0, crtr_weight == 0)


def test_alpha_0_is_an_unweighted_loss_on_the_weak_modality(random_pairs: Make, loss_of: LossOf) -> None:
    text, image = random_pairs(9, 7, seed=1), random_pairs(9, 7, seed=2)
    loss = loss_of(text, image, temperature=0.3, wpcl_weight=1.0, alpha=0.0)
    weak = image if loss.confidence_gap.item() > 0 else text
    plain = info_nce(similarities(weak, torch.eye(9, dtype=torch.bool), 0.3))
    assert loss.wpcl.item() == pytest.approx(plain.item(), rel=1e-12)


# --- the moving average


@pytest.mark.parametrize(
    ("sign", "confidence_gap", "decay", "image_weak"),
    [(1, 0.0, 0.9, True), (-1, 0.0, 0.9, False), (1, -10.0, 0.9, False), (-1, 10.0, 0.9, True), (1, -10.0, 0.0, True)],
)
def test_the_weak_modality_follows_the_moving_average(
    pairs: Make, sign: int, confidence_gap: float, decay: float, image_weak: bool
) -> None:
    strong, blind = pairs(np.eye(4), np.eye(4)), pairs(np.ones((4, 4)) / 2, np.ones((4, 4)) / 2)
    text, image = (strong, blind) if sign > 0 else (blind, strong)
    none = torch.eye(4, dtype=torch.bool)
    by_text, by_image = similarities(text, none, 1.0), similarities(image, none, 1.0)
    balance = weak_modality(
        by_text, by_image, weak_by="ema", gap_kind="log_ratio", confidence_gap=confidence_gap, decay=decay
    )
    assert balance.image_weak.tolist() == [image_weak] * 4
    now = sign * (1 - math.log(math.e + 3) + math.log(4))
    assert balance.confidence_gap.item() == pytest.approx(decay * confidence_gap + (1 - decay) * now)


def test_a_tie_of_the_average_leaves_beta_at_1(pairs: Make, loss_of: LossOf) -> None:
    """Two rows that favour one modality each, exactly equally: gaps are there, but nothing is weak."""
    text, image = pairs(np.eye(2)[[0, 0]], np.eye(2)), pairs(np.eye(2)[[1, 1]], np.eye(2))
    row = loss_of(text, image, temperature=1.0, wpcl_weight=1.0, weak_by="row")
    tie = loss_of(text, image, temperature=1.0, wpcl_weight=1.0, confidence_gap=0.0)
    assert row.log_beta.item() == pytest.approx(math.log(2))  # both gaps are 1
    assert tie.confidence_gap.item() == 0.0
    assert tie.log_beta.item() == 0.0


@pytest.mark.parametrize("gap_kind", ["log_ratio", "probability"])
def test_a_tie_of_a_row_leaves_its_beta_at_1(pairs: Make, loss_of: LossOf, gap_kind: str) -> None:
    same = pairs(np.eye(3), np.eye(3))
    loss = loss_of(same, same, temperature=0.5, wpcl_weight=1.0, alpha=3.0, weak_by="row", gap_kind=gap_kind)
    assert loss.log_beta.item() == 0.0
    assert loss.wpcl.item() == pytest.approx(orthonormal_loss(0.5, 3), rel=1e-9)


def test_the_loss_has_no_hidden_state(random_pairs: Make, loss_of: LossOf) -> None:
    text, image = random_pairs(6, 4, seed=6), random_pairs(6, 4, seed=7)
    first, second = (
        loss_of(text, image, temperature=0.5, wpcl_weight=1.0, crtr_weight=1.0).total.item() for _ in range(2)
    )
    assert first == second
