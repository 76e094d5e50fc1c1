"""The encoder that serves is fitted on every event; every figure stays that of the encoder before."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from index.items.eval_queries import EvaluationQueries
from index.items.item_table import ItemTable
from index.items.slots import BEHAVIOUR
from index.lists.item_lists import ItemLists
from index.search.encoder import OnnxSequenceEncoder
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset
from training.data.sequences import Sequences, popularity
from training.embedding.store import Embeddings
from training.encoder import job, refit
from training.encoder.encoder_files import served_directory
from training.encoder.fit import fit
from training.encoder.imputation import ImputationFit
from training.encoder.job import fit_run, split_dataset
from training.encoder.pytorch import TorchEncoder
from training.encoder.slot_model import SlotModel
from training.evaluation.evaluate import evaluate_run, rankers
from training.evaluation.fitted_run import FittedRun
from training.lists.build import co_occurrence_list
from training.ranking.baselines import CoOccurrence
from training.ranking.table import CO_OCCURRENCE

Run = tuple[Path, dict[str, Any]]


class Killed(BaseException):
    """Ends a fit as a signal would."""


@pytest.fixture(scope="module")
def config(small_config: EncoderConfig) -> EncoderConfig:
    return small_config.model_copy(update={"refit": True})


@pytest.fixture(scope="module")
def refitted(
    ring_run: Run, ring_dataset: Dataset, config: EncoderConfig, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The ring's run with a refit; never write into it."""
    run = tmp_path_factory.mktemp("refitted")
    shutil.copytree(ring_run[0] / "embeddings", run / "embeddings")
    return run, fit_run(ring_dataset, Embeddings.load(run / "embeddings"), config, run / "encoder")


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_what_is_measured_is_the_same_with_and_without_a_refit(
    ring_run: Run, refitted: Run, ring_dataset: Dataset
) -> None:
    one, two = (files(run / "encoder") for run, _ in (ring_run, refitted))
    assert {name for name in two if not name.startswith("served/")} == one.keys() - {"table/thumbnails.npy"}
    differing = {name for name in one.keys() & two.keys() if one[name] != two[name]}
    assert differing <= {"fit.json", "table/table.json"}  # the second says whether there are thumbnails
    records = [{**record, "seconds": 0} for _, record in (ring_run, refitted)]
    pair = records[1]["model"]["encoder"]
    assert records[1] | {"refit": None} == records[0] | {
        "refit": None,
        "config": records[0]["config"] | {"refit": True},
        "model": records[0]["model"] | {"encoder": pair},
    }
    tables = []
    for run, _ in (ring_run, refitted):
        fitted = FittedRun.load(run / "encoder")
        split = fitted.split(ring_dataset)
        (table,) = evaluate_run(split, rankers(fitted, split))
        tables.append([(row.name, row.values) for row in table.rows])
    assert tables[0] == tables[1]


def test_what_serves_counts_every_event(refitted: Run, ring_dataset: Dataset, config: EncoderConfig) -> None:
    run, record = refitted
    encoder = run / "encoder"
    every = split_dataset(ring_dataset, 0.0).sequences
    table, measured = ItemTable.load(encoder / "served/table"), ItemTable.load(encoder / "table")
    np.testing.assert_array_equal(table.popularity, popularity(every, 12))
    assert table.popularity.sum() == record["refit"]["events"] == 360
    assert measured.popularity.sum() == record["data"]["training_events"] == 280
    assert table.thumbnails is not None
    assert table.thumbnails.count == record["thumbnails"]["made"]
    served, fitted = (ItemLists.load(place / "lists", 12) for place in (encoder / "served", encoder))
    assert served.weights.weights == fitted.weights.weights == record["lists"]["chosen"]["weights"]
    np.testing.assert_array_equal(served.weights.recency, fitted.weights.recency)
    settings = {name[3:]: value for name, value in record["lists"].items() if name.startswith("co_")}
    expected = co_occurrence_list(every, 12, config.neighbours(12), **settings)
    for one, before in zip(served.lists, fitted.lists, strict=True):
        same = one.name != "co"
        np.testing.assert_array_equal(one.rows, before.rows if same else expected.rows)
        np.testing.assert_array_equal(one.similarities, before.similarities if same else expected.similarities)
    (counted,) = fitted.only(["co"]).lists
    assert counted.similarities.tolist() != expected.similarities.tolist()


