"""Lists of a fitted run: what is written, what is recorded, and that a killed fit makes the same ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from index.items.slots import Slot, SlotLayout
from index.lists.item_lists import ItemLists
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset
from training.data.sequences import Sequences, leave_one_out, popularity
from training.embedding.store import Embeddings
from training.encoder import job
from training.encoder.fit import fit
from training.encoder.job import fit_run
from training.encoder.slot_model import SlotModel
from training.lists.fit_lists import ServedValidation, fit_lists, make_lists
from training.lists.list_ranker import ListRanker
from training.lists.validation_pool import ValidationPool
from training.lists.weights import best_figures
from training.ranking import metrics
from training.ranking.ranking import rank_targets
from training.ranking.slot_ranker import SlotRanker

Make = Callable[[list[list[int]]], Sequences]
Run = tuple[Path, dict[str, Any]]


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_a_run_holds_the_lists_that_its_record_describes(ring_run: Run) -> None:
    run, record = ring_run
    lists = ItemLists.load(run / "encoder" / "lists", 12)
    assert lists.names == ("co", "words", "look")
    described = record["lists"]
    assert described["neighbours"] == 50
    assert described["entries"] == {part.name: len(part.rows) for part in lists.lists}
    assert described["chosen"]["weights"] == lists.weights.weights
    assert described["chosen"]["recency"] == lists.weights.recency.tolist()
    assert len(lists.weights.recency) == 10
    best = record["log"][record["best_epoch"]]
    assert described["chosen"]["ndcg@10_without_lists"] == pytest.approx(best["ndcg@10"], abs=1e-6)
    assert described["chosen"]["ndcg@10"] >= 0.99 * best["ndcg@10"]
    served = max(record["log"], key=lambda line: float(line["served_ndcg@10"]))
    assert best["served_ndcg@10"] >= served["served_ndcg@10"] - served["served_error"]
    assert described["chosen"]["ndcg@10"] >= 0.99 * best["served_ndcg@10"]
    assert described["validation_users"] == 40


def test_directed_co_occurrence_is_chosen_where_order_tells_more(
    ring_dataset: Dataset, make_sequences: Make, tmp_path: Path
) -> None:
    """Everyone walks the same way round, so what came before is never what comes next."""
    texts = ring_dataset.texts()
    walks = [[(start + step) % 12 for step in range(6)] for start in range(12)] * 2
    parts = leave_one_out(make_sequences(walks))
    layout, config = (
        SlotLayout((Slot("behaviour", 2),)),
        EncoderConfig(list_neighbours=3, list_history=1, exclude_seen=False),
    )
    nothing = SlotRanker(np.ones((12, 2), np.float32), lambda rows: np.zeros((len(rows), 2), np.float32), 1)
    made = make_lists(layout, texts, {}, nothing.findable, parts, config)
    record = fit_lists(tmp_path, nothing, made, config)
    assert record["co_backward"] == 0.3
    assert record["chosen"]["ndcg@10"] == record["alone"]["ndcg@10"] == 1
    rows, _ = ItemLists.load(tmp_path / "lists", 12).lists[0].of(4)
    assert rows[0] == 5


@pytest.mark.parametrize(
    ("served", "alone", "error", "best"),
    [
        ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3], 0.01, 0),  # the slots rise, what is served falls
        ([0.5, 0.495, 0.48], [0.1, 0.2, 0.3], 0.01, 1),  # within one standard error the slots decide
        ([0.4, 0.5, 0.41], [0.3, 0.1, 0.2], 0.01, 1),  # the epoch that was kept is not good any more
        ([0.4, 0.4, 0.4], [0.1, 0.1, 0.1], 0.01, 0),  # of equals the first
    ],
)
def test_the_epoch_is_chosen_by_what_is_served(
    served: list[float],
    alone: list[float],
    error: float,
    best: int,
    ring_embeddings: Embeddings,
    small_config: EncoderConfig,
    make_sequences: Make,
    tmp_path: Path,
) -> None:
    parts = leave_one_out(make_sequences([[(start + step) % 12 for step in range(6)] for start in range(12)] * 2))
    config = small_config.model_copy(update={"epochs": 3})
    torch.manual_seed(0)
    model = SlotModel(ring_embeddings, popularity(parts.train, 12), config)
    figures = [
        {"ndcg@10": one, "hr@10": 0.5, "served_ndcg@10": other, "served_error": error}
        for one, other in zip(alone, served, strict=True)
    ]

    class Planned(ServedValidation):
        def __init__(self) -> None:
            self.left = list(figures)

        def figures(self, ranker: SlotRanker) -> dict[str, float]:
            return self.left.pop(0)

    log = fit(model, parts.train, parts.validation, config, tmp_path, fingerprint="x", served=Planned())
    assert (len(log.epochs), log.best_epoch) == (3, best)


def test_what_is_served_is_measured_as_the_final_choice_measures_it(
    ring_run: Run, ring_dataset: Dataset, make_sequences: Make
) -> None:
    embeddings, texts = Embeddings.load(ring_run[0] / "embeddings"), ring_dataset.texts()
    parts = leave_one_out(make_sequences([[(start + step) % 12 for step in range(6)] for start in range(12)] * 2))
    layout, config = SlotLayout((Slot("text", 2), Slot("behaviour", 2))), EncoderConfig(list_neighbours=3)
    noise = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    ranker = SlotRanker(noise, lambda rows: np.stack([row.mean(axis=0) for row in rows]), 10)
    made = make_lists(layout, texts, embeddings.vectors, ranker.findable, parts, config)
    assert made is not None
    figures = ServedValidation(made, config).figures(ranker)
    some = rank_targets(ranker, parts.validation, ranker.findable).full
    assert figures["ndcg@10"] == pytest.approx(metrics.gains(some, 10).mean())
    assert figures["hr@10"] == pytest.approx(metrics.hits(some, 10).mean())
    directed = made.directed_alone.ndcg > made.symmetric_alone.ndcg
    lists, alone = (made.directed, made.directed_alone) if directed else (made.symmetric, made.symmetric_alone)
    pool = ValidationPool(ranker, made.validation, ranker.findable, lists, config.list_history, exclude_seen=True)
    expected = best_figures(pool, float(alone.weights.recency[1]))
    assert figures["served_ndcg@10"] == expected["served_ndcg@10"] > figures["ndcg@10"]
    whole = ListRanker(ItemLists(12, tuple(lists.values()), alone.weights), ranker)
    gains = metrics.gains(rank_targets(whole, parts.validation, ranker.findable).full, 10)
    columns = [alone.weights.weights[name] for name in pool.names]
    error = pool.scored(float(alone.weights.recency[1])).standard_error(columns)
    assert error == pytest.approx(gains.std() / np.sqrt(len(gains)), rel=1e-5)


@pytest.mark.usefixtures("quick_export")
def test_a_fit_that_is_killed_while_lists_are_weighed_goes_on_and_makes_the_same(
    ring_run: Run, ring_dataset: Dataset, small_config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, directory = Embeddings.load(ring_run[0] / "embeddings"), tmp_path / "encoder"

    class Killed(BaseException):
        pass

    def kill(step: str, _done: int, _all: int) -> None:
        if step == "weights of the lists":
            raise Killed

    with pytest.raises(Killed):
        fit_run(ring_dataset, embeddings, small_config, directory, listed=kill)
    assert not (directory / "fit.json").exists()
    monkeypatch.setattr(job, "fit", _no_epoch(job.fit))
    record = fit_run(ring_dataset, embeddings, small_config, directory)
    assert files(directory / "lists") == files(ring_run[0] / "encoder" / "lists")
    assert record["lists"] == ring_run[1]["lists"]


def _no_epoch(fit: Any) -> Any:
    """The fit, but no epoch may be trained."""

    def resumed(*arguments: Any, **more: Any) -> Any:
        def report(line: Any) -> None:
            pytest.fail(f"epoch {line['epoch']} was trained again")

        return fit(*arguments, **more | {"report": report})

    return resumed


@pytest.mark.usefixtures("quick_export")
def test_without_neighbours_no_list_is_made_and_earlier_ones_are_removed(
    ring_run: Run, ring_dataset: Dataset, small_config: EncoderConfig, tmp_path: Path
) -> None:
    embeddings, config = Embeddings.load(ring_run[0] / "embeddings"), small_config.model_copy(update={"epochs": 1})
    fit_run(ring_dataset, embeddings, config, tmp_path)
    assert (tmp_path / "lists").is_dir()
    record = fit_run(ring_dataset, embeddings, config.model_copy(update={"list_neighbours": 0}), tmp_path)
    assert record["lists"] == json.loads((tmp_path / "fit.json").read_text())["lists"] == {}
    assert not (tmp_path / "lists").exists()


@pytest.mark.usefixtures("quick_export")
def test_a_list_whose_slot_the_run_lacks_is_not_made(
    ring_run: Run, ring_dataset: Dataset, small_config: EncoderConfig, tmp_path: Path
) -> None:
    config = small_config.model_copy(update={"epochs": 1, "slots": ("text",)})
    record = fit_run(ring_dataset, Embeddings.load(ring_run[0] / "embeddings"), config, tmp_path)
    assert list(record["lists"]["entries"]) == ["words"]


def test_nothing_to_compare_makes_no_lists(make_sequences: Make, tmp_path: Path) -> None:
    parts = leave_one_out(make_sequences([[0, 0, 0, 1]] * 4))
    layout = SlotLayout((Slot("text", 2), Slot("behaviour", 2)))
    nothing = SlotRanker(np.ones((3, 4), np.float32), lambda rows: np.zeros((len(rows), 4), np.float32), 1)
    assert make_lists(layout, [None, "a", "b"], {}, nothing.findable, parts, EncoderConfig()) is None
    assert fit_lists(tmp_path, nothing, None, EncoderConfig()) == {}
    assert not (tmp_path / "lists").exists()
