import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from index.items.eval_queries import EvaluationQueries
from index.items.item_table import ItemTable
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import LeaveOneOut, Sequences, Targets, leave_one_out, popularity
from training.embedding.store import Embeddings
from training.encoder.fit import FitLog, NegativeSampler, Stepper, fit, learning_rate_schedule, validate
from training.encoder.job import check_same_catalogue, fit_run, held_out_probes, split_dataset
from training.encoder.projection import load_projection, project, save_projection
from training.encoder.slot_model import SlotModel, stored_vectors, torch_encoder
from training.encoder.windows import rows_of, window_events
from training.errors import ConfigError, DatasetError, EmbeddingsError, TrainingDiverged
from training.ranking.cold_items import cold_mask, cold_targets, without_items
from training.ranking.ranking import rank_targets
from training.ranking.slot_ranker import SlotRanker

RING = 12
Make = Callable[[list[list[int]]], Sequences]


@pytest.fixture
def walks(make_sequences: Make) -> LeaveOneOut:
    """30 users who walk 9 steps round the ring."""
    return leave_one_out(make_sequences([[(user + step) % RING for step in range(9)] for user in range(30)]))


def new_model(embeddings: Embeddings, config: EncoderConfig, train: Sequences) -> SlotModel:
    torch.manual_seed(config.seed)
    return SlotModel(embeddings, popularity(train, len(embeddings)), config)


def fitted(
    embeddings: Embeddings, config: EncoderConfig, parts: LeaveOneOut, directory: Path, **callbacks: Any
) -> tuple[SlotModel, FitLog]:
    model = new_model(embeddings, config, parts.train)
    return model, fit(model, parts.train, parts.validation, config, directory, fingerprint="ring", **callbacks)


@pytest.mark.parametrize("sampled_above", [1000, 0], ids=["full softmax", "sampled"])
def test_it_learns_who_follows_whom(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut, tmp_path: Path, sampled_above: int
) -> None:
    config = small_config.model_copy(update={"sampled_above": sampled_above, "negatives": 8})
    model, log = fitted(ring_embeddings, config, walks, tmp_path / "new")
    ranker = SlotRanker(stored_vectors(model, "float16"), torch_encoder(model), config.max_history)
    rank = rank_targets(ranker, walks.test, ranker.findable).full
    assert (rank.means == 0).mean() > 0.9  # by chance one in five: 12 items, 8 of them masked
    assert log.epochs[0]["loss"] > log.epochs[-1]["loss"]
    assert log.epochs[log.best_epoch]["ndcg@10"] == max(line["ndcg@10"] for line in log.epochs)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut, tmp_path: Path
) -> None:
    config = small_config.model_copy(update={"epochs": 2, "dropout": 0.1, "input_dropout": 0.1, "cold_dropout": 0.1})
    first, second = (fitted(ring_embeddings, config, walks, tmp_path / name)[0] for name in "ab")
    np.testing.assert_array_equal(stored_vectors(first, "float32"), stored_vectors(second, "float32"))
    other = fitted(ring_embeddings, config.model_copy(update={"seed": 1}), walks, tmp_path / "c")[0]
    assert np.abs(stored_vectors(first, "float32") - stored_vectors(other, "float32")).max() > 0.01


class Killed(BaseException):
    """The process ends here."""


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut, tmp_path: Path
) -> None:
    config = small_config.model_copy(update={"epochs": 4, "dropout": 0.1, "averaging": 0.9})
    whole, whole_log = fitted(ring_embeddings, config, walks, tmp_path / "whole")

    seen: list[int] = []

    def kill_in_the_third_epoch(share: float) -> None:
        if len(seen) == 2 and share > 0.4:
            raise Killed

    with pytest.raises(Killed):
        fitted(
            ring_embeddings,
            config,
            walks,
            tmp_path / "killed",
            report=lambda line: seen.append(line["epoch"]),
            step_done=kill_in_the_third_epoch,
        )
    assert seen == [0, 1]
    resumed, log = fitted(
        ring_embeddings, config, walks, tmp_path / "killed", report=lambda line: seen.append(line["epoch"])
    )
    assert seen == [0, 1, 2, 3]
    assert log == whole_log
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, atol=0, rtol=0)


