"""`vlm2rec train` and `vlm2rec embed` on a few items."""

import json
import warnings
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.app import app
from cli.main import main
from tests.support.backbones.item_models import write_dual, write_image_model, write_text_encoder
from tests.support.mean_encoder import export_mean_encoder
from tests.support.tiny_model import TINY_VLM
from training.config.presets import PRESETS
from training.config.run_config import load_run_config
from training.embedding.store import Embeddings
from training.errors import BackboneError, ConfigError, RunBusy
from training.finetune.trained_events import NEWEST_EVENT_FILE, ModelEvents
from training.runs.lock import run_lock

CONFIG = f"""{TINY_VLM}[train]
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
    embeddings = Embeddings.load(run / "embeddings")
    assert embeddings.item_ids == [f"i{item}" for item in range(6)]
    # Every user has events at 100 … 104, of which the last two are held out.
    found = [ModelEvents.of(run, embeddings.model, cutoff) for cutoff in (102, 103)]
    assert [(model.newest, model.measured_too) for model in found if model] == [(102, True), (102, False)]
    notes = [model.note("the model") for model in found if model]
    assert notes[1] is None
    assert notes[0] == (
        "the model has learned from events up to 1970-01-01 00:01:42 UTC, measured are those since "
        "1970-01-01 00:01:42 UTC: its figures are too high"
    )
    assert ModelEvents.of(run, embeddings.model | {"weights": "other"}, 103) == ModelEvents(None, 103)
    (run / "train" / NEWEST_EVENT_FILE).unlink()
    assert ModelEvents.of(run, embeddings.model, 103) == ModelEvents(None, 103), "a training of an earlier version"
    vlm2rec("train", data, "--run", run, "--resume", "--threads", 1)
    assert ModelEvents.of(run, embeddings.model, 103) == ModelEvents(102, 103), "the same events: they are known again"
    assert ModelEvents.of(run, {"kind": "tf-idf"}, 103) is None


def test_statistics_of_the_catalogue_do_not_trust_times(data: Path, tmp_path: Path) -> None:
    words = ["embed", str(data), "--run", str(tmp_path / "run"), "--no-vlm", "--trust-times"]
    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert "--trust-times" in refused.output


def test_heads_on_frozen_towers_and_the_licence_of_their_models(data: Path, tmp_path: Path) -> None:
    text, image = write_text_encoder(tmp_path / "bert"), write_image_model(tmp_path / "resnet")
    (text / "README.md").write_text("---\nlicense: mit\n---\n")
    config, run = tmp_path / "heads.toml", tmp_path / "run"
    config.write_text(
        f'[vlm]\nfamily = "towers"\n[vlm.towers]\ntext_model = "{text}"\nimage_model = "{image}"\n'
        "[vlm.heads]\nlength = 8\n[train]\nbatch_size = 4\n"
    )
    said = vlm2rec("train", data, "--run", run, "--config", config, "--steps", 2, "--threads", 1)
    assert "licence of the pretrained model: mit, not stated" in said
    said = vlm2rec("embed", data, "--run", run)
    assert "licence of the pretrained model: mit, not stated" in said
    assert "vectors: text 6 × 8, image 6 × 8" in said
    assert Embeddings.load(run / "embeddings").model["licences"] == ["mit", "not stated"]
    stored = (run / "config.toml").read_text()
    (run / "config.toml").write_text(stored.replace("[vlm]\n", '[vlm]\nlicence = "own"\n'))
    assert "embedded 0 of 6" in vlm2rec("embed", data, "--run", run)
    assert Embeddings.load(run / "embeddings").model["licences"] == ["own"]


def test_the_revision_can_be_an_option(data: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["train", str(data), "--run", str(tmp_path / "run"), "--revision", "a" * 40])
    assert refused.exit_code == 2
    assert "none is set" in refused.output
    model, config, run = write_dual(tmp_path / "clip", "clip"), tmp_path / "heads.toml", tmp_path / "run"
    config.write_text(
        f'[vlm]\nfamily = "dual-encoder"\nmodel = "{model}"\n[vlm.heads]\nlength = 8\n[train]\nbatch_size = 4\n'
    )
    options = ("--run", run, "--config", config, "--steps", 1, "--threads", 1)
    vlm2rec("train", data, *options, "--revision", "a" * 40)
    assert load_run_config(run).vlm.revision == "a" * 40


def test_the_help_names_every_preset() -> None:
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "300"}).stdout
    assert all(name in shown for name in PRESETS)


def test_embedding_again_says_what_was_saved(data: Path, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    vlm2rec("train", data, "--run", run, "--config", config, "--steps", 1)
    vlm2rec("embed", data, "--run", run)
    items = (data / "items.csv").read_text()
    (data / "items.csv").write_text(items.replace("i5,", "i6,").replace("thing number 0", "another thing"))
    (data / "interactions.csv").write_text((data / "interactions.csv").read_text().replace("i5", "i6"))
    said = vlm2rec("embed", data, "--run", run)
    assert "embedded 1 of 6: 1 new, 1 changed, 4 unchanged, 1 deleted" in said
    assert "1 of the new and changed ones needed no embedding: their content is known" in said
    assert "not found" not in said
    (data / "images" / "3.png").unlink()
    said = vlm2rec("embed", data, "--run", run)
    assert "embedded 0 of 6: 0 new, 1 changed" in said
    assert "1 items name a picture that is not found" in said
    assert "embedded 0 of 6: 0 new, 0 changed, 6 unchanged, 0 deleted" in vlm2rec("embed", data, "--run", run)
    (run / "embeddings" / "embeddings.json").write_text("{")
    said = vlm2rec("embed", data, "--run", run)
    assert "embedding every item: " in said
    assert "embedded 6 of 6" in said


@pytest.mark.parametrize("words", [["train"], ["train", "--resume"], ["embed", "--no-vlm"], ["fit-encoder"], ["fit"]])
def test_a_run_at_which_another_job_is_at_work_is_left_alone(
    data: Path, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["vlm2rec", words[0], str(data), "--run", str(tmp_path), *words[1:]])
    before = set(tmp_path.rglob("*"))
    with run_lock(tmp_path), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 75
    assert "another job is at work" in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before


def test_no_other_job_writes_to_a_run_that_is_being_trained(
    data: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("training.encoder.encoder_files.export_encoder", export_mean_encoder)
    vlm2rec("fit", data, "--run", run)
    vlm2rec("train", data, "--run", run, "--config", config, "--steps", 1)
    refused: list[tuple[str, ...]] = []

    def while_it_trains(*_given: object, **_named: object) -> tuple[Path, int]:
        for words in (("train", "--resume"), ("embed", "--no-vlm"), ("fit-encoder",), ("evaluate", "--direct")):
            with pytest.raises(RunBusy, match="another job is at work"):
                vlm2rec(words[0], data, "--run", run, *words[1:])
            refused.append(words)
        assert "saved: " in vlm2rec("evaluate", data, "--run", run, "--no-direct")  # only reads the run
        return run / "train" / "model", 1

    monkeypatch.setattr("cli.offline.train.train_model", while_it_trains)
    vlm2rec("train", data, "--run", run, "--resume")
    assert len(refused) == 4


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


def test_a_renamed_key_is_one_line_of_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "old.toml"
    config.write_text("[loss]\nmu = 0.5\n")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # restored at the end
    monkeypatch.setattr(
        "sys.argv", ["vlm2rec", "train", str(tmp_path), "--run", str(tmp_path / "run"), "--config", str(config)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.raises(SystemExit):
            main()  # no data set there
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"warning: {config}: loss.mu is now called loss.wpcl_weight")
    assert lines[1].startswith("error: ")
