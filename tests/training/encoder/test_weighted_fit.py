"""Events of different weights in the loss, in co-occurrence and in a whole fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from cli.online.served_run import ServedRun
from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.event_types import EventTypes
from tests.support.mean_encoder import export_mean_encoder
from training.config.encoder_config import EncoderConfig
from training.data.dataset import load_dataset
from training.data.sequences import Sequences
from training.embedding.store import Embeddings
from training.encoder.job import fit_run, split_dataset
from training.encoder.next_item_loss import NO_TARGET, full_softmax_loss, sampled_softmax_loss
from training.encoder.windows import rows_of, weights_of, window_events
from training.lists.build import co_occurrence_list

Make = Callable[[list[list[int]]], Sequences]
TARGETS = torch.tensor([[1, 2], [3, NO_TARGET]])


def weighed(sequences: Sequences, weights: list[float]) -> Sequences:
    return Sequences(sequences.user_ids, sequences.offsets, sequences.rows, np.array(weights, np.float32))


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_the_loss_is_the_weighted_mean_of_the_losses_of_its_targets(kind: str) -> None:
    torch.manual_seed(0)
    queries, units, scale = torch.randn(2, 2, 4), functional.normalize(torch.randn(5, 4), dim=1), torch.ones(2, 5)
    sample, expected = torch.tensor([0, 4, 4]), torch.zeros(3)

    def loss(targets: torch.Tensor, weights: torch.Tensor | None) -> float:
        if kind == "full":
            return float(full_softmax_loss(queries, units, targets, scale, 0.5, weights))
        return float(sampled_softmax_loss(queries, units, targets, scale, sample, expected, 0.5, weights))

    alone = [loss(torch.where(torch.arange(4).view(2, 2) == place, TARGETS, NO_TARGET), None) for place in (0, 1, 2)]
    weights = torch.tensor([[1.0, 0.5], [5.0, 9.0]])  # that of no target has no part
    right = (1.0 * alone[0] + 0.5 * alone[1] + 5.0 * alone[2]) / 6.5
    assert loss(TARGETS, weights) == pytest.approx(right, rel=1e-5)
    assert loss(TARGETS, torch.ones(2, 2)) == pytest.approx(loss(TARGETS, None), rel=1e-6)
    assert loss(torch.full((2, 2), NO_TARGET), weights) == 0


def test_windows_carry_the_weights_of_their_events(make_sequences: Make) -> None:
    plain = make_sequences([[0, 1, 2, 3, 4, 5], [6, 7]])
    train = weighed(plain, [float(row) + 1 for row in plain.rows])
    events = window_events(train, 3, reversed_share=0.5, rng=np.random.default_rng(1))
    weights = weights_of(train, events)
    np.testing.assert_array_equal(weights, rows_of(train, events) + 1.0)
    assert weights_of(plain, events) is None


def test_co_occurrence_weighs_pairs_by_the_root_of_their_product(make_sequences: Make) -> None:
    train = weighed(make_sequences([[0, 1, 2]]), [4.0, 1.0, 0.25])
    (first, second, third) = (co_occurrence_list(train, 3, 5).of(row) for row in range(3))
    # √(4·1)/1 / √(4·1) = 1; √(4·¼)/2 / √(4·¼) = ½; √(1·¼)/1 / √(1·¼) = 1
    assert [dict(zip(rows.tolist(), values.tolist(), strict=True)) for rows, values in (first, second, third)] == [
        {1: 1.0, 2: 0.5},
        {0: 1.0, 2: 1.0},
        {0: 0.5, 1: 1.0},
    ]
    heavier = weighed(make_sequences([[0, 1], [0, 2]]), [1.0, 9.0, 1.0, 1.0])
    assert co_occurrence_list(heavier, 3, 5, shrinkage=1.0).of(0)[0].tolist() == [1, 2]


def typed(ring_directory: Path, directory: Path, kind: Callable[[int], str], rules: str | None) -> Path:
    """The ring with a type for each event, and with rules."""
    shutil.copytree(ring_directory, directory)
    header, *lines = (directory / "interactions.csv").read_text().splitlines()
    lines = [f"{line},{kind(number)}" for number, line in enumerate(lines)]
    (directory / "interactions.csv").write_text("\n".join([f"{header},type", *lines]) + "\n")
    if rules is not None:
        (directory / "events.toml").write_text(rules)
    return directory


def test_events_of_one_type_are_fitted_as_plain_ones(ring_directory: Path, tmp_path: Path) -> None:
    plain = typed(ring_directory, tmp_path / "plain", lambda _: "purchase", None)
    same = typed(ring_directory, tmp_path / "same", lambda _: "purchase", 'weight_by = "type"')
    one, two = (split_dataset(load_dataset(directory), 0.0) for directory in (plain, same))
    assert one.fingerprint == two.fingerprint
    assert two.parts.train.weights is None


def test_a_fit_with_types_leaves_its_table_in_the_bundle(
    ring_directory: Path,
    ring_embeddings: Embeddings,
    small_config: EncoderConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.encoder.encoder_files.export_encoder", export_mean_encoder)
    rules = 'weight_by = "type"\n[events.types]\nstep = 2\n'
    kinds = ("view", "step", "purchase", "view", "impression")
    dataset = load_dataset(typed(ring_directory, tmp_path / "data", lambda number: kinds[number % 5], rules))
    config = small_config.model_copy(update={"epochs": 2})
    record = fit_run(dataset, ring_embeddings, config, tmp_path / "run/encoder")
    assert (record["weight_by"], record["left_out"]) == ("type", {"impression": 72})
    weights = split_dataset(dataset, 0.0).parts.train.weights
    assert weights is not None
    assert len(np.unique(weights)) == 3
    fitted = ServedRun.load(tmp_path / "run")
    assert fitted.event_types == EventTypes.of({"step": 2})
    built = build_bundle(
        fitted.table, fitted.encoder, fitted.queries, tmp_path / "bundles", event_types=fitted.event_types
    )
    assert Bundle.load(built).manifest.event_types == fitted.event_types
    assert json.loads((built / "manifest.json").read_text())["event_types"]["types"]["step"] == 2
