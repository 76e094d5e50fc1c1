"""The simple remedies beside the published terms: a loss of each modality on its own, and modality dropout."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from training.config.run_config import LossConfig, TrainConfig
from training.finetune.step import hidden_modalities
from training.losses.modality_pairs import ModalityPairs

Make = Callable[..., ModalityPairs]
LossOf = Callable[..., Any]
BATCH = 9


def absent(pairs: ModalityPairs) -> ModalityPairs:
    nowhere = torch.zeros(BATCH, dtype=torch.bool)
    return replace(pairs, sequence_present=nowhere, item_present=nowhere)


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_loss_of_each_modality_is_what_it_gives_alone(random_pairs: Make, loss_of: LossOf, missing: float) -> None:
    text, image = random_pairs(BATCH, 5, 1, missing), random_pairs(BATCH, 5, 2, missing)
    plain = loss_of(text, image, temperature=0.3, fusion="concat")
    alone = [
        loss_of(text, absent(image), temperature=0.3, fusion="concat").total.item(),
        loss_of(absent(text), image, temperature=0.3, fusion="concat").total.item(),
    ]
    both = loss_of(text, image, temperature=0.3, fusion="concat", unimodal_weight=0.7)
    assert plain.unimodal is None
    assert both.unimodal.item() == pytest.approx(sum(alone), rel=1e-12)
    assert both.total.item() == pytest.approx(plain.total.item() + 0.7 * sum(alone), rel=1e-12)
    assert (both.wpcl, both.crtr, both.log_beta) == (None, None, None)


def test_no_modality_no_loss_of_it(random_pairs: Make, loss_of: LossOf) -> None:
    text, image = random_pairs(BATCH, 5, 1), random_pairs(BATCH, 5, 2)
    nothing = loss_of(absent(text), absent(image), temperature=0.3, unimodal_weight=1.0)
    assert (nothing.total.item(), nothing.unimodal.item()) == (0.0, 0.0)


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_a_hidden_modality_is_an_absent_one_for_the_fused_loss_alone(
    random_pairs: Make, loss_of: LossOf, fusion: str
) -> None:
    text, image = random_pairs(BATCH, 5, 3), random_pairs(BATCH, 5, 4)
    hidden = torch.zeros(BATCH, 2, dtype=torch.bool)
    hidden[[0, 4], 0] = True
    hidden[[1, 7, 8], 1] = True
    without = [replace(side, sequence_present=~hidden[:, place]) for place, side in enumerate((text, image))]
    options = {"temperature": 0.3, "fusion": fusion, "wpcl_weight": 0.5, "crtr_weight": 0.2, "unimodal_weight": 0.1}
    seen, plain = loss_of(text, image, hidden=hidden, **options), loss_of(text, image, **options)
    assert seen.nce.item() == pytest.approx(loss_of(*without, temperature=0.3, fusion=fusion).nce.item(), rel=1e-12)
    assert seen.nce.item() != pytest.approx(plain.nce.item())
    for name in ("wpcl", "crtr", "unimodal", "gap", "confidence_gap"):
        assert getattr(seen, name).item() == getattr(plain, name).item()


def test_the_share_that_loses_one_of_two() -> None:
    both = torch.ones(100_000, dtype=torch.bool)
    hidden = hidden_modalities(both, 0.3, seed=1, step=2)
    assert hidden is not None
    shares = hidden.double().mean(dim=0)
    assert shares.tolist() == pytest.approx([0.15, 0.15], abs=0.005)  # four standard errors
    assert not bool(hidden.all(dim=1).any())
    again, other = (hidden_modalities(both, 0.3, seed=1, step=step) for step in (2, 3))
    assert torch.equal(hidden, again)
    assert not torch.equal(hidden, other)


def test_what_has_one_modality_keeps_it() -> None:
    both = torch.arange(1_000) % 2 == 0
    hidden = hidden_modalities(both, 1.0, seed=0, step=0)
    assert torch.equal(hidden.any(dim=1), both)
    assert hidden_modalities(both, 0.0, seed=0, step=0) is None


def test_neither_is_there_unless_asked_for() -> None:
    assert (LossConfig().unimodal_weight, LossConfig().modality_dropout) == (0.0, 0.0)
    assert TrainConfig().vision_rate == 1.0
