"""The demo data set: complete, reproducible from its seed, never partial, never in place of other files."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from demo import build
from demo.build import build_demo
from demo.catalogue import ATTRIBUTES
from demo.errors import DemoError
from training.data.dataset import load_dataset
from training.data_check.check import check_dataset

SMALL = {"items": 40, "users": 60, "evaluation_users": 50, "without_text": 2, "without_image": 3}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo(tmp_path_factory.mktemp("demo") / "data", **SMALL)


def hashes(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_dataset_loads_and_checks_without_errors(demo: Path) -> None:
    dataset = load_dataset(demo)
    assert len(dataset) == 40
    assert dataset.interactions["user_id"].n_unique() == 60
    assert sum(text is None for text in dataset.texts()) == 2
    assert sum(dataset.image_path(row) is None for row in range(40)) == 3
    report = check_dataset(demo)
    assert {defect.kind for defect in report.defects} <= {
        "items without text",
        "items without image",
        "items never touched",
    }


def test_metadata_carries_every_attribute_and_the_price(demo: Path) -> None:
    metadata = load_dataset(demo).metadata()
    assert metadata.column_names == ["title", "text", "image", *ATTRIBUTES, "price"]
    for name, values in ATTRIBUTES.items():
        assert set(metadata.column(name).to_pylist()) <= set(values)
    assert min(metadata.column("price").to_pylist()) > 0


def test_evaluation_users_are_fresh_and_of_the_same_world(demo: Path) -> None:
    table = pq.read_table(demo / "evaluation.parquet")
    assert table.column_names == ["user_id", "item_id", "timestamp"]
    users = set(table.column("user_id").to_pylist())
    assert len(users) == 50
    with (demo / "interactions.csv").open() as lines:
        training = list(csv.DictReader(lines))
    assert users.isdisjoint(row["user_id"] for row in training)
    assert set(table.column("item_id").to_pylist()) <= set(load_dataset(demo).item_ids())


def test_evaluation_users_do_not_repeat_training_users(demo: Path) -> None:
    def histories(users: list[str], items: list[str]) -> set[tuple[str, ...]]:
        by_user: dict[str, list[str]] = {}
        for user, item in zip(users, items, strict=True):
            by_user.setdefault(user, []).append(item)
        return {tuple(taken[:4]) for taken in by_user.values()}

    fresh = pq.read_table(demo / "evaluation.parquet")
    training = load_dataset(demo).interactions
    evaluated = histories(fresh.column("user_id").to_pylist(), fresh.column("item_id").to_pylist())
    assert evaluated.isdisjoint(histories(training["user_id"].to_list(), training["item_id"].to_list()))


def test_the_same_seed_gives_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    assert hashes(build_demo(tmp_path / "again", **SMALL)) == hashes(demo)


def test_another_seed_gives_another_catalogue(demo: Path, tmp_path: Path) -> None:
    other = hashes(build_demo(tmp_path / "other", **SMALL, seed=1))
    same = {name for name, digest in hashes(demo).items() if other.get(name) == digest}
    assert same == set()


def test_preferences_do_not_change_the_catalogue_or_the_pictures(demo: Path, tmp_path: Path) -> None:
    other = hashes(build_demo(tmp_path / "other", **SMALL, text_preference=0.0))
    changed = {name for name, digest in hashes(demo).items() if other[name] != digest}
    assert changed == {"demo.json", "interactions.csv", "evaluation.parquet"}


def test_a_second_build_keeps_the_files_and_other_arguments_replace_them(tmp_path: Path) -> None:
    directory = build_demo(tmp_path / "data", **SMALL)
    (directory / "kept").write_text("x")
    build_demo(directory, **SMALL)
    assert (directory / "kept").exists()
    build_demo(directory, **{**SMALL, "items": 30})
    assert not (directory / "kept").exists()
    assert len(load_dataset(directory)) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("content", [None, "{"])
def test_another_directory_is_not_touched(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    if content is not None:
        (tmp_path / "demo.json").write_text(content)
    before = hashes(tmp_path)
    with pytest.raises(DemoError, match="is not touched"):
        build_demo(tmp_path, **SMALL)
    assert hashes(tmp_path) == before


def test_an_interrupted_build_leaves_nothing_and_the_next_one_succeeds(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "data"

    def interrupt(step: str, share: float) -> None:
        if step == "training users":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_demo(directory, **SMALL, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert hashes(build_demo(directory, **SMALL)) == hashes(demo)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_progress_is_reported_for_every_step(tmp_path: Path) -> None:
    reported: dict[str, list[float]] = {}
    build_demo(tmp_path / "data", **SMALL, progress=lambda step, share: reported.setdefault(step, []).append(share))
    assert set(reported) == {"pictures", "training users", "evaluation users"}
    assert all(shares == sorted(shares) and shares[-1] == 1.0 for shares in reported.values())


def test_no_evaluation_users_give_an_empty_table(tmp_path: Path) -> None:
    directory = build_demo(tmp_path / "data", **{**SMALL, "evaluation_users": 0})
    assert pq.read_table(directory / "evaluation.parquet").num_rows == 0


@pytest.mark.parametrize(
    "wrong",
    [{"items": 0}, {"users": 0}, {"evaluation_users": -1}, {"seed": -1}, {"theme": 1.5}, {"text_preference": np.nan}],
)
def test_bounds(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(DemoError, match="got"):
        build_demo(tmp_path / "data", **{**SMALL, **wrong})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DemoError, match="choose another directory"):
        build_demo(tmp_path / "file" / "data", **SMALL)


def test_the_description_names_every_argument(demo: Path) -> None:
    description = json.loads((demo / "demo.json").read_text())
    assert description["items"] == 40
    assert description["behaviour"]["image_preference"] == 2.5
    assert description["version"] == build._VERSION
