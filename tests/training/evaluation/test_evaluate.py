import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index.items.item_table import ItemTable
from index.search.encoder import OnnxSequenceEncoder
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import Sequences, Targets, last_item
from training.embedding.baseline_features import embed_without_vlm
from training.encoder.job import fit_run, split_dataset
from training.errors import EvaluationError
from training.evaluation.evaluate import (
    SERVED,
    TargetSet,
    evaluate_run,
    evaluate_targets,
    fresh_targets,
    rank_sets,
    rankers,
)
from training.evaluation.fitted_run import FittedRun
from training.ranking.ranking import mask_histories, rank_targets, sample_negatives

Run = tuple[Path, dict[str, Any]]


class Fixed:
    """Scores that do not depend on the history."""

    def __init__(self, scores: Sequence[float]) -> None:
        self._scores = np.array(scores, dtype=np.float32)

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        return np.tile(self._scores, (len(histories), 1))


def targets(pairs: list[tuple[list[int], int]]) -> Targets:
    histories = [np.array(history, dtype=np.int64) for history, _ in pairs]
    return Targets(histories, np.array([t for _, t in pairs], dtype=np.int64), [f"u{n}" for n in range(len(pairs))])


def test_a_target_of_the_history_is_a_miss_because_the_service_leaves_it_out() -> None:
    everything = np.ones(5, dtype=np.bool_)
    ranker = Fixed([9, 8, 7, 6, 5])
    some, negatives = targets([([0, 1], 3), ([0, 3], 3), ([4], 4), ([2], 0)]), np.array([[2], [2], [2], [1]])
    assert some.repeats.tolist() == [False, True, True, False]
    ranking = rank_targets(ranker, some, everything, negatives=negatives)
    np.testing.assert_array_equal(ranking.full.means, [1, np.inf, np.inf, 0])
    np.testing.assert_array_equal(ranking.sampled.means, [1, np.inf, np.inf, 0])
    assert set(ranking.lists[0].tolist()) == {2, 3, 4, -1}
    assert set(ranking.lists[1].tolist()) == {1, 2, 4, -1}


def test_where_seen_items_are_answered_nothing_is_masked() -> None:
    some = targets([([0, 1], 3), ([0, 3], 3), ([4], 4), ([2], 0)])
    ranking = rank_targets(Fixed([9, 8, 7, 6, 5]), some, np.ones(5, dtype=np.bool_), exclude_seen=False)
    np.testing.assert_array_equal(ranking.full.means, [3, 3, 4, 0])
    assert set(ranking.lists[0].tolist()) == {0, 1, 2, 3, 4, -1}


def test_repeats_are_counted_and_there_are_figures_without_them() -> None:
    """80 users as in a shop for coffee: 60 buy the first item again and again, 20 go on to the second."""
    some = targets([([0, 0, 0], 0)] * 60 + [([0, 2], 1)] * 20)
    systems = {"popularity": (Fixed([3, 2, 1, 0]), np.ones(4, dtype=np.bool_))}
    (ranked,) = rank_sets([TargetSet("test", some, 80)], systems)
    (new,) = ranked.without_repeats()
    served, without = ranked.measured(), new.measured()
    assert (served.repeats, served.users, served.exclude_seen) == (60, 80, True)
    assert (without.name, without.repeats, without.users, without.whole) == ("test without repeats", 0, 20, 20)
    assert served.rows[0].values["hr@10"] == 0.25
    assert without.rows[0].values["hr@10"] == without.rows[0].values["ndcg@10"] == 1
    assert without.rows[0].values["hr@10/100"] == 1
    (again,) = rank_sets([TargetSet("test", some, 80)], systems, exclude_seen=False)
    assert again.measured().rows[0].values["hr@10"] == 1
    assert again.measured().as_json()["exclude_seen"] is False
    (all_new,) = rank_sets([TargetSet("test", some.only(~some.repeats), 20)], systems)
    assert all_new.without_repeats() == ()
    (none_new,) = rank_sets([TargetSet("test", some.only(some.repeats), 60)], systems)
    assert none_new.without_repeats() == ()