def test_co_occurrence_counts_what_the_measured_encoder_was_fitted_on(refitted: Run, ring_dataset: Dataset) -> None:
    split = split_dataset(ring_dataset, 0.0)
    histories = split.parts.test.histories[:3]
    found = {}
    for served, events in ((False, split.parts.train), (True, split.sequences)):
        fitted = FittedRun.load(refitted[0] / "encoder", served=served)
        scores = rankers(fitted, split)[CO_OCCURRENCE][0].scores(histories)
        np.testing.assert_array_equal(scores, CoOccurrence(events, 12).scores(histories))
        found[served] = scores
    assert not np.array_equal(found[False], found[True])


def test_the_pair_is_named_and_the_served_encoder_is_that_of_its_weights(refitted: Run) -> None:
    run, record = refitted
    measured, served = record["model"]["encoder"]["hash"], record["model"]["encoder"]["served"]
    assert measured != served
    assert served_directory(run / "encoder", record) == run / "encoder/served"
    table = ItemTable.load(run / "encoder/served/table")
    assert table.model["encoder"] == {"hash": served, "measured": measured}
    assert ItemTable.load(run / "encoder/table").model["encoder"] == {"hash": measured}
    torch_encoder = TorchEncoder(run)
    assert torch_encoder.onnx_sha256.startswith(served)
    histories = [np.asarray(table.vectors[:3], np.float32), np.asarray(table.vectors[4:9], np.float32)]
    onnx = OnnxSequenceEncoder(run / "encoder/served/encoder.onnx")
    np.testing.assert_allclose(torch_encoder.encode(histories), onnx.encode(histories), atol=1e-5)
    assert record["refit"]["parity"]["difference"] < 1e-4


def test_a_refit_on_the_same_events_is_the_measured_model_bit_for_bit(
    ring_run: Run, ring_dataset: Dataset, config: EncoderConfig, tmp_path: Path
) -> None:
    """So seed, order and learning rate of every epoch are those of the measured fit."""
    embeddings, split = Embeddings.load(ring_run[0] / "embeddings"), split_dataset(ring_dataset, 0.0)
    train = split.parts.train
    torch.manual_seed(config.seed)
    model = SlotModel(embeddings, popularity(train, 12), config)
    few = config.model_copy(update={"epochs": 4, "patience": 1})
    log = fit(model, train, split.parts.validation, few, tmp_path / "one", fingerprint="x")
    again = refit.refit(model, log.best_epoch + 1, embeddings, train, few, tmp_path / "two", fingerprint="x")
    assert len(again.log.epochs) == log.best_epoch + 1
    assert [line["loss"] for line in again.log.epochs] == [line["loss"] for line in log.epochs][: log.best_epoch + 1]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("after", [0, 1], ids=["between the fits", "after an epoch of the refit"])
