"""Impressions as extra negatives of the next event: in the loss, in windows and in a whole fit."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support.mean_encoder import export_mean_encoder
from training.config.encoder_config import EncoderConfig
from training.data.dataset import load_dataset
from training.data.sequences import Sequences
from training.embedding.store import Embeddings
from training.encoder.fit import NegativeSampler, Stepper
from training.encoder.job import fit_run, split_dataset
from training.encoder.next_item_loss import NO_TARGET, full_softmax_loss, sampled_softmax_loss
from training.encoder.slot_model import SlotModel
from training.encoder.windows import shown_of, window_events

Make = Callable[[list[list[int]]], Sequences]


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_a_shown_item_counts_once_more_in_the_denominator(kind: str) -> None:
    torch.manual_seed(0)
    queries, units = torch.randn(1, 1, 4), functional.normalize(torch.randn(5, 4), dim=1)
    targets, scale, sample = torch.tensor([[1]]), torch.ones(1, 5), torch.tensor([0, 4])
    scale[0, 3] = 0.0  # has no slot in the window

    def loss(shown: list[int] | None) -> float:
        rows = None if shown is None else torch.tensor([[shown]])
        if kind == "full":
            return float(full_softmax_loss(queries, units, targets, scale, 0.5, None, rows))
        return float(sampled_softmax_loss(queries, units, targets, scale, sample, torch.zeros(2), 0.5, None, rows))

    score = (queries[0, 0] @ units.T / 0.5).exp()
    before = score[[0, 1, 2, 4]].sum() if kind == "full" else score[[0, 1, 4]].sum()
    assert loss([2, 0, -1]) == pytest.approx(float(((before + score[2] + score[0]) / score[1]).log()), rel=1e-5)
    assert loss([-1, -1]) == pytest.approx(loss(None), rel=1e-6)
    assert loss([1, 3]) == pytest.approx(loss(None), rel=1e-6), "neither the target nor an item without a slot"
    assert NO_TARGET == -1


def test_windows_and_splits_carry_what_was_shown(make_sequences: Make) -> None:
    plain = make_sequences([[0, 1, 2, 3, 4, 5], [6, 7]])
    train = replace(plain, shown=plain.rows[:, None] * 10 + np.arange(2))
    events = window_events(train, 3, reversed_share=0, rng=np.random.default_rng(1))
    shown = shown_of(train, events)
    assert shown is not None
    filled = events >= 0
    np.testing.assert_array_equal(shown[filled], train.rows[events[filled]][:, None] * 10 + np.arange(2))
    assert (shown[~filled] == -1).all()
    assert shown_of(plain, events) is None
    kept = train.only(plain.rows % 2 == 0, np.array([0, 3, 4]))
    assert kept.shown is not None
    assert kept.shown[:, 0].tolist() == [0, 20, 40, 60]


@pytest.mark.parametrize("sampled_above", [0, 1_000])
def test_the_loss_of_a_batch_rises_with_what_was_shown(
    ring_embeddings: Embeddings, small_config: EncoderConfig, make_sequences: Make, sampled_above: int
) -> None:
    update = {"sampled_above": sampled_above, "dropout": 0.0, "slot_dropout": 0.0, "cold_dropout": 0.0}
    config = small_config.model_copy(update=update)
    train = make_sequences([[row % len(ring_embeddings) for row in range(user, user + 4)] for user in range(30)])
    torch.manual_seed(0)
    model = SlotModel(ring_embeddings, np.bincount(train.rows, minlength=len(ring_embeddings)), config)
    stepper = Stepper(model, config, NegativeSampler.of(model, train, config))
    batch = np.array([[0, 1, 2, -1]])

    def loss(shown: list[list[int]] | None) -> float:
        rows = None if shown is None else np.array([shown])
        return float(stepper.loss(batch, np.random.default_rng(0), None, rows).detach())

    none = [[-1]] * 4
    assert loss(none) == pytest.approx(loss(None), rel=1e-6)
    assert loss([[7], [-1], [-1], [-1]]) == pytest.approx(loss(None), rel=1e-6), "of an event that is no target"
    assert loss([[-1], [7], [-1], [-1]]) > loss(None)


@pytest.mark.parametrize("sampled_above", [1_000, 0], ids=["full softmax", "sampled"])
@pytest.mark.parametrize("unseen_negatives", [False, True])
def test_a_new_item_that_was_shown_is_a_negative_only_if_asked_for(
    ring_embeddings: Embeddings, small_config: EncoderConfig, make_sequences: Make, sampled_above: int,
    unseen_negatives: bool,
) -> None:  # fmt: skip
    update = {"sampled_above": sampled_above, "dropout": 0.0, "slot_dropout": 0.0, "cold_dropout": 0.0}
    config = small_config.model_copy(update=update | {"unseen_negatives": unseen_negatives})
    train = make_sequences([[(user + step) % 8 for step in range(6)] for user in range(30)])
    torch.manual_seed(0)
    model = SlotModel(ring_embeddings, np.bincount(train.rows, minlength=len(ring_embeddings)), config)
    stepper = Stepper(model, config, NegativeSampler.of(model, train, config))

    def loss(shown: int) -> float:
        rows = np.array([[[-1], [shown], [-1]]])
        return float(stepper.loss(np.array([[0, 1, 2]]), np.random.default_rng(0), None, rows).detach())

    assert loss(7) > loss(-1)
    if unseen_negatives:
        assert loss(9) > loss(-1)
    else:
        assert loss(9) == pytest.approx(loss(-1), rel=1e-6), "item 9 has no training event"


def test_held_out_events_do_not_decide_what_was_followed(tmp_path: Path) -> None:
    """Of six events a user's last two are held out, and so is every event of a cold item."""
    start = 1_790_000_000
    positive = [("u", item, start + 100 * place, "view") for place, item in enumerate("abcdef")]
    seen = [("e", 150), ("c", 160), ("f", 170)]  # e and f are followed by held-out events, c by a training event
    shown = [("u", item, start + at, "impression") for item, at in seen]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{item},{item}\n" for item in "abcdef"))
    lines = [",".join(map(str, row)) for row in (*positive, *shown)]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,type", *lines]) + "\n")
    (tmp_path / "events.toml").write_text('weight_by = "type"\n')
    split = split_dataset(load_dataset(tmp_path), 0.0, impressions=3)
    train = split.parts.train
    assert train.rows.tolist() == [0, 1, 2, 3]
    assert train.shown is not None
    assert train.shown.tolist() == [[-1, -1, -1], [-1, -1, -1], [5, 4, -1], [-1, -1, -1]]
    assert split.sequences.shown is not None
    assert (split.sequences.shown == -1).all(), "the refit learns from every event, so all of them decide"


