"""Rows of runs whose item-to-item lists are served, and what is said where an encoder adds nothing to them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from index.lists.item_lists import ItemLists, ListWeights
from training.data.dataset import Dataset
from training.errors import EvaluationError
from training.evaluation.evaluate import LISTS_ALONE, SERVED, evaluate_run, rankers
from training.evaluation.fitted_run import FittedRun
from training.evaluation.shortfalls import shortfalls
from training.ranking.metrics import Ranks
from training.ranking.ranking import TargetRanks
from training.ranking.table import Table

Run = tuple[Path, dict[str, Any]]
Weigh = Callable[..., FittedRun]


@pytest.fixture
def weigh(ring_run: Run) -> Weigh:
    """The ring's run with other weights of its lists."""

    def make(**weights: float) -> FittedRun:
        fitted = FittedRun.load(ring_run[0] / "encoder")
        assert fitted.lists is not None
        recency = np.array([1.0, 0.5], np.float32)
        lists = fitted.lists.weighed(ListWeights(recency, weights))
        return FittedRun(fitted.table, fitted.encoder, fitted.record, lists, ListWeights(recency, {"words": 1.0}))

    return make


def test_there_is_a_row_without_each_list_and_one_of_the_lists_alone(weigh: Weigh, ring_dataset: Dataset) -> None:
    fitted = weigh(co=0.5, words=0.2)
    split = fitted.split(ring_dataset)
    systems = rankers(fitted, split)
    named = ["served encoder", "encoder alone", "without co", "without words", "lists alone", "text only", "image only"]
    assert [name for name in systems if name in named] == named
    (table,) = evaluate_run(split, systems)
    assert table.row(SERVED).values["ndcg@10"] > 0.9


def test_what_is_served_is_the_slots_with_their_lists(weigh: Weigh, ring_dataset: Dataset) -> None:
    fitted = weigh(co=0.5, words=0.2)
    systems = rankers(fitted, fitted.split(ring_dataset))
    history = np.array([4, 2, 7])
    scores = {name: ranker.scores([history])[0] for name, (ranker, _) in systems.items()}
    assert fitted.lists is not None
    parts = {}
    for item_list, weight in zip(fitted.lists.lists, fitted.lists.weights.weights.values(), strict=True):
        part = np.zeros(12)
        for item, recency in ((7, 1.0), (2, 0.5)):
            rows, values = item_list.of(item)
            part[rows] += weight * recency * values.astype(np.float64)
        parts[item_list.name] = part
    assert (parts["co"] > 0).any()
    alone = scores["encoder alone"]
    np.testing.assert_allclose(scores[SERVED], alone + parts["co"] + parts["words"], atol=1e-6)
    np.testing.assert_allclose(scores["without co"], alone + parts["words"], atol=1e-6)
    np.testing.assert_allclose(scores["without words"], alone + parts["co"], atol=1e-6)
    np.testing.assert_allclose(scores[LISTS_ALONE], parts["words"] / 0.2, atol=1e-6)


def test_one_slot_only_counts_the_lists_of_that_slot(weigh: Weigh, ring_dataset: Dataset) -> None:
    split = weigh().split(ring_dataset)
    bare, listed = rankers(weigh(), split), rankers(weigh(co=0.5, words=0.2), split)
    words = rankers(weigh(words=0.2), split)
    history = [np.array([4, 2, 7])]
    added = {name: listed[name][0].scores(history) - bare[name][0].scores(history) for name in bare}
    by_words = words[SERVED][0].scores(history) - bare[SERVED][0].scores(history)
    assert by_words.any()
    np.testing.assert_allclose(added["text only"], by_words, atol=1e-6)
    np.testing.assert_allclose(added["text + image only"], by_words, atol=1e-6)
    assert not added["image only"].any()
    np.testing.assert_allclose(added["behaviour only"] + by_words, added[SERVED], atol=1e-6)


