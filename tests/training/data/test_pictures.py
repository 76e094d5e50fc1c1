"""Pictures are read once; unreadable ones are absent."""

import copy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.backbones.backbone import Backbone
from training.data.pictures import PictureStore, colour_statistics


def store(paths: list[Path | None], backbone: Backbone, memory_bytes: int = 10**9) -> PictureStore:
    return PictureStore(lambda row: paths[row], backbone.image_processor, memory_bytes=memory_bytes)


@pytest.mark.parametrize("most_pixels", [28 * 28, 401_408])
def test_the_requested_size_does_not_affect_readability(tmp_path: Path, backbone: Backbone, most_pixels: int) -> None:
    """The image processor itself refuses ratios above 200, but only where it is asked for large pictures."""
    sizes = {"long.png": (20_000, 50), "just.png": (20_000, 100), "rounded.png": (47_500, 250), "one.png": (1, 1)}
    for name, size in sizes.items():
        Image.new("1", size).save(tmp_path / name)
    paths: list[Path | None] = [tmp_path / name for name in sizes]
    processor = copy.deepcopy(backbone.image_processor)
    processor.size = {"shortest_edge": 16, "longest_edge": most_pixels}  # type: ignore[misc]  # of this copy
    pictures = PictureStore(lambda row: paths[row], processor, memory_bytes=0)
    assert [pictures.get(row) is not None for row in range(4)] == [False, True, True, True]
    assert list(pictures.unreadable) == [0]


def test_a_picture_that_an_image_processor_refuses_is_absent(tmp_path: Path, backbone: Backbone) -> None:
    class Strict:
        merge_size, size = 2, backbone.image_processor.size

        def __call__(self, **_arguments: object) -> dict[str, object]:
            raise ValueError("a picture must be a square")

    Image.new("RGB", (8, 9)).save(tmp_path / "p.png")
    pictures = PictureStore(lambda _row: tmp_path / "p.png", Strict(), memory_bytes=0)  # type: ignore[arg-type]
    assert pictures.get(0) is None
    assert pictures.unreadable == {0: "the image processor refuses it: a picture must be a square"}


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
    [
        b"",
        b"not a picture",
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        b"GIF89a",
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"\0\0\0\x18ftypavif\0\0\0\0avifmif1",
    ],
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
    assert pictures.get(0) is None
    assert pictures.unreadable == {
        0: "one side of a picture may be at most 200 times the other, got 60000 × 1; crop it"
    }
    Image.new("RGB", (40_000, 200)).save(path)
    picture = store([path], backbone).get(0)
    assert picture is not None
    assert pictures.tokens(picture) <= 16


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