def test_a_fit_with_impressions(
    ring_directory: Path,
    ring_embeddings: Embeddings,
    small_config: EncoderConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.encoder.encoder_files.export_encoder", export_mean_encoder)
    data = tmp_path / "data"
    shutil.copytree(ring_directory, data)
    header, *lines = (data / "interactions.csv").read_text().splitlines()
    lines = [f"{line},{'impression' if number % 5 == 3 else 'view'}" for number, line in enumerate(lines)]
    (data / "interactions.csv").write_text("\n".join([f"{header},type", *lines]) + "\n")
    (data / "events.toml").write_text('weight_by = "type"\n')
    dataset = load_dataset(data)
    plain = split_dataset(dataset, 0.0)
    with_shown = split_dataset(dataset, 0.0, impressions=2)
    assert plain.fingerprint == with_shown.fingerprint, "what is measured is the same"
    assert plain.sequences.shown is None
    assert with_shown.parts.train.shown is not None
    assert (with_shown.parts.train.shown >= 0).any()
    config = small_config.model_copy(update={"epochs": 1})
    losses = [
        fit_run(dataset, ring_embeddings, config.model_copy(update=more), tmp_path / f"{number}/encoder")["log"][0]
        for number, more in enumerate([{}, {"impression_negatives": 2}])
    ]
    assert losses[0]["loss"] != losses[1]["loss"]
