"""Lists of a fitted run: what is written, what is recorded, and that a killed fit makes the same ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.items.slots import Slot, SlotLayout
from index.lists.item_lists import ItemLists
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset
from training.data.sequences import Sequences, leave_one_out
from training.embedding.store import Embeddings
from training.encoder import job
from training.encoder.job import fit_run
from training.lists.fit_lists import fit_lists
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
    record = fit_lists(tmp_path, nothing, layout, texts, {}, parts, config)
    assert record["co_backward"] == 0.3
    assert record["chosen"]["ndcg@10"] == record["alone"]["ndcg@10"] == 1
    rows, _ = ItemLists.load(tmp_path / "lists", 12).lists[0].of(4)
    assert rows[0] == 5


def test_a_fit_that_is_killed_while_lists_are_made_goes_on_and_makes_the_same(
    ring_run: Run, ring_dataset: Dataset, small_config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, directory = Embeddings.load(ring_run[0] / "embeddings"), tmp_path / "encoder"

    class Killed(BaseException):
        pass

    def kill(step: str, _done: int, _all: int) -> None:
        if step == "list look":
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


def test_without_neighbours_no_list_is_made_and_earlier_ones_are_removed(
    ring_run: Run, ring_dataset: Dataset, small_config: EncoderConfig, tmp_path: Path
) -> None:
    embeddings, config = Embeddings.load(ring_run[0] / "embeddings"), small_config.model_copy(update={"epochs": 1})
    fit_run(ring_dataset, embeddings, config, tmp_path)
    assert (tmp_path / "lists").is_dir()
    record = fit_run(ring_dataset, embeddings, config.model_copy(update={"list_neighbours": 0}), tmp_path)
    assert record["lists"] == json.loads((tmp_path / "fit.json").read_text())["lists"] == {}
    assert not (tmp_path / "lists").exists()


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
    assert fit_lists(tmp_path, nothing, layout, [None, "a", "b"], {}, parts, EncoderConfig()) == {}
    assert not (tmp_path / "lists").exists()
