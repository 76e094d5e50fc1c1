"""`vlm2rec fit-encoder` and `vlm2rec evaluate`, called as the command line calls them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.encoder import evaluate, fit_encoder
from training.encoder_config import EncoderConfig
from training.errors import ConfigError, EmbeddingsError, EvaluationError
from training.export import Parity

Run = tuple[Path, dict[str, Any]]

runner = CliRunner()
app = typer.Typer()
app.command("fit-encoder")(fit_encoder)
app.command("evaluate")(evaluate)


@pytest.fixture
def quick_export(ring_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes seconds; the ring's encoder stands in for any of the same shape."""

    def use_the_other_encoder(_encoder: object, _layout: object, path: Path, *, seed: int) -> Parity:
        shutil.copyfile(ring_run[0] / "encoder" / "encoder.onnx", path)
        return Parity(seed, 0.0)

    monkeypatch.setattr("training.encoder_run.export_encoder", use_the_other_encoder)


@pytest.fixture
def run_directory(ring_run: Run, small_config: EncoderConfig, tmp_path: Path) -> Path:
    """A run with embeddings and a configuration, not fitted yet."""
    shutil.copytree(ring_run[0] / "embeddings", tmp_path / "run" / "embeddings")
    values = small_config.model_copy(update={"epochs": 2}).model_dump(mode="json")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (tmp_path / "run" / "config.toml").write_text("[encoder]\n" + "\n".join(lines) + "\n")
    return tmp_path / "run"


@pytest.mark.usefixtures("quick_export")
def test_fit_uses_the_configuration_of_the_run_and_says_how_it_went(ring_directory: Path, run_directory: Path) -> None:
    result = runner.invoke(app, ["fit-encoder", str(ring_directory), "--run", str(run_directory), "--seed", "3"])
    assert result.exit_code == 0, result.output
    assert "of 2 epochs" in result.output
    assert "NDCG@10" in result.output
    assert "slots text 8, image 6, behaviour 8" in result.output
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


def test_fit_without_embeddings_or_with_a_bad_configuration(ring_directory: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["fit-encoder", str(ring_directory), "--run", str(tmp_path)])
    assert isinstance(result.exception, EmbeddingsError)
    (tmp_path / "wrong.toml").write_text("[encoder]\nheads = 3\n")
    words = ["fit-encoder", str(ring_directory), "--run", str(tmp_path), "--config", str(tmp_path / "wrong.toml")]
    result = runner.invoke(app, words)
    assert isinstance(result.exception, ConfigError)
    assert "heads must divide width" in str(result.exception)


def test_evaluate_prints_a_table_and_writes_json(ring_run: Run, ring_directory: Path, tmp_path: Path) -> None:
    written = tmp_path / "new" / "figures.json"
    words = ["evaluate", str(ring_directory), "--run", str(ring_run[0]), "--json", str(written)]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    for shown in ("test: 40 targets", "popularity", "served encoder", "image only", "NDCG@10", "coverage@10"):
        assert shown in result.output
    figures = json.loads(written.read_text())
    (table,) = figures["tables"]
    assert table["users"] == 40
    served = next(row for row in table["rows"] if row["name"] == "served encoder")
    assert f"{served['ndcg@10']:.4f}" in result.output
    assert figures["data"] == ring_run[1]["data"]


@pytest.mark.parametrize(("more", "title"), [(["--validation"], "validation: 40"), (["--users"], "fresh users: 6")])
def test_evaluate_on_other_targets(ring_run: Run, ring_directory: Path, more: list[str], title: str) -> None:
    if more == ["--users"]:
        more = [*more, str(ring_directory / "fresh.csv")]
    result = runner.invoke(app, ["evaluate", str(ring_directory), "--run", str(ring_run[0]), *more])
    assert result.exit_code == 0, result.output
    assert title in result.output


def test_figures_that_cannot_be_written_are_a_clear_error(ring_run: Run, ring_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ["evaluate", str(ring_directory), "--run", str(ring_run[0]), "--json", str(tmp_path / "file" / "x.json")]
    result = runner.invoke(app, words)
    assert isinstance(result.exception, EvaluationError)
    assert "--json" in str(result.exception)
