from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress

from training.embedding.baseline_features import embed_texts, embed_without_vlm
from training.embedding.picture_features import (
    EDGE_CELLS,
    EDGE_ORIENTATIONS,
    SIDE,
    colour_histogram,
    colour_layout,
    edge_histogram,
    picture_features,
    read_picture,
    to_lab,
)
from training.errors import EmbeddingsError, PictureError


class SmallShop:
    """A catalogue in memory."""

    def __init__(self, texts: Sequence[str | None], pictures: Sequence[Path | None]) -> None:
        self._texts, self._pictures = list(texts), list(pictures)

    def item_ids(self) -> list[str]:
        return [f"i{row}" for row in range(len(self._texts))]

    def texts(self) -> list[str | None]:
        return self._texts

    def image_path(self, row: int) -> Path | None:
        return self._pictures[row]


def paint(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (30, 40), mode: str = "RGB") -> Path:
    Image.new(mode, size, colour).save(path)
    return path


@pytest.mark.parametrize(
    ("pixel", "lab"),
    [  # published conversions of the sRGB primaries under D65
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((119, 119, 119), (50.03, 0.0, 0.0)),
    ],
)
def test_known_colours_in_lab(pixel: tuple[int, int, int], lab: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(to_lab(np.array(pixel, dtype=np.uint8)), lab, atol=0.02)


def test_a_colour_histogram_is_a_share_and_ignores_the_layout() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    histogram = colour_histogram(to_lab(pixels))
    assert histogram.shape == (180,)
    assert histogram.sum() == pytest.approx(1)
    assert histogram.min() >= 0
    shuffled = np.random.default_rng(1).permutation(pixels.reshape(-1, 3)).reshape(8, 8, 3)
    np.testing.assert_allclose(colour_histogram(to_lab(shuffled)), histogram)


def test_black_and_white_lie_in_opposite_bins_of_the_grey_axis() -> None:
    black = colour_histogram(np.zeros((4, 4, 3)))
    white = colour_histogram(np.full((4, 4, 3), (100.0, 0, 0)))
    # a* = b* = 0 lies half-way between the two middle bins of six in either axis: four bins of a quarter.
    assert sorted(black[black > 0]) == pytest.approx([0.25] * 4)
    assert np.flatnonzero(black).max() < 36
    assert np.flatnonzero(white).min() >= 4 * 36


def test_layout_keeps_where_a_colour_is() -> None:
    lab = np.zeros((12, 12, 3))
    lab[:6, :, 0] = 80
    layout = colour_layout(lab).reshape(6, 6, 3)
    np.testing.assert_allclose(layout[:3, :, 0], 80)
    np.testing.assert_allclose(layout[3:, :, 0], 0)


@pytest.mark.parametrize(("axis", "orientation"), [(1, 0), (0, EDGE_ORIENTATIONS // 2)])
def test_edges_fall_into_the_bin_of_their_gradient(axis: int, orientation: int) -> None:
    ramp = np.arange(16.0)
    lab = np.zeros((16, 16, 3))
    lab[..., 0] = ramp[None, :] if axis == 1 else ramp[:, None]
    edges = edge_histogram(lab).reshape(EDGE_CELLS, EDGE_CELLS, EDGE_ORIENTATIONS)
    np.testing.assert_allclose(edges[..., orientation], 1.0)
    np.testing.assert_allclose(np.delete(edges, orientation, axis=2), 0, atol=1e-12)


def test_a_diagonal_edge_is_shared_between_no_more_than_two_orientations() -> None:
    lab = np.zeros((16, 16, 3))
    lab[..., 0] = np.arange(16.0)[None, :] + 0.2 * np.arange(16.0)[:, None]
    edges = edge_histogram(lab).reshape(-1, EDGE_ORIENTATIONS)
    np.testing.assert_allclose(edges.sum(axis=1), np.hypot(1, 0.2))
    assert ((edges > 1e-9).sum(axis=1) == 2).all()


def test_unreadable_pictures_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    whole = paint(tmp_path / "whole.png", (1, 2, 3), (200, 200))
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:60])
    for name in ("absent.png", "", "text.jpg", "cut.png"):
        with pytest.raises(PictureError):
            read_picture(tmp_path / name)


def test_modes_and_sizes_become_small_rgb_over_white(tmp_path: Path) -> None:
    clear = read_picture(paint(tmp_path / "clear.png", (255, 0, 0, 0), mode="RGBA"))
    grey = read_picture(paint(tmp_path / "grey.png", (7,), (1, 190), mode="L"))
    assert clear.shape == grey.shape == (SIDE, SIDE, 3)
    assert (clear == 255).all()
    assert (grey == 7).all()
    assert [part.shape for part in picture_features(clear)] == [(180,), (108,), (128,)]


def test_absent_and_broken_modalities_are_rows_of_zeros(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG broken")
    red, blue = paint(tmp_path / "red.png", (200, 0, 0)), paint(tmp_path / "blue.png", (0, 0, 200))
    made = embed_without_vlm(SmallShop(["red shoe", None, "!!", "blue hat"], [red, broken, None, blue]))
    lengths = {name: np.linalg.norm(block, axis=1) for name, block in made.vectors.items()}
    np.testing.assert_allclose(lengths["text"], [1, 0, 0, 1], atol=1e-5)
    np.testing.assert_allclose(lengths["image"], [1, 0, 0, 1], atol=1e-5)
    assert made.model["kind"] == "no-vlm"
    assert made.unreadable == {"i1": f"UnidentifiedImageError: cannot identify image file '{broken}'"}
    assert made.item_ids == ["i0", "i1", "i2", "i3"]


def test_likeness_is_kept(tmp_path: Path) -> None:
    colours = [(200, 0, 0), (190, 10, 5), (0, 0, 200), (0, 200, 0), (250, 250, 250), (0, 0, 0)]
    pictures = [paint(tmp_path / f"{n}.png", colour) for n, colour in enumerate(colours)]
    texts = ["oak table", "oak chair", "glass bowl", "glass jar", "tin box", "wool rug"]
    made = embed_without_vlm(SmallShop(texts, pictures))
    for name in ("text", "image"):
        likeness = made.vectors[name] @ made.vectors[name].T
        assert likeness[0, 1] > max(likeness[0, 2:]) + 0.1


def test_the_same_catalogue_gives_the_same_vectors_and_shows_progress(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shop = SmallShop(
        [f"word{a} thing{b}" for a, b in rng.integers(0, 9, (30, 2))],
        [
            paint(tmp_path / f"{n}.png", tuple(colour))
            for n, colour in enumerate(rng.integers(0, 256, (30, 3)).tolist())
        ],
    )
    with Progress(disable=True) as progress:
        first = embed_without_vlm(shop, text_dim=5, image_dim=4, progress=progress)
        assert progress.finished
    again = embed_without_vlm(shop, text_dim=5, image_dim=4)
    assert first.dims() == {"text": 5, "image": 4}
    for name, block in first.vectors.items():
        np.testing.assert_array_equal(block, again.vectors[name])


@pytest.mark.parametrize("count", [1, 3])
def test_a_catalogue_of_one_item_or_of_equal_items_has_vectors(tmp_path: Path, count: int) -> None:
    path = paint(tmp_path / "same.png", (9, 99, 200))
    made = embed_without_vlm(SmallShop(["one thing here"] * count, [path] * count))
    for block in made.vectors.values():
        np.testing.assert_allclose(np.linalg.norm(block, axis=1), 1, atol=1e-5)


def test_one_term_alone_is_enough() -> None:
    np.testing.assert_array_equal(embed_texts(["shoe", "shoe", None], 8, seed=0), [[1], [1], [0]])


def test_scripts_without_latin_letters_count_as_words() -> None:
    block = embed_texts(["красный стол", "синий стул", "赤い 椅子"], 8, seed=0)
    np.testing.assert_allclose(np.linalg.norm(block, axis=1), 1, atol=1e-5)


def test_nothing_at_all_is_an_error() -> None:
    with pytest.raises(
        EmbeddingsError, match="none of the 2 items has a text with a letter or digit in it, or a readable picture"
    ):
        embed_without_vlm(SmallShop([None, "…"], [None, None]))