def test_a_fit_that_is_killed_at_the_refit_goes_on_there(
    refitted: Run,
    ring_dataset: Dataset,
    config: EncoderConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    embeddings, directory = Embeddings.load(refitted[0] / "embeddings"), tmp_path / "encoder"

    def kill(done: int, _all: int) -> None:
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        fit_run(ring_dataset, embeddings, config, directory, refitted=kill)
    assert not (directory / "fit.json").exists()
    monkeypatch.setattr(job, "fit", _no_epoch(job.fit))
    epochs: list[int] = []
    record = fit_run(
        ring_dataset, embeddings, config, directory, refitted=lambda done, every: epochs.extend((done, every))
    )
    wanted = refitted[1]["refit"]["epochs"]
    assert epochs[2::2] == [*range(after + 1, wanted + 1)]
    assert set(epochs[1::2]) == {wanted}
    assert record["refit"]["log"] == refitted[1]["refit"]["log"]
    for name in ("encoder.safetensors", "projection.safetensors"):
        expected = load_file(refitted[0] / "encoder/served" / name)
        for key, value in load_file(directory / "served" / name).items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    assert not [*directory.glob("checkpoints*")]


def test_a_fit_does_not_go_on_with_another_automatic_batch_size(
    refitted: Run, ring_dataset: Dataset, config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another version may choose another size, and the refit would take it for the epochs of the first one."""
    marks = []

    def begun(*_: Any, fingerprint: str, **__: Any) -> None:
        marks.append(fingerprint)
        raise Killed

    monkeypatch.setattr(job, "fit", begun)
    automatic = config.model_copy(update={"batch_size": 0})
    for size in (32, 128, 128):
        monkeypatch.setattr(job, "automatic_batch_size", lambda *_, size=size: size)
        with pytest.raises(Killed):
            fit_run(ring_dataset, Embeddings.load(refitted[0] / "embeddings"), automatic, tmp_path / "encoder")
    assert marks[0] != marks[1] == marks[2]


def _no_epoch(fit: Any) -> Any:
    """The measured fit, but no epoch of it may be trained."""

    def resumed(*arguments: Any, **more: Any) -> Any:
        def report(line: Any) -> None:
            pytest.fail(f"epoch {line['epoch']} was trained again")

        return fit(*arguments, **more | {"report": report})

    return resumed


@pytest.mark.usefixtures("quick_export")
def test_when_there_is_no_refit(
    refitted: Run, ring_dataset: Dataset, config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = Embeddings.load(refitted[0] / "embeddings")
    shutil.copytree(refitted[0] / "encoder/served", tmp_path / "served")
    monkeypatch.setattr(job, "refit", lambda *_arguments, **_more: pytest.fail("refitted"))
    once = config.model_copy(update={"epochs": 1})
    for changes in ({"refit": False}, {"cold_items": 0.3}):
        record = fit_run(ring_dataset, embeddings, once.model_copy(update=changes), tmp_path)
        assert "refit" not in record
        assert "served" not in record["model"]["encoder"]
        assert not (tmp_path / "served").exists()
    table = ItemTable.load(tmp_path / "table")
    assert table.thumbnails is not None
    assert EvaluationQueries.load(tmp_path / "probes.npz")


@pytest.mark.usefixtures("quick_export")
def test_histories_of_which_nothing_is_held_out_are_fitted_once(
    ring_run: Run, ring_dataset: Dataset, config: EncoderConfig, tmp_path: Path
) -> None:
    few = ring_dataset.interactions.group_by("user_id", maintain_order=True).head(2)
    short = dataclasses.replace(ring_dataset, interactions=few)
    once = config.model_copy(update={"epochs": 1, "min_events": 1})
    record = fit_run(short, Embeddings.load(ring_run[0] / "embeddings"), once, tmp_path)
    assert record["data"]["validation_users"] == 0
    assert "refit" not in record


def test_the_imputation_is_fitted_again_with_the_calibrated_lengths(
    make_sequences: Callable[[list[list[int]]], Sequences], small_config: EncoderConfig
) -> None:
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((40, 9)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    embeddings = Embeddings([f"i{row}" for row in range(40)], {"text": texts}, {"kind": "x"})
    histories = make_sequences([[*range(30)]] * 6 + [[30, 31]])
    counts = popularity(histories, 40)
    config = small_config.model_copy(update={"slots": ("text", BEHAVIOUR), "min_events": 5})
    model = SlotModel(embeddings, counts, config)
    other = rng.standard_normal((40, 8))
    before = ImputationFit(model.layout, embeddings.vectors, other, np.full(40, 9), config.min_events).fit()
    measured = dataclasses.replace(before, new_length=0.61, few_length=0.47)
    model_again = refit.RefittedModel(model, histories, counts, log=None)  # type: ignore[arg-type]
    made = refit._imputation(measured, model_again, embeddings, config)
    expected = ImputationFit(model.layout, embeddings.vectors, model.behaviour_slots(), counts, config.min_events).fit()
    np.testing.assert_array_equal(made.directions(embeddings.vectors), expected.directions(embeddings.vectors))
    assert made.lengths(counts[30:]).tolist() == pytest.approx([0.47] * 2 + [0.61] * 8)


def test_a_record_of_an_earlier_version_serves_what_is_measured() -> None:
    assert served_directory(Path("run/encoder"), json.loads("{}")) == Path("run/encoder")