def test_items_that_cannot_be_found_neither_compete_nor_hit() -> None:
    findable = np.array([False, True, True, False])
    ranking = rank_targets(Fixed([9, 8, 7, 6]), targets([([1], 2), ([1], 3)]), findable)
    np.testing.assert_array_equal(ranking.full.means, [0, np.inf])
    assert set(ranking.lists.ravel().tolist()) == {2, -1}


def test_negatives_are_untouched_unique_and_uniform() -> None:
    some = targets([([0, 3, 3], 5)] * 4000)
    drawn = sample_negatives(some, 9, 3, seed=0)
    assert set(drawn.ravel().tolist()) == {1, 2, 4, 6, 7, 8}
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=9)[[1, 2, 4, 6, 7, 8]] / 12_000, 1 / 6, atol=0.015)
    np.testing.assert_array_equal(drawn, sample_negatives(some, 9, 3, seed=0))
    few = sample_negatives(targets([([0, 1], 2)]), 4, 3, seed=0)
    assert few.tolist() == [[3, -1, -1]]


def test_the_sampled_protocol_ranks_among_the_negatives_alone() -> None:
    negatives = np.array([[1, 4, -1]])
    ranking = rank_targets(Fixed([9, 8, 7, 6, 5]), targets([([0], 3)]), np.ones(5, dtype=np.bool_), negatives=negatives)
    assert ranking.full.means.tolist() == [2]
    assert ranking.sampled.means.tolist() == [1]


def test_blocks_do_not_change_a_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    some = targets([(rng.integers(0, 20, 4).tolist(), int(rng.integers(20))) for _ in range(50)])
    ranker, everything = Fixed(rng.standard_normal(20)), np.ones(20, dtype=np.bool_)
    done: list[int] = []
    whole = rank_targets(ranker, some, everything)
    monkeypatch.setattr("training.ranking.ranking._FLOATS_PER_BLOCK", 140)
    again = rank_targets(ranker, some, everything, advance=done.append)
    np.testing.assert_array_equal(again.full.means, whole.full.means)
    assert sum(done) == 50
    assert max(done) == 7


def test_the_mask_of_repeated_items() -> None:
    mask = mask_histories([np.array([1, 1]), np.array([0])], np.array([True, True, False]))
    np.testing.assert_array_equal(mask, [[True, False, False], [False, True, False]])


def test_a_table_by_hand() -> None:
    everything = np.ones(40, dtype=np.bool_)
    some = targets([([0], row) for row in (1, 5, 12, 35)])
    systems = {
        "popularity": (Fixed([-row for row in range(40)]), everything),
        "oracle of 12": (Fixed([float(row == 12) for row in range(40)]), everything),
    }
    table = evaluate_targets("test", systems, some)
    base, oracle = table.rows
    # Ranks with the history (item 0) masked: 0, 4, 11, 34.
    assert base.values["hr@10"] == 0.5
    assert base.values["hr@20"] == 0.75
    assert base.values["ndcg@10"] == pytest.approx((1 + 1 / math.log2(6)) / 4)
    assert base.values["ndcg@20"] == pytest.approx((1 + 1 / math.log2(6) + 1 / math.log2(13)) / 4)
    assert base.values["hr@20/100"] == 0.75  # fewer than 100 others: the same as full ranking
    assert base.values["coverage@10"] == 10 / 40
    # The others tie at 0: 1 ahead and 37 tied of 39, so any of the positions 1 … 38 for all but item 12.
    tied = [sum(1 / math.log2(place + 2) for place in range(1, k)) / 38 for k in (10, 20)]
    assert oracle.values["hr@10"] == pytest.approx((1 + 3 * 9 / 38) / 4)
    assert oracle.values["ndcg@10"] == pytest.approx((1 + 3 * tied[0]) / 4)
    assert oracle.values["ndcg@20"] == pytest.approx((1 + 3 * tied[1]) / 4)
    assert oracle.ratios["hr@10"].ratio == pytest.approx((1 + 3 * 9 / 38) / 2)
    assert oracle.ratios["hr@10"].low <= 0.5 <= oracle.ratios["hr@10"].high
    assert base.ratios["ndcg@10"].ratio == base.ratios["ndcg@10"].high == 1
    assert table.row("popularity") is base
    with pytest.raises(EvaluationError, match="no row 'other'"):
        table.row("other")


