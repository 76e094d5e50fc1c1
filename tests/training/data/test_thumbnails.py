"""Thumbnails of a data set: small, without metadata, resumable, and reused while the pictures are unchanged."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from index.items.thumbnails import Thumbnails
from training.data import thumbnails as thumbnails_module
from training.data.dataset import Dataset
from training.data.thumbnails import make_thumbnail, make_thumbnails


def dataset_of(directory: Path, images: list[str | None]) -> Dataset:
    items = pl.DataFrame(
        {
            "item_id": [f"i{row}" for row in range(len(images))],
            "title": [None] * len(images),
            "text": [None] * len(images),
            "image": images,
        },
        schema_overrides={"title": pl.String, "text": pl.String, "image": pl.String},
    )
    return Dataset(directory, items, pl.DataFrame())


def opened(content: bytes | None) -> Image.Image:
    assert content is not None
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((1024, 512), (256, 128)), ((300, 900), (85, 256)), ((256, 256), (256, 256)), ((40, 30), (40, 30))],
)
def test_at_most_256_pixels_a_side_and_never_enlarged(
    tmp_path: Path, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    Image.new("RGB", size, "teal").save(tmp_path / "p.png")
    small = opened(make_thumbnail(tmp_path / "p.png"))
    assert (small.format, small.mode, small.size) == ("JPEG", "RGB", wanted)
    assert np.allclose(np.asarray(small)[0, 0], (0, 128, 128), atol=4)


def test_nothing_that_a_camera_or_an_editor_wrote_is_carried_over(tmp_path: Path) -> None:
    picture = Image.new("RGB", (400, 300), "white")
    picture.paste("black", (0, 0, 400, 150))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    exif[0x010E] = "secret description"
    exif.get_ifd(0x8825)[1] = "N"
    picture.save(tmp_path / "p.jpg", exif=exif, comment=b"secret comment", icc_profile=b"secret profile")
    content = make_thumbnail(tmp_path / "p.jpg")
    small = opened(content)
    assert content is not None
    assert b"secret" not in content
    assert b"Exif" not in content
    assert not small.getexif()
    assert set(small.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    upright = np.asarray(small)
    assert upright[5, 5].min() > 240  # turned as the EXIF had said
    assert upright[-5, 5].max() < 15


def test_transparent_is_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "p.png")
    assert np.asarray(opened(make_thumbnail(tmp_path / "p.png"))).min() > 250


@pytest.fixture
def pictures(tmp_path: Path) -> Dataset:
    """Six items: two with pictures, none named, one missing, one unreadable, one outside the directory."""
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (300, 300), "red").save(data / "red.png")
    Image.new("RGB", (300, 300), "blue").save(data / "blue.png")
    (data / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (3, 3), "red").save(tmp_path / "outside.png")
    return dataset_of(data, ["red.png", None, "gone.png", "broken.png", "../outside.png", "blue.png"])


def test_unreadable_pictures_are_skipped_and_counted(pictures: Dataset, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    made = make_thumbnails(pictures, tmp_path / "t.npy", progress=lambda *done: reported.append(done))
    assert (made.made, made.kept, made.unreadable) == (2, 0, 1)
    assert made.thumbnails is not None
    assert [made.thumbnails.get(row) is not None for row in range(6)] == [True, False, False, False, False, True]
    assert opened(made.thumbnails.get(5)).getpixel((9, 9))[2] > 240  # type: ignore[index]
    assert reported[-1] == (6, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "outside.png", "t.npy"]


def test_a_catalogue_without_pictures_has_none(tmp_path: Path) -> None:
    made = make_thumbnails(dataset_of(tmp_path, [None, "gone.png"]), tmp_path / "t.npy")
    assert (made.thumbnails, made.made, made.unreadable) == (None, 0, 0)


def test_unchanged_thumbnails_are_copied_byte_for_byte(pictures: Dataset, tmp_path: Path) -> None:
    first = make_thumbnails(pictures, tmp_path / "first.npy").thumbnails
    assert first is not None
    now = dataset_of(pictures.directory, ["blue.png", "red.png", "red.png"])
    Image.new("RGB", (300, 300), "green").save(pictures.directory / "red.png")
    was = np.array([5, 0, -1])
    second = make_thumbnails(now, tmp_path / "second.npy", kept=first, was=was)
    assert (second.made, second.kept, second.unreadable) == (1, 2, 0)
    assert second.thumbnails is not None
    assert [second.thumbnails.get(row) for row in (0, 1)] == [first.get(5), first.get(0)]
    assert opened(second.thumbnails.get(2)).getpixel((9, 9))[1] > 120  # type: ignore[index]


def test_the_next_call_resumes_a_killed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails_module, "_SHARD_ITEMS", 2)
    names = [f"{row}.bmp" for row in range(6)]
    for row, name in enumerate(names):
        Image.new("RGB", (20 + row, 20), "red").save(tmp_path / name)
    dataset, read = dataset_of(tmp_path, list(names)), []
    make = thumbnails_module.make_thumbnail

    def counted(path: Path) -> bytes | None:
        read.append(path.name)
        return make(path)

    def killed(done: int, _all: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(thumbnails_module, "make_thumbnail", counted)
    with pytest.raises(KeyboardInterrupt):
        make_thumbnails(dataset, tmp_path / "t.npy", progress=killed)
    assert sorted(read) == names[:4]
    assert not (tmp_path / "t.npy").exists()
    read.clear()
    Image.new("RGB", (20, 20), "blue").save(tmp_path / "0.bmp")  # of the same size: its shard is made again
    made = make_thumbnails(dataset, tmp_path / "t.npy")
    assert sorted(read) == ["0.bmp", "1.bmp", "4.bmp", "5.bmp"]
    assert made.made == 6
    shown = [opened(Thumbnails.load(tmp_path / "t.npy", 6).get(row)) for row in range(6)]
    assert [picture.width for picture in shown] == [20, 21, 22, 23, 24, 25]
    assert np.asarray(shown[0])[9, 9].tolist() == pytest.approx([0, 0, 255], abs=4)