def test_a_slot_with_a_list_has_a_row_without_it(weigh: Weigh, ring_dataset: Dataset) -> None:
    split = weigh().split(ring_dataset)
    bare, listed = rankers(weigh(), split), rankers(weigh(co=0.5, words=0.2), split)
    names = [name for name in listed if name.endswith(", without lists")]
    assert names == [f"{slots} only, without lists" for slots in ("text", "behaviour", "text + image")]
    history = [np.array([4, 2, 7])]
    for name in names:
        alone = bare[name.removesuffix(", without lists")]
        np.testing.assert_array_equal(listed[name][0].scores(history), alone[0].scores(history))
        np.testing.assert_array_equal(listed[name][1], alone[1])
    assert not [name for name in bare if name.endswith(", without lists")]


def test_behaviour_weight_0_is_what_a_request_with_that_weight_gets(weigh: Weigh, ring_dataset: Dataset) -> None:
    fitted = weigh(co=0.5, words=0.2)
    split, history = fitted.split(ring_dataset), np.array([4, 2, 7])
    ranker, findable = rankers(fitted, split)["behaviour weight 0"]
    vectors, behaviour = fitted.table.vectors.astype(np.float32), fitted.table.layout.slice("behaviour")
    query = fitted.encoder.encode([vectors[history[-5:]]])[0]
    query[behaviour] = 0
    words = rankers(weigh(words=0.2), split)[SERVED][0].scores([history])[0]
    words -= rankers(weigh(), split)[SERVED][0].scores([history])[0]
    assert findable.all()
    pictures = vectors[:, fitted.table.layout.slice("image")].any(axis=1)
    assert not pictures.all()
    scales = np.where(pictures, 1, np.sqrt(4 / 3))  # two slots and one of them counts, in place of three and two
    np.testing.assert_allclose(ranker.scores([history])[0], vectors @ query * scales + words, atol=1e-5)


def test_behaviour_weight_0_ranks_items_with_and_without_behaviour_alike(weigh: Weigh, ring_dataset: Dataset) -> None:
    fitted = weigh()
    layout, vectors = fitted.table.layout, fitted.table.vectors.astype(np.float32)
    blocks = {name: vectors[:, layout.slice(name)].copy() for name in layout.names}
    for name, block in blocks.items():
        block[3] = 0 if name == "behaviour" else block[5]
    lacking = replace(fitted, table=replace(fitted.table, vectors=layout.stack(blocks), missing=None))
    ranker, _ = rankers(lacking, fitted.split(ring_dataset))["behaviour weight 0"]
    scores = ranker.scores([np.array([4, 2, 7])])[0]
    assert scores[3] == pytest.approx(scores[5], abs=1e-6)
    assert scores[5] != 0


def test_without_weights_there_are_no_such_rows(weigh: Weigh, ring_dataset: Dataset) -> None:
    fitted = weigh()
    systems = rankers(fitted, fitted.split(ring_dataset))
    assert "encoder alone" not in systems
    assert not [name for name in systems if name.startswith("without")]


def test_a_run_of_an_earlier_version_has_no_lists(ring_run: Run, ring_dataset: Dataset, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(ring_run[0] / "encoder", tmp_path / "encoder"))
    shutil.rmtree(directory / "lists")
    record = json.loads((directory / "fit.json").read_text())
    del record["lists"]
    del record["config"]["list_neighbours"], record["config"]["list_history"]
    (directory / "fit.json").write_text(json.dumps(record))
    fitted = FittedRun.load(directory)
    assert fitted.lists is None
    assert LISTS_ALONE not in rankers(fitted, fitted.split(ring_dataset))


@pytest.mark.parametrize("damage", ["no lists", "a row too large", "no weights"])
def test_damaged_lists_are_refused(ring_run: Run, tmp_path: Path, damage: str) -> None:
    directory = Path(shutil.copytree(ring_run[0] / "encoder", tmp_path / "encoder"))
    if damage == "no lists":
        shutil.rmtree(directory / "lists")
    elif damage == "a row too large":
        rows = np.load(directory / "lists" / "co-rows.npy")
        rows[0] = 12
        (directory / "lists" / "co-rows.npy").unlink()
        np.save(directory / "lists" / "co-rows.npy", rows)
    else:
        record = json.loads((directory / "fit.json").read_text())
        del record["lists"]["alone"]
        (directory / "fit.json").write_text(json.dumps(record))
    with pytest.raises(EvaluationError, match="fit-encoder"):
        FittedRun.load(directory)


