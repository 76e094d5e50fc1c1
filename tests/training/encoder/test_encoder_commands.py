"""`vlm2rec fit-encoder`, called as the command line calls them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cli.offline.encoder import fit_encoder, lists_line
from cli.offline.evaluate import evaluate
from index.items.item_table import ItemTable
from index.items.modality_status import imputed
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset
from training.embedding.store import Embeddings
from training.encoder.job import fit_run
from training.errors import ConfigError, EmbeddingsError, EvaluationError

Run = tuple[Path, dict[str, Any]]

runner = CliRunner()
app = typer.Typer()
app.command("fit-encoder")(fit_encoder)
app.command("evaluate")(evaluate)


@pytest.fixture
def run_directory(ring_run: Run, small_config: EncoderConfig, tmp_path: Path) -> Path:
    """A run with embeddings and a configuration, not fitted yet."""
    shutil.copytree(ring_run[0] / "embeddings", tmp_path / "run" / "embeddings")
    values = small_config.model_copy(update={"epochs": 2}).model_dump(mode="json")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (tmp_path / "run" / "config.toml").write_text("[encoder]\n" + "\n".join(lines) + "\n")
    return tmp_path / "run"


def test_what_is_said_of_the_lists() -> None:
    chosen = {"weights": {"co": 0.5, "words": 0.0}, "ndcg@10_without_lists": 0.05, "ndcg@10": 0.0625}
    said = "item-to-item lists: co 0.5; validation NDCG@10 0.0500 without, 0.0625 with"
    assert lists_line({"chosen": chosen}) == said
    none = lists_line({"chosen": chosen | {"weights": {"co": 0.0, "words": 0.0}}})
    assert none == "item-to-item lists: none gains anything on validation (co, words tried)"


@pytest.mark.usefixtures("quick_export")
def test_fit_uses_the_configuration_of_the_run_and_says_how_it_went(ring_directory: Path, run_directory: Path) -> None:
    result = runner.invoke(app, ["fit-encoder", str(ring_directory), "--run", str(run_directory), "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "of 2 epochs" in result.output
    assert "NDCG@10" in result.output
    assert "slots text 8, image 6, behaviour 8" in result.output
    assert "item-to-item lists: " in result.output
    record = json.loads((run_directory / "encoder" / "fit.json").read_text())
    assert record["config"]["seed"] == 3
    assert len(record["log"]) == 2


@pytest.mark.usefixtures("quick_export")
def test_fit_on_other_interactions(ring_directory: Path, run_directory: Path) -> None:
    others = str(ring_directory / "fresh.csv")
    words = [str(ring_directory), "--run", str(run_directory), "--interactions", others]
    assert runner.invoke(app, ["fit-encoder", *words]).exit_code == 0
    assert json.loads((run_directory / "encoder" / "fit.json").read_text())["data"]["users"] == 6
    assert runner.invoke(app, ["evaluate", *words]).exit_code == 0
    refused = runner.invoke(app, ["evaluate", str(ring_directory), "--run", str(run_directory)])
    assert isinstance(refused.exception, EvaluationError)


@pytest.mark.usefixtures("quick_export")
def test_without_imputation_the_table_has_no_imputed_vector(
    ring_dataset: Dataset, ring_run: Run, small_config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.encoder.imputation.LEAST_WARM", 3)
    embeddings = Embeddings.load(ring_run[0] / "embeddings")
    vectors, marks, records = {}, {}, {}
    for impute in (True, False):  # into the same directory, so a map of an earlier fit is removed
        changes = {"epochs": 1, "cold_items": 0.3, "impute_behaviour": impute}
        records[impute] = fit_run(ring_dataset, embeddings, small_config.model_copy(update=changes), tmp_path)
        assert (tmp_path / "imputation.safetensors").exists() == impute
        table = ItemTable.load(tmp_path / "table")
        vectors[impute] = np.array(table.vectors)
        marks[impute] = imputed(table.missing_record(), table.layout, table.vectors)
    filled, behaviour = marks[True], table.layout.slice("behaviour")
    assert 0 < filled.sum() < len(filled)
    assert vectors[True][filled, behaviour].any(axis=1).all()
    assert not marks[False].any()
    assert not vectors[False][filled, behaviour].any()
    np.testing.assert_array_equal(vectors[False][~filled], vectors[True][~filled])
    assert (records[True]["imputation"]["warm_items"], records[False]["imputation"]) == (int((~filled).sum()), {})


def test_fit_without_embeddings_or_with_a_bad_configuration(ring_directory: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["fit-encoder", str(ring_directory), "--run", str(tmp_path)])
    assert isinstance(result.exception, EmbeddingsError)
    (tmp_path / "wrong.toml").write_text("[encoder]\nheads = 3\n")
    words = ["fit-encoder", str(ring_directory), "--run", str(tmp_path), "--config", str(tmp_path / "wrong.toml")]
    result = runner.invoke(app, words)
    assert isinstance(result.exception, ConfigError)
    assert "heads must divide width" in str(result.exception)