def test_a_score_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="finite"):
        evaluate_targets("t", {"x": (Fixed([0, math.nan]), np.ones(2, dtype=np.bool_))}, targets([([0], 1)]))


def test_no_targets_are_an_error() -> None:
    with pytest.raises(EvaluationError, match="fresh users: nothing to evaluate"):
        evaluate_targets("fresh users", {"x": (Fixed([0, 1]), np.ones(2, dtype=np.bool_))}, targets([]))
    with pytest.raises(EvaluationError, match="nothing to rank"):
        rank_targets(Fixed([0, 1]), targets([]), np.ones(2, dtype=np.bool_))


def test_the_served_row_is_what_serving_computes(ring_run: Run, ring_dataset: Dataset) -> None:
    """Recomputed here with the bare ONNX encoder, plain inner products and a sort."""
    run = ring_run[0] / "encoder"
    fitted = FittedRun.load(run)
    split = fitted.split(ring_dataset)
    (table,) = evaluate_run(split, rankers(fitted, split))
    assert table.name == "test"
    assert (table.users, table.items) == (40, 12)

    encoder = OnnxSequenceEncoder(run / "encoder.onnx")
    stored = ItemTable.load(run / "table").vectors.astype(np.float32)
    hits = []
    for history, target in zip(split.parts.test.histories, split.parts.test.targets, strict=True):
        scores = stored @ encoder.encode([stored[history[-5:]]])[0]
        scores[np.setdiff1d(history, [target])] = -np.inf
        hits.append(1 / np.log2(2 + int((scores > scores[target]).sum())))
    assert table.row(SERVED).values["ndcg@10"] == pytest.approx(np.mean(hits))
    assert table.row(SERVED).values["hr@10"] == 1.0  # 4 items are left of 12
    assert table.row(SERVED).values["ndcg@10"] > 0.9 > table.row("popularity").values["ndcg@10"]


def test_every_row_is_there(ring_run: Run, ring_dataset: Dataset) -> None:
    fitted = FittedRun.load(ring_run[0] / "encoder")
    split = fitted.split(ring_dataset)
    (table,) = evaluate_run(split, rankers(fitted, split), on_validation=True)
    assert table.name == "validation"
    assert [row.name for row in table.rows] == [
        "popularity",
        "co-occurrence",
        "item-mean",
        "item-mean, unit slots",
        "served encoder",
        "lists alone",
        "text only",
        "image only",
        "behaviour only",
        "text + image only",
        "behaviour weight 0",
    ]
    written = json.loads(json.dumps(table.as_json(), allow_nan=False))
    assert written["rows"][4]["ndcg@10"] == table.row(SERVED).values["ndcg@10"]
    assert len(written["rows"][4]["ratio_to_popularity"]["hr@10"]) == 3


def test_one_slot_only_means_zero_elsewhere_on_both_sides(ring_run: Run, ring_dataset: Dataset) -> None:
    fitted = FittedRun.load(ring_run[0] / "encoder")
    layout, vectors = fitted.table.layout, np.asarray(fitted.table.vectors, dtype=np.float32)
    systems = rankers(fitted, fitted.split(ring_dataset))
    history = np.array([0, 1, 3])
    image = vectors[:, layout.slice("image")]
    norms = np.linalg.norm(image, axis=1, keepdims=True)
    only = np.zeros_like(vectors)
    only[:, layout.slice("image")] = np.divide(image, norms, out=np.zeros_like(image), where=norms > 0)
    ranker, findable = systems["image only"]
    np.testing.assert_array_equal(findable, norms[:, 0] > 0)
    np.testing.assert_allclose(ranker.scores([history])[0], only @ fitted.encoder.encode([only[history]])[0], atol=1e-5)


def test_fresh_users(ring_run: Run, ring_dataset: Dataset, ring_directory: Path) -> None:
    fitted = FittedRun.load(ring_run[0] / "encoder")
    split = fitted.split(ring_dataset)
    others = load_dataset(ring_directory, interactions=ring_directory / "fresh.csv")
    fresh = last_item(Sequences.from_interactions(others.interactions, ring_dataset.item_ids()))
    (table,) = evaluate_run(split, rankers(fitted, split), fresh=fresh)
    assert (table.name, table.users) == ("fresh users", 6)
    assert table.row(SERVED).values["ndcg@10"] > 0.9