@pytest.mark.parametrize("damage", ["fingerprint", "average-2.safetensors"])
def test_checkpoints_of_other_data_or_damaged_ones_are_not_used(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut, tmp_path: Path, damage: str
) -> None:
    config = small_config.model_copy(update={"epochs": 2})
    fitted(ring_embeddings, config, walks, tmp_path)
    (tmp_path / damage).write_text("other")
    seen: list[Mapping[str, Any]] = []
    fitted(ring_embeddings, config, walks, tmp_path, report=seen.append)
    assert [line["epoch"] for line in seen] == [0, 1]


def test_without_validation_it_trains_a_fixed_number_of_epochs(
    ring_embeddings: Embeddings, small_config: EncoderConfig, make_sequences: Make, tmp_path: Path
) -> None:
    parts = leave_one_out(make_sequences([[0, 1], [1, 2], [2, 3]]))
    config = small_config.model_copy(update={"patience": 2})
    _, log = fitted(ring_embeddings, config, parts, tmp_path)
    assert [set(line) for line in log.epochs] == [{"epoch", "loss"}] * 2
    assert log.best_epoch == 1


def test_patience_ends_training(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut, tmp_path: Path
) -> None:
    config = small_config.model_copy(update={"learning_rate": 1e-9, "patience": 2, "warmup_steps": 0})
    _, log = fitted(ring_embeddings, config, walks, tmp_path)
    assert log.best_epoch == 0
    assert len(log.epochs) == 3


def test_a_diverged_loss_is_an_error(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut, tmp_path: Path
) -> None:
    model = new_model(ring_embeddings, small_config, walks.train)
    with torch.no_grad():
        model.encoder.leave.weight.fill_(float("inf"))
    with pytest.raises(TrainingDiverged, match=r"encoder\.learning_rate \(0\.02\)"):
        fit(model, walks.train, walks.validation, small_config, tmp_path, fingerprint="")


def test_the_rate_warms_up_and_falls_to_a_tenth() -> None:
    factor = learning_rate_schedule(EncoderConfig(warmup_steps=10), 1000).factor
    assert factor(0) == pytest.approx(0.1, rel=1e-3)
    assert factor(9) == pytest.approx(1, rel=1e-3)
    assert factor(500) == pytest.approx(0.55)
    assert factor(1000) == factor(1001) == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_the_rate_in_closed_form(warmup: int) -> None:
    factor = learning_rate_schedule(EncoderConfig(warmup_steps=warmup), 20).factor
    expected = [
        min(1.0, (step + 1) / max(warmup, 1)) * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 20)) / 2)
        for step in range(21)
    ]
    assert [factor(step) for step in range(21)] == pytest.approx(expected, rel=1e-15)


def test_a_behaviour_vector_is_mapped_content_and_its_own_part_by_the_number_of_events(
    ring_embeddings: Embeddings, small_config: EncoderConfig
) -> None:
    """normalise(W · content + n / (n + k) · δ) with k = 5, one row at a time."""
    events = np.arange(RING, dtype=np.int64) * 2
    model = SlotModel(ring_embeddings, events, small_config)
    assert model.behaviour_map is not None
    with torch.no_grad():
        model.behaviour_map.weight.normal_()
        units = model.unit_slots(torch.arange(RING))["behaviour"].numpy()
    own, mapped = model.behaviour.weight.detach().numpy(), model.behaviour_map.weight.detach().numpy()
    features = np.concatenate([model.features[name].numpy() for name in ("text", "image")], axis=1)
    np.testing.assert_array_equal(units[0], 0)  # no event, so no behaviour vector
    for row in range(1, RING):
        content = features[row] / np.linalg.norm(features[row])
        vector = mapped @ content + events[row] / (events[row] + 5) * own[row - 1]
        np.testing.assert_allclose(units[row], vector / np.linalg.norm(vector), atol=1e-5)
    stored = model.behaviour_slots()
    np.testing.assert_allclose(stored[1:] / np.linalg.norm(stored[1:], axis=1, keepdims=True), units[1:], atol=1e-5)


