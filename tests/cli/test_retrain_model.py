"""`vlm2rec retrain --train`: a model is trained, measured and adopted; killed at any step it goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from cli.offline.retraining import comparison, model
from cli.offline.retraining import retrain as command
from index.bundle.manifest import Manifest
from index.bundle.registry import Registry
from index.event_export.directory import ExportDirectory
from tests.support.stores.stream_entries import stream_entry
from tests.support.tiny_model import TINY_VLM
from training.embedding.store import Embeddings
from training.errors import ConfigError, EmbeddingsError, TrainingError
from training.finetune import trainer
from training.runs import adoption

pytestmark = pytest.mark.usefixtures("shared_graphs")

ITEMS = 8
DAY = 86_400
START = 1_790_000_000
LEARNED = {"newest_event": START + 2 * DAY, "has_measured_events": False}
"""Of a user's five events before the cut-off the last two are held out."""
CONFIG = (
    TINY_VLM
    + """
[train]
steps = 4
batch_size = 8
[encoder]
text_dim = 8
behaviour_dim = 8
slots = ["text", "behaviour"]
width = 16
max_history = 5
batch_size = 16
epochs = 3
learning_rate = 0.01
dropout = 0.0
warmup_steps = 1
"""
)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Eight items on a ring, with six steps of every user in the export."""
    data = tmp_path / "shop"
    data.mkdir()
    rows = [f"i{item},thing number {item}" for item in range(ITEMS)]
    (data / "items.csv").write_text("\n".join(["item_id,title", *rows]) + "\n")
    export = ExportDirectory.open_or_create(tmp_path / "export")
    events = [(user, (user + step) % ITEMS, START + step * DAY) for step in range(7) for user in range(24)]
    entries = [
        stream_entry(at * 1000, n, {"user_id": f"u{user}", "item_id": f"i{item}", "timestamp": str(at), "type": "view"})
        for n, (user, item, at) in enumerate(events)
    ]
    export.commit([export.write_entries(0, entries)])
    (tmp_path / "own.toml").write_text(CONFIG)
    return data


def retrain(shop: Path, *more: object, force: bool = True) -> Result:
    home = shop.parent
    arguments = ["retrain", shop, "--events", home / "export", "--registry", home / "bundles", "--run", home / "run"]
    options = [
        "--measure-days",
        "1.5",
        "--threads",
        "1",
        "--bound",
        "recall=0.3",
        *more,
        *(("--force",) if force else ()),
    ]
    return CliRunner().invoke(app, [str(word) for word in [*arguments, *options]])


def manifest(shop: Path) -> Manifest:
    registry = Registry(shop.parent / "bundles")
    current = registry.current()
    assert current is not None
    return Manifest.read(registry.path(current))


def models(shop: Path) -> dict[str, dict[str, Any]]:
    """The newest event that each model has learned from, as the manifest has it."""
    found: dict[str, dict[str, Any]] = manifest(shop).model["retrain"]["comparison"]["models"]
    return found


def trained_model(run: Path) -> dict[str, Any]:
    """What names the model of the embeddings, without the catalogue that it embedded."""
    model = Embeddings.load(run / "embeddings").model
    return {name: value for name, value in model.items() if name != "inputs"}


@pytest.mark.slow
def test_a_model_is_trained_and_adopted_and_killed_at_any_step_it_goes_on(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, options = shop.parent / "run", ("--train", "--config", shop.parent / "own.toml")
    done: list[str] = []

    def count(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            done.append(name)
            return whole(*arguments, **more)

        monkeypatch.setattr(owner, name, counted)

    count(model, "train_model")
    steps: list[tuple[Any, str]] = [
        (model, "train_model"),
        (command, "_built"),
        (adoption, "adopt"),
    ]
    for owner, name in steps:
        whole = getattr(owner, name)

        def killed(*arguments: Any, whole: Any = whole, **more: Any) -> None:
            whole(*arguments, **more)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, killed)
            assert retrain(shop, *options).exit_code == 130, name
        assert not (shop.parent / "bundles").exists()
    assert done.count("train_model") == 1, "a finished model is not trained again"
    result = retrain(shop, *options)
    assert result.exit_code == 0, result.output
    assert not (run / "retrain").exists()
    assert "steps = 4" in (run / "config.toml").read_text()
    assert (run / "train" / "model").is_dir()
    first = trained_model(run)
    assert manifest(shop).model["retrain"]["model_trained_on"] == "the events before the cut-off"
    assert models(shop) == {"new recipe": LEARNED}

    rows = (shop / "items.csv").read_text()
    (shop / "items.csv").write_text(rows + "new,thing number 99\n")
    again = retrain(shop)
    assert again.exit_code == 0, again.output
    assert "embedded 1 of 9: 1 new, 0 changed, 8 unchanged, 0 deleted" in again.stdout, "by the model of the run"
    assert manifest(shop).model["retrain"]["model_trained_on"] is None
    assert trained_model(run) == first

    (shop.parent / "own.toml").write_text(CONFIG.replace("steps = 4", "steps = 6"))
    (run / "train" / "newest_event.json").write_text(json.dumps({"newest_event": START + 6 * DAY}))
    third = retrain(shop, *options)
    assert third.exit_code == 0, third.output
    compared = {row["name"] for row in manifest(shop).model["retrain"]["comparison"]["table"]["rows"]}
    assert compared == {"popularity", "new recipe", "served recipe"}, "the same recipe, but with the served model"
    saw = {"newest_event": START + 6 * DAY, "has_measured_events": True}
    assert models(shop) == {"new recipe": LEARNED, "served recipe": saw}
    assert "note: the vision-language model of the served recipe has learned from events up to" in third.stdout
    assert "the vision-language model of the new recipe has" not in third.stdout
    assert trained_model(run) != first


@pytest.mark.slow
def test_a_model_that_the_gate_refuses_is_not_adopted(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, options = shop.parent / "run", ("--train", "--config", shop.parent / "own.toml")
    assert retrain(shop, *options).exit_code == 0
    (shop.parent / "own.toml").write_text(CONFIG.replace("steps = 4", "steps = 6"))
    before = content(run, "train", "embeddings", "encoder", "config.toml")
    monkeypatch.setattr(comparison, "_refusal", lambda _: "")
    refused = retrain(shop, *options, "--bound", "latency_p99_ms=0.0", force=False)
    assert refused.exit_code == 1, refused.output
    assert "these figures miss their bounds: latency_p99_ms" in refused.stderr
    assert content(run, "train", "embeddings", "encoder", "config.toml") == before
    assert not (run / "retrain").exists()
    monkeypatch.setattr(comparison, "_refusal", lambda _: "it is worse")
    assert retrain(shop, *options, force=False).exit_code == 1
    assert content(run, "train", "embeddings", "encoder", "config.toml") == before


@pytest.mark.slow
def test_killed_within_the_adoption_nothing_is_lost_and_the_next_job_is_not_blocked(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration lies in the run alone, and the next job has another recipe."""
    run = shop.parent / "run"
    run.mkdir()
    (run / "config.toml").write_text(CONFIG)
    assert retrain(shop, "--train").exit_code == 0
    first = trained_model(run)

    def killed(self: Path, target: Path, whole: Any = Path.rename) -> Path:
        moved: Path = whole(self, target)
        if self == run / "train":
            raise KeyboardInterrupt
        return moved

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        assert retrain(shop, "--train", "--seed", 5).exit_code == 130
    assert not (run / "train").exists()
    result = retrain(shop, "--train", "--seed", 6)
    assert result.exit_code == 0, result.output
    assert (run / "train" / "model").is_dir()
    assert "seed = 6" in (run / "config.toml").read_text()
    assert trained_model(run) == first, "the seed of the encoder is no part of the model"


