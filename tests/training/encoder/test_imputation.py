"""Imputed behaviour vectors: the map from content, the lengths, and their calibration on validation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from index.items.slots import Slot, SlotLayout
from index.lists.item_lists import CO, WORDS, ItemLists, ListWeights
from tests.support.listed_bundles import compressed
from training.data.sequences import Targets
from training.encoder.imputation import LEAST_WARM, BehaviourImputation, ImputationFit
from training.encoder.imputed_lengths import LengthCalibration, LengthCurve, without_co_occurrence
from training.errors import EmbeddingsError
from training.lists.list_ranker import ListRanker

LAYOUT = SlotLayout((Slot("text", 6), Slot("behaviour", 4)))
ITEMS = 300


def unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


class World:
    """Items whose behaviour follows from their text; every third one has no behaviour vector."""

    def __init__(self, noise: float = 0.2) -> None:
        rng = np.random.default_rng(0)
        self.text = rng.normal(size=(ITEMS, 6)).astype(np.float32)
        self.true = unit(self.text @ rng.normal(size=(6, 4)) + noise * rng.normal(size=(ITEMS, 4))).astype(np.float32)
        self.warm = np.arange(ITEMS) % 3 > 0
        self.behaviour = np.where(self.warm[:, None], self.true, 0).astype(np.float32)
        self.counts = np.where(self.warm, 20, np.arange(ITEMS) % 2 * 2)

    def maps(self) -> ImputationFit:
        return ImputationFit(LAYOUT, {"text": self.text}, self.behaviour, self.counts, 5)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def imputation(world: World) -> BehaviourImputation:
    return world.maps().fit()


def test_behaviour_of_unseen_items_is_predicted_from_their_content(
    world: World, imputation: BehaviourImputation
) -> None:
    made = imputation.directions({"text": world.text})
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    cosines = (made * world.true).sum(axis=1)[~world.warm]
    assert cosines.mean() > 0.8
    assert abs((made * world.true[::-1]).sum(axis=1).mean()) < 0.2


def test_only_empty_slots_are_filled(world: World, imputation: BehaviourImputation) -> None:
    text = world.text.copy()
    text[0] = 0  # nothing to predict from
    slots, lengths, imputed = imputation.fill(
        {"text": text, "behaviour": world.behaviour}, {"text": text}, world.counts
    )
    np.testing.assert_array_equal(slots["behaviour"][world.warm], world.behaviour[world.warm])
    assert not slots["behaviour"][0].any()
    assert imputed.tolist() == [not warm and row > 0 for row, warm in enumerate(world.warm.tolist())]
    assert (lengths[world.warm] == 1).all()


def test_lengths_by_events() -> None:
    zeros = np.zeros((1, 1))
    made = BehaviourImputation({}, zeros.astype(np.float32), zeros, zeros[0], 5, new_length=0.75, few_length=0.5)
    counts = np.array([0, 1, 4, 5, 99])
    assert made.lengths(counts).tolist() == [0.75, 0.5, 0.5, 0.5, 0.5], (
        "an imputed vector is never as long as a learned"
    )
    assert replace(made, min_events=1).lengths(counts).tolist() == [0.75] * 5, "no item calibrated few_length"


def test_the_file_gives_the_same_vectors(world: World, imputation: BehaviourImputation, tmp_path: Path) -> None:
    path = tmp_path / "imputation.safetensors"
    imputation.save(path)
    again = BehaviourImputation.load(path)
    np.testing.assert_array_equal(again.directions({"text": world.text}), imputation.directions({"text": world.text}))
    assert (again.min_events, again.new_length, again.few_length) == (5, 1.0, 1.0)
    with pytest.raises(EmbeddingsError, match="embed with the model it was fitted on"):
        again.directions({"text": world.text[:, :3]})
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(EmbeddingsError, match="no readable imputation"):
        BehaviourImputation.load(path)


def test_without_weight_for_behaviour_a_new_item_scores_as_a_known_one_of_the_same_content(
    world: World, imputation: BehaviourImputation
) -> None:
    text, counts = world.text.copy(), np.where(world.warm, 20, 0)
    text[0] = text[1]  # row 0 is new, row 1 has a behaviour vector of its own
    slots, lengths, imputed = replace(imputation, new_length=0.5).fill(
        {"text": text, "behaviour": world.behaviour}, {"text": text}, counts
    )
    assert imputed[:2].tolist() == [True, False]
    stored = LAYOUT.stack(slots, {"behaviour": lengths})
    query = np.ones(LAYOUT.dim, np.float32) * LAYOUT.weights({"behaviour": 0})
    scores = stored @ query
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    unfilled = LAYOUT.stack({"text": text, "behaviour": world.behaviour}) @ query
    assert unfilled[0] == pytest.approx(unfilled[1] * np.sqrt(2), rel=1e-5)  # a slot less, so scaled otherwise


def test_too_few_warm_items_give_no_map(world: World) -> None:
    few = world.behaviour.copy()
    few[np.flatnonzero(world.warm)[LEAST_WARM - 1 :]] = 0
    assert not ImputationFit(LAYOUT, {"text": world.text}, few, world.counts, 5).possible
    assert not ImputationFit(LAYOUT, {}, world.behaviour, world.counts, 5).possible
    assert world.maps().possible


def calibration(world: World, targets: NDArray[np.int64], lists: ItemLists | None = None) -> LengthCalibration:
    text = unit(world.text)
    histories = [np.array([row]) for row in np.resize(np.flatnonzero(world.warm), len(targets))]
    return LengthCalibration(
        world.maps(),
        LAYOUT,
        {"text": text, "behaviour": world.behaviour},
        world.counts,
        lambda parts: np.stack([part[-1] for part in parts]),
        5,
        lists,
        Targets(histories, targets, [str(number) for number in range(len(targets))]),
        "float32",
        True,
        [f"i{row}" for row in range(ITEMS)],
    )


def words_of(items: int) -> ItemLists:
    """A list in which every item names the two after it."""
    entries = [
        (np.array([(row + 1) % items, (row + 2) % items], np.int32), np.array([0.5, 0.25], np.float16))
        for row in range(items)
    ]
    return ItemLists(items, (compressed(WORDS, entries),), ListWeights(np.ones(1, np.float32), {WORDS: 0.4}))


def test_imputed_items_get_no_more_than_their_share(world: World) -> None:
    rng = np.random.default_rng(1)
    imputation, record = calibration(world, rng.choice(np.flatnonzero(world.counts > 0), 400)).run()
    assert 0.3 <= imputation.few_length <= 1
    assert 0.3 <= imputation.new_length <= 1
    for name, length in (("new", imputation.new_length), ("few", imputation.few_length)):
        curve = record[name]
        place = curve["lengths"].index(length)
        assert place == 0 or curve["share_of_top_ten"][place] <= curve["share_of_events"]


SHARE = np.array([0.01, 0.03, 0.05, 0.07, 0.09, 0.11, 0.13, 0.15])
MEANS = np.array([0.10, 0.14, 0.14, 0.139, 0.11, 0.15, 0.16, 0.17])


def test_the_best_length_gives_at_most_the_deserved_share() -> None:
    always = np.tile(MEANS, (50, 1))
    assert [LengthCurve(always, SHARE, share).best() for share in (0.1, 0.11, 0.2, 0.001)] == [1, 5, 7, 0]
    mean = LengthCurve.mean([LengthCurve(always, SHARE, 0.1), LengthCurve(always[:, ::-1], SHARE, 0.2)])
    np.testing.assert_allclose(mean.gains[0], (MEANS + MEANS[::-1]) / 2)
    assert mean.deserved == pytest.approx(0.15)


def test_the_longest_length_that_is_as_good_as_the_best() -> None:
    always = np.tile(MEANS, (50, 1))  # the differences have no error
    assert [LengthCurve(always, SHARE, share).longest() for share in (0.1, 0.2, 0.001)] == [2, 7, 0]
    noisy = always.copy()
    noisy[::2, 3] += 0.02  # mean .139 as before, now with a standard error of .02 / √50 = .0028
    noisy[1::2, 3] -= 0.02
    assert LengthCurve(noisy, SHARE, 0.1).longest() == 3
    assert LengthCurve(noisy, SHARE, 0.06).longest() == 2


def test_the_curve_is_that_of_ranking_with_each_length(world: World) -> None:
    rng = np.random.default_rng(2)
    job = calibration(world, rng.choice(np.flatnonzero(world.counts > 0), 100), words_of(ITEMS))
    _, record = job.run()
    few = ~world.warm & (world.counts > 0)
    filled, _, _ = world.maps().fit().fill(job.slots, {"text": world.text}, np.where(few, 1, 9))
    filled["behaviour"] = np.where((~world.warm & ~few)[:, None], 0, filled["behaviour"])
    stored = LAYOUT.stack(filled, {"behaviour": np.where(few, 0.9, 1)})
    read = LAYOUT.stack(filled, {"behaviour": np.where(few, 0.7, 1)})
    assert job.lists is not None
    added = ListRanker(job.lists).scores(job.validation.histories)
    gains, first = [], []
    for history, target, part in zip(job.validation.histories, job.validation.targets, added, strict=True):
        scores = stored @ read[history[-1]] + part
        scores[history] = -np.inf
        rank = int((scores > scores[target]).sum())
        gains.append(1 / np.log2(rank + 2) if rank < 10 and target not in history else 0.0)
        first.append(few[np.argsort(-scores)[:10]].mean())
    place = record["few"]["lengths"].index(0.9)
    assert record["few"]["ndcg@10"][place] == pytest.approx(np.mean(gains), abs=1e-6)
    assert record["few"]["share_of_top_ten"][place] == pytest.approx(np.mean(first), abs=1e-6)


def test_what_is_wanted_more_often_becomes_longer(world: World) -> None:
    rng = np.random.default_rng(1)
    few = np.flatnonzero(~world.warm & (world.counts > 0))
    seldom = np.concatenate([few[:12], rng.choice(np.flatnonzero(world.warm), 388)])
    often = np.concatenate([np.resize(few, 200), rng.choice(np.flatnonzero(world.warm), 200)])
    lengths = [calibration(world, targets).run()[0].few_length for targets in (seldom, often)]
    assert lengths[0] < lengths[1] == 1


def test_without_targets_there_is_a_default(world: World) -> None:
    imputation, record = calibration(world, np.zeros(0, dtype=np.int64)).run()
    assert (imputation.new_length, imputation.few_length, record["new"], record["few"]) == (0.7, 0.7, {}, {})


def test_co_occurrence_of_pretended_new_items_is_removed() -> None:
    entries = [(np.array([1, 2], np.int32), np.array([0.5, 0.25], np.float16)) for _ in range(3)]
    entries[1] = (np.array([0, 2], np.int32), entries[1][1])
    entries[2] = (np.array([0, 1], np.int32), entries[2][1])
    weights = ListWeights(np.ones(1, np.float32), {CO: 1.0, WORDS: 1.0})
    lists = ItemLists(3, (compressed(CO, entries), compressed(WORDS, entries)), weights)
    co, words = without_co_occurrence(lists, np.array([False, True, False])).lists
    assert [co.of(row)[0].tolist() for row in range(3)] == [[2], [], [0]]
    assert [words.of(row)[0].tolist() for row in range(3)] == [[1, 2], [0, 2], [0, 1]]