@pytest.mark.parametrize("changed", [{"behaviour_shrinkage": 0.0}, {"slots": ("behaviour",)}], ids=["0", "ids alone"])
def test_a_behaviour_vector_is_free_without_content(
    ring_embeddings: Embeddings, small_config: EncoderConfig, changed: dict[str, Any]
) -> None:
    model = SlotModel(ring_embeddings, np.full(RING, 3), small_config.model_copy(update=changed))
    assert model.behaviour_map is None
    np.testing.assert_array_equal(model.behaviour_slots(), model.behaviour.weight.detach().numpy())


def test_slots_are_absent_where_there_is_nothing_to_tell(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut
) -> None:
    model = new_model(ring_embeddings, small_config.model_copy(update={"min_events": 20}), walks.train)
    warm = model.present["behaviour"]
    assert 0 < int(warm.sum()) < RING  # some items have too little history
    with torch.inference_mode():
        units = model.unit_slots(torch.arange(RING))
    assert not units["image"][-1].any()
    assert not units["behaviour"][~warm].any()
    np.testing.assert_allclose(units["behaviour"][warm].norm(dim=1).numpy(), 1, rtol=1e-5)
    np.testing.assert_array_equal(model.behaviour_slots()[~warm.numpy()], 0)
    np.testing.assert_array_equal(model.slot_components.sum(dim=1), [8, 6, 8])
    expected = model.layout.stack({name: block.numpy() for name, block in units.items()})
    np.testing.assert_allclose(stored_vectors(model, "float32"), expected, atol=1e-6)


def test_dropped_slots_are_absent_on_both_sides(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut
) -> None:
    """With all slots but one always dropped, the loss does not depend on what the dropped ones hold."""
    config = small_config.model_copy(update={"slots": ("text", "image"), "slot_dropout": 0.999999})
    model = new_model(ring_embeddings, config, walks.train).eval()
    stepper = Stepper(model, config, NegativeSampler(popularity(walks.train, RING), np.ones(RING, dtype=np.bool_)))
    batch = rows_of(walks.train, window_events(walks.train, 5, reversed_share=0, rng=np.random.default_rng(0)))[:1]

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(stepper.loss(batch, np.random.default_rng(seed)).detach())

    before = [loss(seed) for seed in range(8)]
    with torch.no_grad():
        model.projection.maps["text"].weight.add_(torch.randn(8, RING - 1))
    unchanged = [old == new for old, new in zip(before, [loss(seed) for seed in range(8)], strict=True)]
    assert 0 < sum(unchanged) < 8  # image-only draws do not see the text; text-only draws do


def test_the_folded_projection_is_the_trained_one_and_works_for_new_items(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut, tmp_path: Path
) -> None:
    model, _ = fitted(ring_embeddings, small_config.model_copy(update={"epochs": 2}), walks, tmp_path / "fit")
    save_projection(model.final_projection(), tmp_path / "projection.safetensors")
    loaded = load_projection(tmp_path / "projection.safetensors")
    slots = project(ring_embeddings, loaded)
    with torch.inference_mode():
        units = model.unit_slots(torch.arange(RING))
    for name in ("text", "image"):
        np.testing.assert_allclose(slots[name], units[name].numpy(), atol=1e-5)
    new = Embeddings(["new"], {name: block[4:5] for name, block in ring_embeddings.vectors.items()})
    np.testing.assert_allclose(project(new, loaded)["text"], slots["text"][4:5], atol=1e-6)


