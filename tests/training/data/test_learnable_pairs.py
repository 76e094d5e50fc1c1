"""The check and training refuse a data set on which every loss would be zero, before anything is written."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.app import app
from training.config.run_config import load_config
from training.data.dataset import Dataset, load_dataset
from training.data.learnable_pairs import check_learnable
from training.data.sequences import Sequences, leave_one_out
from training.data_check.check import check_dataset
from training.errors import DatasetError
from training.finetune.trainer import train_vlm

EVENTS = "user_id,item_id,timestamp\n" + "".join(
    f"u{user},i{item},{1_700_000_000 + 10 * user + item}\n" for user in range(3) for item in range(6)
)


def shop(directory: Path, items: str, events: str = EVENTS) -> tuple[Dataset, Sequences]:
    """A data set with one readable picture, ``whole.png``, and one that is none; and its training histories."""
    (directory / "items.csv").write_text(items)
    (directory / "interactions.csv").write_text(events)
    Image.new("RGB", (4, 4)).save(directory / "whole.png")
    (directory / "broken.png").write_bytes(b"no picture")
    dataset = load_dataset(directory)
    sequences = Sequences.from_interactions(dataset.interactions, dataset.item_ids())
    return dataset, leave_one_out(sequences).train


def items(title: str = "", image: str = "", *, only: int = 6) -> str:
    """Six items, of which the first ``only`` have a title and a picture."""
    rows = (f"i{n},{title},{image}" if n < only else f"i{n},," for n in range(6))
    return "item_id,title,image\n" + "\n".join(rows) + "\n"


@pytest.mark.parametrize(
    ("table", "modalities"),
    [
        (items(), ("text", "image")),
        (items("  "), ("text", "image")),
        (items("Mug"), ("image",)),
        (items(image="whole.png"), ("text",)),
        (items(image="broken.png"), ("text", "image")),
        (items(image="none.png"), ("image",)),
        (items("Mug", "whole.png", only=1), ("text", "image")),
    ],
)
def test_nothing_to_train_on_is_refused_by_check_and_training(
    tmp_path: Path, table: str, modalities: tuple[str, ...]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    dataset, train = shop(data, table)
    report = check_dataset(data, modalities=modalities)
    assert [defect.kind for defect in report.defects if defect.severity == "error"] == ["nothing to train on"]
    config = load_config(overrides={"train.modalities": list(modalities)})
    with pytest.raises(DatasetError, match="nothing to train on: no user has two training events"):
        train_vlm(dataset, train, run, config)
    assert not run.exists()


@pytest.mark.parametrize(
    ("table", "modalities"),
    [
        (items("Mug"), ("text", "image")),
        (items(image="whole.png"), ("text", "image")),
        (items("Mug", only=2), ("text",)),
        (items(image="whole.png", only=2), ("image",)),
    ],
)
def test_two_events_of_one_user_are_enough(tmp_path: Path, table: str, modalities: tuple[str, ...]) -> None:
    check_learnable(*shop(tmp_path, table), modalities)
    assert check_dataset(tmp_path, modalities=modalities).ok


def test_histories_that_are_all_held_out_are_an_error_of_the_check_too(tmp_path: Path) -> None:
    events = "user_id,item_id,timestamp\n" + "".join(f"u,i{n},{1_700_000_000 + n}\n" for n in range(3))
    shop(tmp_path, items("Mug"), events)
    (error,) = [defect for defect in check_dataset(tmp_path).defects if defect.severity == "error"]
    assert "needs a user with at least 2 training events" in error.message


def test_the_check_takes_the_configuration_of_the_run(tmp_path: Path) -> None:
    shop(tmp_path, items("Mug"))
    config = tmp_path / "config.toml"
    config.write_text('[train]\nmodalities = ["image"]\n')
    assert CliRunner().invoke(app, ["data", "check", str(tmp_path)]).exit_code == 0
    refused = CliRunner().invoke(app, ["data", "check", str(tmp_path), "--config", str(config)])
    assert refused.exit_code == 1
    assert "nothing to train on" in refused.output
