"""Pictures: read once, and absent when they cannot be read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.backbone import Backbone
from training.pictures import PictureStore, colour_statistics, open_picture


def store(paths: list[Path | None], backbone: Backbone, memory_bytes: int = 10**9) -> PictureStore:
    return PictureStore(lambda row: paths[row], backbone.image_processor, memory_bytes=memory_bytes)


def test_patches_are_the_normalised_pixels(tmp_path: Path, backbone: Backbone) -> None:
    """A plain picture: every patch value is (level − mean) / deviation of its channel."""
    path = tmp_path / "plain.png"
    Image.new("RGB", (8, 8), (255, 0, 51)).save(path)
    pictures = store([path], backbone)
    picture = pictures.get(0)
    assert picture is not None
    assert picture.grid.tolist() == [1, 2, 2]
    assert picture.patches.shape == (4, 3 * 2 * 4 * 4)
    processor = backbone.image_processor
    expected = (np.array([1.0, 0.0, 0.2]) - processor.image_mean) / processor.image_std  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        picture.patches.reshape(4, 3, 32), np.broadcast_to(expected[:, None], (4, 3, 32)), rtol=1e-5
    )
    assert pictures.tokens(picture) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"not a picture", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", b"GIF89a", b"\xff\xd8\xff\xe0\x00\x10JFIF"],
)
def test_a_broken_picture_is_absent_and_recorded(content: bytes, tmp_path: Path, backbone: Backbone) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    pictures = store([path, None], backbone)
    assert pictures.get(0) is None
    assert pictures.get(1) is None
    assert list(pictures.unreadable) == [0]
    assert pictures.unreadable[0]


def test_a_truncated_picture_is_absent(tmp_path: Path, backbone: Backbone) -> None:
    path = tmp_path / "cut.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    assert store([path], backbone).get(0) is None


def test_an_extremely_long_picture_does_not_become_a_long_prompt(tmp_path: Path, backbone: Backbone) -> None:
    path = tmp_path / "line.png"
    Image.new("RGB", (60_000, 1)).save(path)
    pictures = store([path], backbone)
    picture = pictures.get(0)
    assert picture is None or pictures.tokens(picture) <= 16


def test_too_many_pixels_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (40, 30)).save(path)
    monkeypatch.setattr("training.pictures.MAX_PIXELS", 1_000)
    with pytest.raises(ValueError, match="40 × 30"):
        open_picture(path, 64)


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(path)
    assert open_picture(path, 64).getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_stands_upright(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(path, exif=exif)
    assert open_picture(path, 4_096).size == (20, 40)


def test_a_large_picture_is_shrunk_before_it_is_prepared(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (1_000, 500)).save(path)
    assert max(open_picture(path, 28 * 28).size) <= 112


def test_pictures_are_read_once_while_they_fit(tmp_path: Path, backbone: Backbone) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    kept, unkept = store([path], backbone), store([path], backbone, memory_bytes=100)
    first = kept.get(0), unkept.get(0)
    path.unlink()
    assert kept.get(0) is first[0]
    assert unkept.get(0) is None


def test_colour_statistics_by_hand(tmp_path: Path) -> None:
    """Half of the pixels red, half black: mean (½, 0, 0), deviation ½ in red and the floor elsewhere."""
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "0.png")
    Image.new("RGB", (8, 8), (0, 0, 0)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"broken")
    paths = [tmp_path / "0.png", tmp_path / "1.png", tmp_path / "2.png", None]
    assert colour_statistics(lambda row: paths[row], 4) == ([0.5, 0.0, 0.0], [0.5, 0.01, 0.01])
    assert colour_statistics(lambda row: paths[row + 2], 2) is None
