"""Every command that reads a data set says how many interactions and pictures it does not use."""

from pathlib import Path

import polars as pl
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from cli.app import app
from cli.offline.left_out import print_left_out
from index.bundle.event_types import EventTypes
from tests.support.mean_encoder import export_mean_encoder
from training.data.dataset import Dataset, load_dataset
from training.data.event_weights import EventRules

ITEMS = 12
RECIPE = """
[encoder]
text_dim = 8
image_dim = 8
behaviour_dim = 8
width = 16
max_history = 5
batch_size = 16
epochs = 1
list_neighbours = 0
dropout = 0.0
warmup_steps = 1
refit = false
"""
UNKNOWN = "7 interactions are of items that the catalogue lacks; left out"
OTHERS = "not positive, so not learned from: 3 impression, 2 negative"
LOST = "2 items name a picture that is not found; `vlm2rec data check` lists them"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven events of unknown items, three impressions, two dislikes; two of three pictures do not exist."""
    data = tmp_path_factory.mktemp("shop")
    pictures = ["a.png", "lost.png", "../out.png", *[""] * (ITEMS - 3)]
    Image.new("RGB", (4, 4), (9, 0, 0)).save(data / "a.png")
    lines = [f"i{n},thing {n % 5} {n % 3},{picture}" for n, picture in enumerate(pictures)]
    (data / "items.csv").write_text("\n".join(["item_id,title,image", *lines]) + "\n")
    rows = [f"u{user},i{(user + step) % ITEMS},{1_700_000_000 + step},view" for user in range(20) for step in range(5)]
    rows += [f"u{user},gone{user},{1_700_000_100},view" for user in range(7)]
    rows += ["u0,i9,1700000200,impression"] * 3 + ["u1,i9,1700000200,dislike"] * 2
    (data / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,type", *rows]) + "\n")
    (data / "events.toml").write_text('weight_by = "type"\n')
    (data / "recipe.toml").write_text(RECIPE)
    return data


@pytest.fixture(autouse=True)
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.encoder.encoder_files.export_encoder", export_mean_encoder)


def said(*arguments: object) -> str:
    shown = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert shown.exit_code == 0, shown.output
    return " ".join(shown.output.split())


def test_fit_fit_encoder_and_evaluate_count_what_they_leave_out(shop: Path, tmp_path: Path) -> None:
    fitted = said("fit", shop, "--run", tmp_path / "run", "--config", shop / "recipe.toml", "--threads", 1)
    assert UNKNOWN in fitted
    assert OTHERS in fitted
    assert LOST in fitted
    measured = said("evaluate", shop, "--run", tmp_path / "run", "--no-ease")
    assert UNKNOWN in measured
    assert OTHERS in measured
    assert "/100 = among 100 negatives, or all others" in measured
    again = said("fit-encoder", shop, "--run", tmp_path / "run", "--config", shop / "recipe.toml")
    assert UNKNOWN in again
    assert OTHERS in again


def test_further_users_of_an_evaluation_are_counted_too(shop: Path, tmp_path: Path) -> None:
    said("fit", shop, "--run", tmp_path / "run", "--config", shop / "recipe.toml", "--threads", 1)
    rows = [f"v{user},i{step},{1_700_000_000 + step},view" for user in range(4) for step in range(3)]
    rows += ["v0,gone,1700000003,view", "v1,i5,1700000003,impression"]
    (tmp_path / "users.csv").write_text("\n".join(["user_id,item_id,timestamp,type", *rows]) + "\n")
    measured = said("evaluate", shop, "--run", tmp_path / "run", "--no-ease", "--users", tmp_path / "users.csv")
    assert "fresh users: 4 targets" in measured
    assert "further users: 1 interactions are of items that the catalogue lacks; left out" in measured
    assert "further users: not positive, so not learned from: 1 impression" in measured


def doubled_shop(directory: Path, times: int, extra: int = 0) -> Dataset:
    """Four users with three items each, every row as many times, and further rows of the first user."""
    (directory / "items.csv").write_text("item_id,title\na,one\nb,two\nc,three\n")
    rows = [f"u{user},{item},{100 + at}" for user in range(4) for at, item in enumerate("abc")] * times
    rows += [f"u0,a,{200 + number}" for number in range(extra)]
    (directory / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    return load_dataset(directory)


@pytest.mark.parametrize(("times", "extra", "said"), [(1, 9, None), (2, 0, "12 of 24"), (2, 20, None)])
def test_many_copies_are_counted(
    times: int, extra: int, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = doubled_shop(tmp_path, times, extra)
    print_left_out(dataset, Console(soft_wrap=True, highlight=False))
    printed = capsys.readouterr().out
    if said is None:
        assert printed == ""
    else:
        assert printed.startswith(f"{said} interactions have the user, item and second of an earlier one")
        assert len(printed.splitlines()) == 1
    assert dataset.interactions.height == 12 * times + extra  # all are used


def test_types_that_the_table_lacks_are_counted_and_named() -> None:
    rules = EventRules("type", EventTypes.of(None, None))
    unknown = {"hide": 1200, **{f"t{number}": 1 for number in range(6)}}
    table = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [1]})
    console = Console(record=True, width=1000)
    print_left_out(Dataset(Path(), pl.DataFrame(), table, rules=rules, unknown_types=unknown), console)
    assert console.export_text() == (
        "1,206 events are of types that the table lacks, so they count as 'view': 1,200 'hide', 1 't0', 1 't1', "
        "1 't2', 1 't3' and 2 more types; add them under [events.types] in events.toml, "
        "as in the settings of the service\n"
    )
