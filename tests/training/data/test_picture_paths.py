"""Paths of pictures: inside the directory of the data set, never outside of it."""

import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from training.data.dataset import Dataset


@pytest.fixture
def pictured(tmp_path: Path) -> Callable[[str | None], Path | None]:
    """The path that a one-item dataset gives for an ``image`` cell."""
    inside = tmp_path / "data"
    (inside / "images").mkdir(parents=True)
    (inside / "images" / "a.png").write_bytes(b"x")
    (tmp_path / "secret.png").write_bytes(b"x")
    (inside / "out.png").symlink_to(tmp_path / "secret.png")
    (inside / "in.png").symlink_to(inside / "images" / "a.png")
    (inside / "loop.png").symlink_to(inside / "loop.png")

    def path_of(image: str | None) -> Path | None:
        items = pl.DataFrame({"item_id": ["1"], "image": [image]}, schema={"item_id": pl.String, "image": pl.String})
        return Dataset(inside, items, pl.DataFrame()).image_path(0)

    return path_of


@pytest.mark.parametrize("image", ["images/a.png", "./images/../images/a.png", "in.png"])
def test_pictures_inside_the_directory(pictured: Callable[[str | None], Path | None], image: str) -> None:
    path = pictured(image)
    assert path is not None
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize(
    "image",
    [
        None,
        "",
        " ",
        "images",
        "images/none.png",
        "../secret.png",
        "out.png",
        "loop.png",
        "/etc/passwd",
        "a\0b",
        "a" * 5000,
    ],
)
def test_no_picture_where_it_is_absent_or_leads_out(
    pictured: Callable[[str | None], Path | None], image: str | None
) -> None:
    assert pictured(image) is None


def test_a_relative_dataset_directory_still_confines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    dataset = Dataset(Path("data"), pl.DataFrame({"item_id": ["1", "2"], "image": ["a.png", "../x"]}), pl.DataFrame())
    assert dataset.image_path(0) == Path(os.path.realpath(tmp_path)) / "data" / "a.png"
    assert dataset.image_path(1) is None