@pytest.mark.slow
def test_a_catalogue_that_changes_after_a_kill_is_noticed(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--train", "--config", shop.parent / "own.toml")
    steps: list[tuple[Any, str]] = [
        (trainer.Trainer, "save_model"),
        (model, "train_model"),
        (command, "compared"),
        (command, "fit_and_print"),
        (command, "_built"),
    ]
    for number, (owner, name) in enumerate(steps):
        whole = getattr(owner, name)

        def killed(*arguments: Any, whole: Any = whole, **more: Any) -> None:
            if whole.__name__ != "save_model":
                whole(*arguments, **more)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, killed)
            done = retrain(shop, *options)
        assert done.exit_code == 130, done.output
        said = "the catalogue has changed since: comparing, fitting and building begin anew" in done.stdout
        assert said == (number > 0)
        assert ("the interrupted training was of another catalogue" in done.stdout) == (number == 1)
        with (shop / "items.csv").open("a") as items:
            items.write(f"new{number},thing number 9{number}\n")
    done = retrain(shop, *options)
    assert done.exit_code == 0, done.output
    assert manifest(shop).items == ITEMS + len(steps)


def test_embeddings_that_cannot_be_read_end_the_job(shop: Path) -> None:
    """Nothing is embedded without the model, as long as it is not known who made them."""
    directory = shop.parent / "run" / "embeddings"
    (shop.parent / "run" / "train" / "model").mkdir(parents=True)
    Embeddings(["i0"], {"text": np.eye(1, 4, dtype=np.float32)}, {"kind": "vlm"}).save(directory)
    (directory / "embeddings.json").write_text("{")
    for options in ((), ("--train", "--config", shop.parent / "own.toml")):
        done = retrain(shop, *options)
        assert isinstance(done.exception, EmbeddingsError), done.output
        assert "Restore the files, or make them again" in str(done.exception)
    assert (directory / "embeddings.json").read_text() == "{"


def test_a_run_with_a_model_and_no_embeddings_is_embedded_by_it(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = shop.parent / "run"
    (run / "train" / "model").mkdir(parents=True)
    done = retrain(shop)
    assert isinstance(done.exception, TrainingError), done.output
    assert str(run) in str(done.exception), "its model is incomplete"
    assert not (run / "embeddings").exists()


def content(run: Path, *names: str) -> dict[str, bytes]:
    """Every file of parts of a run."""
    files = [path for name in names for path in ((run / name).rglob("*") if (run / name).is_dir() else [run / name])]
    return {str(path.relative_to(run)): path.read_bytes() for path in files if path.is_file()}


def test_without_a_configuration_there_is_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--train needs the configuration of a vision-language model; name a file by"):
        model.training_config(tmp_path, None, None)
    (tmp_path / "config.toml").write_text(CONFIG)
    assert model.training_config(tmp_path, None, 7).encoder.seed == 7