def test_a_projection_refuses_vectors_of_another_model(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut, tmp_path: Path
) -> None:
    projection = new_model(ring_embeddings, small_config, walks.train).final_projection()
    with pytest.raises(EmbeddingsError, match="embed with the model it was trained on"):
        project(Embeddings(["a"], {"text": np.eye(1, 3, dtype=np.float32)}), projection)
    (tmp_path / "p.safetensors").write_bytes(b"\x08garbage")
    for path in (tmp_path / "p.safetensors", tmp_path / "absent"):
        with pytest.raises(EmbeddingsError, match="no readable projection"):
            load_projection(path)


def test_cold_items_leave_no_trace_in_training(make_sequences: Make) -> None:
    cold = np.array([False, True, False, True])
    sequences = make_sequences([[0, 1, 2, 3], [1, 0], [3], [2]])
    kept = without_items(sequences, cold)
    assert [kept.of(user).tolist() for user in range(4)] == [[0, 2], [0], [], [2]]
    targets = cold_targets(sequences, cold)
    assert [history.tolist() for history in targets.histories] == [[0], [0, 2]]
    assert targets.targets.tolist() == [1, 3]
    assert targets.users == ["u0", "u0"]


def test_cold_items_are_drawn_by_id_alone() -> None:
    ids = [f"item-{number}" for number in range(4000)]
    mask = cold_mask(ids, 0.1)
    assert mask.mean() == pytest.approx(0.1, abs=0.015)
    np.testing.assert_array_equal(cold_mask(ids[::-1], 0.1), mask[::-1])
    assert (cold_mask(ids, 0.2) >= mask).all()
    assert not cold_mask(ids, 0.0).any()


def test_probes_are_the_newest_of_held_out_histories(make_sequences: Make) -> None:
    parts = leave_one_out(make_sequences([[0, 1, 2, 3], [4, 5, 6]]))
    probes = held_out_probes(parts, 2)
    assert probes.histories.tolist() == [[1, 2], [4, 5], [0, 1], [4, -1]]
    assert probes.targets.tolist() == [3, 6, 2, 5]
    assert held_out_probes(parts, 2, most=2).targets.tolist() == [3, 6]
    assert len(held_out_probes(parts, 2, most=3)) == 3
    nobody = leave_one_out(make_sequences([[0, 1]]))
    assert held_out_probes(nobody, 2).histories.shape == (0, 2)


def test_a_fitted_run_holds_what_the_index_needs(
    ring_run: tuple[Path, dict[str, Any]], ring_dataset: Dataset, small_config: EncoderConfig
) -> None:
    run, record = ring_run
    table = ItemTable.load(run / "encoder" / "table")
    assert table.layout.names == ("text", "image", "behaviour")
    assert table.vectors.dtype == np.float16
    train = split_dataset(ring_dataset, 0.0).parts.train
    np.testing.assert_array_equal(table.popularity, popularity(train, RING))
    assert table.metadata.column("colour").to_pylist() == ["red"] * RING
    present = table.layout.present(table.vectors)
    assert [row for row in range(RING) if not present[row, 1]] == [3, 5]  # broken and missing picture
    assert present[:, [0, 2]].all()
    np.testing.assert_allclose(np.linalg.norm(table.vectors.astype(np.float64), axis=1), 1, atol=2e-3)
    probes = EvaluationQueries.load(run / "encoder" / "probes.npz")
    probes.check_rows(RING)
    assert len(probes) == 80
    assert record == json.loads((run / "encoder" / "fit.json").read_text())
    assert record["config"] == small_config.for_catalogue(RING).model_dump(mode="json")
    assert record["data"]["users"] == 40
    assert not (run / "encoder" / "checkpoints").exists()
    projected = project(Embeddings.load(run / "embeddings"), load_projection(run / "encoder/projection.safetensors"))
    stored = table.vectors[:, table.layout.slice("text")].astype(np.float32)
    np.testing.assert_allclose(stored, projected["text"] / np.sqrt(present.sum(axis=1))[:, None], atol=1e-3)