def made_table(**ranks: list[float]) -> Table:
    rankings = {}
    for name, values in ranks.items():
        full = np.array(values * 40, dtype=np.float64)
        rankings[name.replace("_", " ")] = TargetRanks(
            Ranks.of_means(full), Ranks.of_means(full), np.full((len(full), 10), -1, dtype=np.int64)
        )
    return Table.of("test", rankings, 50, seed=0)


def test_nothing_is_said_where_what_is_served_is_best() -> None:
    assert shortfalls(made_table(popularity=[5, 30], served_encoder=[0, 1], lists_alone=[1, 2])) == []
    assert shortfalls(made_table(popularity=[5, 30], served_encoder=[0, 1])) == []


def test_an_encoder_that_adds_nothing_to_the_lists_is_named() -> None:
    (line,) = shortfalls(made_table(popularity=[40.0], served_encoder=[3.0], lists_alone=[1.0]))
    assert line == ("test: the encoder adds nothing to the lists, NDCG@10 0.4307 against 0.6309, 0.68 × [0.68, 0.68]")
    (line,) = shortfalls(made_table(popularity=[40.0, 40.0, 40.0], served_encoder=[0, 3, 2], lists_alone=[3, 2, 0.1]))
    assert "within chance" in line


@pytest.mark.parametrize(("repeats", "excluded", "said"), [(40, True, True), (39, True, False), (40, False, False)])
def test_that_every_target_is_a_miss_is_said_alone(repeats: int, excluded: bool, said: bool) -> None:
    table = made_table(popularity=[1.0], served_encoder=[2.0])
    lines = shortfalls(replace(table, repeats=repeats, exclude_seen=excluded))
    assert len(lines) == 1
    assert lines[0].startswith("test: every target is an item that its user had before; ") is said


def test_a_row_below_its_baseline_is_named() -> None:
    rows = {"popularity": [1.0], "TF-IDF_neighbours": [2.0], "served_encoder": [2.0], "text_only": [4.0]}
    lines = shortfalls(made_table(**rows))
    assert [line.split(",")[0] for line in lines] == [
        "test: served encoder ranks below popularity",
        "test: text only ranks below TF-IDF neighbours",
    ]


@pytest.mark.parametrize("other", ["item-mean", "item-mean,_unit_slots"])
def test_what_is_served_is_compared_with_the_means_of_its_own_slots(other: str) -> None:
    (line,) = shortfalls(made_table(popularity=[9.0], served_encoder=[2.0], **{other: [1.0]}))
    assert line.startswith(f"test: served encoder ranks below {other.replace('_', ' ')}, NDCG@10 0.5000 against 0.6309")


def test_what_is_served_is_compared_with_rows_of_other_runs_and_with_none_of_its_own() -> None:
    rows = {"popularity": [9.0], "served_encoder": [2.0], "encoder_alone": [1.0], "SASRec": [0.0], "BM25": [5.0]}
    assert shortfalls(made_table(**rows)) == []
    (line,) = shortfalls(replace(made_table(**rows), added=("SASRec", "BM25")))
    assert line.startswith("test: served encoder ranks below SASRec, NDCG@10 0.5000 against 1.0000")


def test_the_command_prints_it(ring_run: Run, ring_directory: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(ring_run[0], tmp_path / "run"))
    lists = ItemLists.load(run / "encoder" / "lists", 12)
    lists.weighed(ListWeights(lists.weights.recency, {"words": 100.0})).save(tmp_path / "lists")
    shutil.rmtree(run / "encoder" / "lists")
    (tmp_path / "lists").rename(run / "encoder" / "lists")
    result = CliRunner().invoke(app, ["evaluate", str(ring_directory), "--run", str(run)])
    assert result.exit_code == 0, result.output
    assert "without words" in result.output
    assert "note: test:" in result.output
    assert json.loads((run / "evaluation" / "test.json").read_text())["lists"] == {"words": 100.0}
