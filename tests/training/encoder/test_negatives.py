"""Which items are negatives of the sequence encoder, and how often each is drawn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from training.config.encoder_config import EncoderConfig
from training.data.sequences import Sequences, leave_one_out, popularity
from training.embedding.store import Embeddings
from training.encoder.fit import NegativeSampler, Stepper, fit
from training.encoder.slot_model import SlotModel
from training.encoder.windows import rows_of, window_events

Make = Callable[[list[list[int]]], Sequences]


def new_model(embeddings: Embeddings, config: EncoderConfig, train: Sequences) -> SlotModel:
    torch.manual_seed(config.seed)
    return SlotModel(embeddings, popularity(train, len(embeddings)), config)


def test_negatives_are_drawn_as_often_as_expected() -> None:
    sampler = NegativeSampler(np.array([0, 3, 8, 99]), np.array([True, True, True, False]))
    rows, log_expected = sampler.draw(60_000, np.random.default_rng(0))
    # Square roots of 1 + events: 1, 2, 3; the absent item never.
    np.testing.assert_allclose(np.bincount(rows, minlength=4) / 60_000, [1 / 6, 2 / 6, 3 / 6, 0], atol=0.01)
    for row, share in ((0, 1 / 6), (1, 2 / 6), (2, 3 / 6)):
        np.testing.assert_allclose(log_expected[rows == row], np.log(60_000 * share), rtol=1e-5)


@pytest.mark.parametrize("sampled_above", [1000, 0], ids=["full softmax", "sampled"])
@pytest.mark.parametrize("unseen_negatives", [False, True])
def test_an_item_that_nobody_touched_is_a_negative_only_if_asked_for(
    ring_embeddings: Embeddings, small_config: EncoderConfig, make_sequences: Make, sampled_above: int,
    unseen_negatives: bool,
) -> None:  # fmt: skip
    update = {"sampled_above": sampled_above, "negatives": 400, "unseen_negatives": unseen_negatives}
    config = small_config.model_copy(update=update)
    train = make_sequences([[(user + step) % 8 for step in range(6)] for user in range(30)])
    model = new_model(ring_embeddings, config, train).eval()
    stepper = Stepper(model, config, NegativeSampler.of(model, train, config))
    batch = rows_of(train, window_events(train, 5, reversed_share=0, rng=np.random.default_rng(0)))[:4]

    def loss() -> float:
        torch.manual_seed(0)
        return float(stepper.loss(batch, np.random.default_rng(0)).detach())

    before = loss()
    model.features["text"][9] *= -1
    assert (loss() != before) == unseen_negatives
    model.features["text"][3] *= -1
    assert loss() != pytest.approx(before)


@pytest.mark.parametrize("sampled_above", [1000, 0], ids=["full softmax", "sampled"])
def test_where_no_item_with_events_has_a_slot_fitting_still_ends(
    small_config: EncoderConfig, make_sequences: Make, tmp_path: Path, sampled_above: int
) -> None:
    """Pictures alone, and nobody touched an item that has one."""
    images = np.zeros((12, 3), dtype=np.float32)
    images[9:] = np.eye(3)
    embeddings = Embeddings([f"i{row}" for row in range(12)], {"image": images})
    update = {"slots": ("image",), "epochs": 1, "sampled_above": sampled_above, "negatives": 8}
    config = small_config.model_copy(update=update)
    parts = leave_one_out(make_sequences([[(user + step) % 8 for step in range(6)] for user in range(20)]))
    model = new_model(embeddings, config, parts.train)
    log = fit(model, parts.train, parts.validation, config, tmp_path / "fit", fingerprint="none")
    assert log.epochs[0]["loss"] == 0.0