def test_embeddings_of_another_catalogue_are_refused(ring_dataset: Dataset, ring_embeddings: Embeddings) -> None:
    check_same_catalogue(ring_dataset, ring_embeddings)
    fewer = Embeddings(ring_embeddings.item_ids[1:], {"text": ring_embeddings.vectors["text"][1:]})
    with pytest.raises(EmbeddingsError, match="item 'r0' has none"):
        check_same_catalogue(ring_dataset, fewer)
    turned = Embeddings(ring_embeddings.item_ids[::-1], {"text": ring_embeddings.vectors["text"]})
    with pytest.raises(EmbeddingsError, match="ids or their order differ"):
        check_same_catalogue(ring_dataset, turned)


def test_histories_without_a_pair_are_refused(
    ring_directory: Path, ring_embeddings: Embeddings, small_config: EncoderConfig, tmp_path: Path
) -> None:
    path = tmp_path / "single.csv"
    path.write_text("user_id,item_id,timestamp\na,r1,1\nb,r2,1\nb,r3,2\nb,r4,3\n")
    dataset = load_dataset(ring_directory, interactions=path)
    with pytest.raises(DatasetError, match="at least two training events"):
        fit_run(dataset, ring_embeddings, small_config, tmp_path / "encoder")


def test_slots_that_cannot_be_filled_are_refused(
    ring_dataset: Dataset, ring_embeddings: Embeddings, small_config: EncoderConfig, tmp_path: Path
) -> None:
    texts = Embeddings(ring_embeddings.item_ids, {"text": ring_embeddings.vectors["text"]})
    config = small_config.model_copy(update={"slots": ("image",)})
    with pytest.raises(ConfigError, match=r"encoder\.slots: the embeddings have \['text'\], got \['image'\]"):
        fit_run(ring_dataset, texts, config, tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"heads": 3}, {"slots": []}, {"slots": ["text", "text"]}, {"slots": ["sound"]}, {"new": 1}]
)
def test_configurations_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EncoderConfig.model_validate(wrong)


def test_nothing_to_learn_in_a_batch_is_no_loss(
    ring_embeddings: Embeddings, small_config: EncoderConfig, make_sequences: Make
) -> None:
    """Targets without the only slot that is left teach nothing and harm nothing."""
    images = np.zeros((RING, 3), dtype=np.float32)
    images[0, 0] = 1
    embeddings = Embeddings(ring_embeddings.item_ids, {"image": images})
    config = small_config.model_copy(update={"slots": ("image",)})
    train = make_sequences([[0, 1, 2]])
    model = new_model(embeddings, config, train)
    present = np.arange(RING) == 0
    stepper = Stepper(model, config, NegativeSampler(popularity(train, RING), present))
    assert float(stepper.loss(np.array([[0, 1, 2]]), np.random.default_rng(0)).detach()) == 0.0


def test_validation_ranks_at_most_as_many_users_as_allowed(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut
) -> None:
    """Two of three are the first and the last."""
    model = new_model(ring_embeddings, small_config, walks.train)
    ring = walks.validation
    three = Targets(ring.histories[:3], ring.targets[:3], ring.users[:3])
    whole = validate(model, three, small_config)["ndcg@10"] * 3
    ends = validate(model, three, small_config.model_copy(update={"validation_users": 2}))["ndcg@10"] * 2
    middle = Targets(ring.histories[1:2], ring.targets[1:2], ring.users[1:2])
    assert ends == pytest.approx(whole - validate(model, middle, small_config)["ndcg@10"])
    assert validate(model, Targets([], np.zeros(0, dtype=np.int64), []), small_config) == {}


def test_a_batch_size_of_0_is_the_automatic_one(
    ring_embeddings: Embeddings, small_config: EncoderConfig, walks: LeaveOneOut, tmp_path: Path
) -> None:
    logs = [
        fitted(
            ring_embeddings,
            small_config.model_copy(update={"batch_size": size, "epochs": 1}),
            walks,
            tmp_path / str(size),
        )[1]
        for size in (0, 32)
    ]
    assert logs[0] == logs[1]