@pytest.mark.usefixtures("quick_export")
def test_cold_items_are_measured_on_all_their_events(
    ring_dataset: Dataset, ring_directory: Path, small_config: EncoderConfig, tmp_path: Path
) -> None:
    config = small_config.model_copy(update={"cold_items": 0.3, "epochs": 1})
    fit_run(ring_dataset, embed_without_vlm(ring_dataset), config, tmp_path)
    fitted = FittedRun.load(tmp_path)
    split = fitted.split(ring_dataset)
    cold = np.flatnonzero(split.cold)
    assert 0 < len(cold) < 12
    assert not fitted.table.popularity[cold].any()
    behaviour = fitted.table.vectors[:, fitted.table.layout.slice("behaviour")]
    assert not behaviour[cold].any()
    assert behaviour[~split.cold].any(axis=1).all()
    test, measured, among, mix = evaluate_run(split, rankers(fitted, split))
    assert (test.name, measured.name) == ("test", "cold items")
    assert (among.name, among.users, among.candidates) == ("cold items among cold", measured.users, len(cold))
    assert (mix.name, mix.users) == ("natural mix", test.users + measured.users)
    share = split.cold[split.sequences.rows].mean()
    for row in mix.rows:
        parts = [table.row(row.name).values for table in (test, measured)]
        expected = (1 - share) * parts[0]["ndcg@10"] + share * parts[1]["ndcg@10"]
        assert row.values["ndcg@10"] == pytest.approx(expected)
        assert 0 <= row.values["cold@10"] <= 1
        assert among.row(row.name).values["cold@10"] in {0.0, 1.0}
        assert among.row(row.name).values["ndcg@10"] >= measured.row(row.name).values["ndcg@10"]
    warm_first = sum(
        int(split.cold[row]) and place > 0 and bool((~split.cold[split.sequences.of(user)[:place]]).any())
        for user in range(40)
        for place, row in enumerate(split.sequences.of(user).tolist())
    )
    assert measured.users == warm_first
    further = load_dataset(ring_directory, interactions=ring_directory / "fresh.csv").interactions
    fresh = fresh_targets(further, ring_dataset.item_ids(), split)
    assert len(fresh) == 6
    assert not split.cold[np.concatenate([fresh.targets, *fresh.histories])].any(), "the natural mix counts them once"


def test_other_interactions_are_refused(ring_run: Run, ring_directory: Path) -> None:
    fitted = FittedRun.load(ring_run[0] / "encoder")
    other = load_dataset(ring_directory, interactions=ring_directory / "fresh.csv")
    with pytest.raises(EvaluationError, match="fitted on other items or interactions"):
        fitted.split(other)


def test_a_run_without_an_encoder_or_with_a_damaged_one_says_so(ring_run: Run, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="vlm2rec fit-encoder"):
        FittedRun.load(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(ring_run[0] / "encoder", copy)
    for name in ("encoder.onnx", "table/table.json", "fit.json"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:30])
        with pytest.raises(EvaluationError, match="cannot be read"):
            FittedRun.load(copy)
        (copy / name).write_bytes(whole)


def test_a_record_that_lacks_the_data_is_refused(ring_run: Run, ring_dataset: Dataset) -> None:
    fitted = FittedRun.load(ring_run[0] / "encoder")
    with pytest.raises(EvaluationError, match=r"fit\.json lacks 'data'"):
        FittedRun(fitted.table, fitted.encoder, {"config": {"cold_items": 0.0}}).split(ring_dataset)


def test_the_split_is_named_by_its_histories(ring_dataset: Dataset, ring_directory: Path, tmp_path: Path) -> None:
    whole = split_dataset(ring_dataset, 0.0)
    assert whole.fingerprint == split_dataset(ring_dataset, 0.0).fingerprint
    assert whole.fingerprint != split_dataset(ring_dataset, 0.5).fingerprint
    with (ring_directory / "interactions.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    (tmp_path / "fewer.csv").write_text("\n".join(",".join(row) for row in rows[:-1]), encoding="utf-8")
    fewer = load_dataset(ring_directory, interactions=tmp_path / "fewer.csv")
    assert whole.fingerprint != split_dataset(fewer, 0.0).fingerprint
