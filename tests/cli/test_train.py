"""`vlm2rec train` and `vlm2rec embed` from the command line on a handful of items."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app
from training.embeddings import Embeddings
from training.errors import BackboneError, ConfigError

CONFIG = """
[vlm]
min_picture_pixels = 64
max_picture_pixels = 64
[vlm.scratch]
vocabulary = 300
hidden_size = 16
heads = 2
layers = 1
intermediate_size = 16
vision_hidden_size = 16
vision_heads = 2
vision_layers = 1
vision_intermediate_size = 16
patch_size = 4
[train]
batch_size = 4
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    (directory / "images").mkdir(parents=True)
    rows = ["item_id,title,image"]
    for item in range(6):
        Image.new("RGB", (8, 8), (40 * item, 0, 255 - 40 * item)).save(directory / "images" / f"{item}.png")
        rows.append(f"i{item},thing number {item},images/{item}.png")
    (directory / "items.csv").write_text("\n".join(rows) + "\n")
    events = [f"u{user},i{(user + step) % 6},{100 + step}" for user in range(5) for step in range(5)]
    (directory / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *events]) + "\n")
    return directory


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(CONFIG)
    return path


def vlm2rec(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_train_then_embed(data: Path, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = vlm2rec("train", data, "--run", run, "--config", config, "--steps", 2, "--threads", 1)
    assert "trained 2 steps" in said
    assert "steps = 2" in (run / "config.toml").read_text()
    assert len((run / "train" / "log.jsonl").read_text().splitlines()) == 1
    said = vlm2rec("embed", data, "--run", run)
    assert "embedded 6 of 6: 6 new, 0 changed, 0 unchanged, 0 deleted" in said
    assert "vectors: text 6 × 16, image 6 × 16" in said
    assert Embeddings.load(run / "embeddings").item_ids == [f"i{item}" for item in range(6)]


def test_resume_takes_the_run_s_own_configuration(data: Path, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    vlm2rec("train", data, "--run", run, "--config", config, "--steps", 1)
    assert "trained 1 steps" in vlm2rec("train", data, "--run", run, "--resume")
    with pytest.raises(ConfigError, match="--resume"):
        vlm2rec("train", data, "--run", run, "--config", config, "--steps", 1)


def test_embed_without_a_model(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(BackboneError, match="vlm2rec train"):
        vlm2rec("embed", data, "--run", run)
    assert "embedded 6 items" in vlm2rec("embed", data, "--run", run, "--no-vlm")
    assert json.loads((run / "embeddings" / "embeddings.json").read_text())["model"]["kind"] == "no-vlm"
