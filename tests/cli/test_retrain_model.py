"""`vlm2rec retrain --train`: a model is trained, measured and adopted; killed at any step it goes on."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from cli.offline import retrain as command
from cli.offline import retrain_model
from index.bundle.manifest import Manifest
from index.bundle.registry import Registry
from index.event_export.directory import ExportDirectory
from index.event_export.stream_ids import StreamId
from tests.support.tiny_model import TINY_VLM
from training.embedding.store import Embeddings
from training.errors import ConfigError

ITEMS = 8
DAY = 86_400
START = 1_790_000_000
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
        (StreamId(at * 1000, n), {"user_id": f"u{user}", "item_id": f"i{item}", "timestamp": str(at), "type": "view"})
        for n, (user, item, at) in enumerate(events)
    ]
    export.commit([export.write_entries(0, entries)])
    (tmp_path / "own.toml").write_text(CONFIG)
    return data


def retrain(shop: Path, *more: object) -> Result:
    home = shop.parent
    arguments = ["retrain", shop, "--events", home / "export", "--registry", home / "bundles", "--run", home / "run"]
    options = ["--measure-days", "1.5", "--threads", "1", "--bound", "recall=0.3", "--force", *more]
    return CliRunner().invoke(app, [str(word) for word in [*arguments, *options]])


def manifest(shop: Path) -> Manifest:
    registry = Registry(shop.parent / "bundles")
    current = registry.current()
    assert current is not None
    return Manifest.read(registry.path(current))


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

    count(retrain_model, "train_model")
    steps = [
        (retrain_model, "train_model"),
        (command, "adopt"),
        (command, "_built"),
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
    assert done.count("train_model") == 2, "after its adoption the model is not trained again"
    result = retrain(shop, *options)
    assert result.exit_code == 0, result.output
    assert not (run / "retrain").exists()
    assert "steps = 4" in (run / "config.toml").read_text()
    assert (run / "train" / "model").is_dir()
    first = trained_model(run)
    retrained = manifest(shop).model["retrain"]
    assert retrained["model_trained_on"] == "the events before the cut-off"

    rows = (shop / "items.csv").read_text()
    (shop / "items.csv").write_text(rows + "new,thing number 99\n")
    again = retrain(shop)
    assert again.exit_code == 0, again.output
    assert "embedded 1 of 9: 1 new, 0 changed, 8 unchanged, 0 deleted" in again.stdout, "by the model of the run"
    assert manifest(shop).model["retrain"]["model_trained_on"] is None
    assert trained_model(run) == first

    (shop.parent / "own.toml").write_text(CONFIG.replace("steps = 4", "steps = 6"))
    third = retrain(shop, *options)
    assert third.exit_code == 0, third.output
    compared = {row["name"] for row in manifest(shop).model["retrain"]["comparison"]["table"]["rows"]}
    assert compared == {"popularity", "new recipe", "served recipe"}, "the same recipe, but with the served model"
    assert trained_model(run) != first


def test_killed_while_a_model_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before and after every rename; then the run has the new files, and the old ones are gone."""
    for kill in range(12):
        place = tmp_path / f"run{kill}"
        job = place / "retrain"
        for where, text in ((place, "old"), (job / "model-run", "new")):
            for name in ("train", "embeddings"):
                (where / name).mkdir(parents=True)
                (where / name / "file").write_text(text)
            (where / "config.toml").write_text(text)
        renames, whole = iter(range(100)), Path.rename

        def rename(self: Path, target: Path, renames: Any = renames, whole: Any = whole, kill: int = kill) -> Path:
            number = next(renames)
            if 2 * number == kill:
                raise KeyboardInterrupt
            moved: Path = whole(self, target)
            if 2 * number + 1 == kill:
                raise KeyboardInterrupt
            return moved

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                retrain_model.adopt(job, place)
        assert retrain_model.is_adopted(job, place)
        found = [(place / name).read_text() for name in ("train/file", "embeddings/file", "config.toml")]
        assert found == ["new"] * 3
        assert sorted(path.name for path in job.iterdir()) == ["adopted", "model-run"]
    assert not retrain_model.is_adopted(tmp_path, tmp_path)


def test_without_a_configuration_there_is_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--train needs the configuration of a vision-language model; name a file by"):
        retrain_model.training_config(tmp_path, None, None)
    (tmp_path / "config.toml").write_text(CONFIG)
    assert retrain_model.training_config(tmp_path, None, 7).encoder.seed == 7
