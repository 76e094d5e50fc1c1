"""Gradients, dtypes and extreme temperatures."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.loss_configs import loss_config
from training.losses.method_loss import method_loss
from training.losses.modality_pairs import ModalityPairs

Make = Callable[..., ModalityPairs]
LossOf = Callable[..., Any]
VARIANTS: list[dict[str, Any]] = [
    {"fusion": fusion, "weak_by": weak_by, "gap_kind": gap_kind, "detach_strong": detach_strong}
    for fusion, weak_by, gap_kind, detach_strong in itertools.product(
        ("sum", "concat"), ("ema", "row"), ("log_ratio", "probability"), (False, True)
    )
]


def parts_of(*modalities: ModalityPairs) -> tuple[Tensor, ...]:
    return tuple(vectors for one in modalities for vectors in (one.sequences, one.items))


def learnable(source: ModalityPairs, dtype: torch.dtype = torch.float64) -> ModalityPairs:
    return ModalityPairs(
        source.sequences.to(dtype).detach().requires_grad_(),
        source.items.to(dtype).detach().requires_grad_(),
        source.sequence_present,
        source.item_present,
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "concat"},
        {"wpcl_weight": 1.0, "alpha": 0.0},
        {"wpcl_weight": 1.0, "alpha": 0.0, "weak_by": "row", "fusion": "concat"},
        {"crtr_weight": 1.0},
        {"fusion": "concat", "wpcl_weight": 0.0, "crtr_weight": 1.0, "relation_temperature": 2.0},
        {"wpcl_weight": 0.7, "crtr_weight": 0.3, "alpha": 0.0},
    ],
)
def test_gradients_agree_with_finite_differences(random_pairs: Make, options: dict[str, Any]) -> None:
    """Only where the loss is a function that autograd sees whole: β and a stopped gradient are none, see below."""
    text, image = random_pairs(5, 4, seed=6), random_pairs(5, 4, seed=7, missing=0.3)
    ids, histories = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([[2], [-1], [-1], [0], [-1]])

    def total(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        left = ModalityPairs(a, b, text.sequence_present, text.item_present)
        right = ModalityPairs(c, d, image.sequence_present, image.item_present)
        return method_loss(left, right, ids, histories, loss_config(temperature=0.5, **options)).total

    inputs = [v.clone().requires_grad_() for v in (text.sequences, text.items, image.sequences, image.items)]
    assert torch.autograd.gradcheck(total, inputs)


def gradient_sizes(loss: Tensor, text: ModalityPairs, image: ModalityPairs) -> tuple[float, float]:
    found = torch.autograd.grad(loss, parts_of(text, image), allow_unused=True)
    sizes = [0.0 if g is None else g.abs().sum().item() for g in found]
    return sizes[0] + sizes[1], sizes[2] + sizes[3]


@pytest.mark.parametrize("confidence_gap", [3.0, -3.0])
def test_no_gradient_into_the_strong_side(random_pairs: Make, loss_of: LossOf, confidence_gap: float) -> None:
    text, image = learnable(random_pairs(6, 4, seed=6)), learnable(random_pairs(6, 4, seed=7))
    loss = loss_of(text, image, temperature=0.5, crtr_weight=1.0, detach_strong=True, confidence_gap=confidence_gap)
    into_text, into_image = gradient_sizes(loss.crtr, text, image)
    assert (into_text > 0, into_image > 0) == (confidence_gap < 0, confidence_gap > 0)


def test_the_strong_side_is_kept_out_row_by_row(random_pairs: Make, loss_of: LossOf) -> None:
    """A history enters its own row alone, so its gradient tells on which side that row was left open."""
    text, image = learnable(random_pairs(6, 4, seed=6)), learnable(random_pairs(6, 4, seed=7))
    options: dict[str, Any] = {"temperature": 0.5, "crtr_weight": 1.0, "detach_strong": True, "weak_by": "row"}
    loss = loss_of(text, image, **options)
    of_text, of_image = torch.autograd.grad(loss.crtr, (text.sequences, image.sequences))
    opened = (of_text.abs().sum(dim=1) > 0, of_image.abs().sum(dim=1) > 0)
    assert (opened[0] ^ opened[1]).all()
    assert opened[0].any()
    assert opened[1].any()
    assert opened[1].double().mean().item() == loss.image_weak.item()


def test_the_gap_carries_no_gradient(random_pairs: Make, loss_of: LossOf) -> None:
    """With the text strong throughout, WPCL moves the image alone although β depends on the text."""
    text, image = learnable(random_pairs(6, 4, seed=6)), learnable(random_pairs(6, 4, seed=7))
    loss = loss_of(text, image, temperature=0.5, wpcl_weight=1.0, confidence_gap=5.0)
    into_text, into_image = gradient_sizes(loss.wpcl, text, image)
    assert into_text == 0
    assert into_image > 0


def test_a_larger_penalty_pushes_negatives_harder(random_pairs: Make, loss_of: LossOf) -> None:
    """What WPCL is for: the gradient on the weak modality's negatives grows with α, that of its own pair as well."""
    text, image = learnable(random_pairs(8, 6, seed=6)), learnable(random_pairs(8, 6, seed=7))
    sizes = []
    for alpha in (0.0, 1.0, 4.0):
        loss = loss_of(text, image, temperature=0.5, wpcl_weight=1.0, alpha=alpha, confidence_gap=5.0)
        sizes.append(torch.autograd.grad(loss.wpcl, image.sequences)[0].norm().item())
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_of_16_bits_are_summed_in_float32(random_pairs: Make, loss_of: LossOf, dtype: torch.dtype) -> None:
    low = [learnable(random_pairs(64, 32, seed=seed), dtype) for seed in (8, 9)]
    exact = [learnable(part) for part in low]  # the same rounded values, summed exactly
    options: dict[str, Any] = {"temperature": 0.05, "fusion": "concat", "wpcl_weight": 1.0, "crtr_weight": 1.0}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss_of(*low, **options)
    expected = loss_of(*exact, **options)
    assert got.total.dtype == torch.float32
    assert got.total.item() == pytest.approx(expected.total.item(), rel=1e-5)
    got.total.backward()
    expected.total.backward()
    for mine, theirs in zip(parts_of(*low), parts_of(*exact), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        # The sum was exact; only the result is rounded to the vectors' own dtype, half a unit in its last place.
        torch.testing.assert_close(
            mine.grad.double(), theirs.grad, rtol=torch.finfo(dtype).eps, atol=1e-3 * theirs.grad.abs().max().item()
        )


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e-2, 10.0, 1e6])
@pytest.mark.parametrize("options", VARIANTS)
def test_extreme_temperatures_stay_finite(
    random_pairs: Make, loss_of: LossOf, temperature: float, options: dict[str, Any]
) -> None:
    text, image = (learnable(random_pairs(16, 8, seed, 0.2), torch.float32) for seed in (1, 2))
    loss = loss_of(text, image, temperature=temperature, wpcl_weight=1.0, crtr_weight=1.0, alpha=4.0, **options)
    loss.total.backward()
    assert all(math.isfinite(part.item()) for part in (loss.total, loss.wpcl, loss.crtr, loss.gap, loss.log_beta))
    for part in parts_of(text, image):
        assert part.grad is not None
        assert torch.isfinite(part.grad).all()


def test_opposite_modalities_do_not_blow_up_the_sum(pairs: Make, loss_of: LossOf) -> None:
    rows = torch.eye(4).numpy()
    text, image = learnable(pairs(rows, rows)), learnable(pairs(-rows, rows))
    loss_of(text, image, temperature=1.0, fusion="sum").total.backward()
    assert text.sequences.grad is not None
    assert torch.isfinite(text.sequences.grad).all()
