"""Pictures: every combination can be drawn, fits the frame, and is recognisable at 28 × 28 pixels."""

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image

from demo.catalogue import ATTRIBUTES
from demo.pictures import PALETTE, PATTERNS, SIDE, draw_picture, encode
from demo.silhouettes import FLOOR, Role, parts_of

CATEGORIES = ATTRIBUTES["category"]


def small(category: str, colour: str, shape: str, pattern: str, seed: int) -> np.ndarray:
    picture = draw_picture(category, colour, shape, pattern, np.random.default_rng(seed))
    return np.asarray(picture.resize((28, 28), Image.Resampling.BICUBIC), np.float64)


def test_palette_and_patterns_cover_the_attributes() -> None:
    assert set(PALETTE) == set(ATTRIBUTES["colour"])
    assert set(PATTERNS) == set(ATTRIBUTES["pattern"])


@pytest.mark.parametrize(("category", "shape"), list(product(CATEGORIES, ATTRIBUTES["shape"])))
def test_every_product_fills_the_frame_and_stays_in_it(category: str, shape: str) -> None:
    parts = parts_of(category, shape)
    corners = np.concatenate([part.outline for part in parts])
    low, high = corners.min(axis=0), corners.max(axis=0)
    assert (low > 0.02).all()
    assert (high < 0.98).all()
    assert high[1] == pytest.approx(FLOOR)
    assert (high - low).max() > 0.7
    assert any(part.role is Role.BODY for part in parts)


def test_a_picture_is_small_decodable_and_the_same_for_the_same_seed() -> None:
    first, again, other = (
        encode(draw_picture("mug", "teal", "round", "dots", np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    with Image.open(io.BytesIO(first)) as picture:
        picture.load()
        assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")
    assert len(first) < 20_000


def test_a_plain_body_has_the_colour_of_the_palette() -> None:
    for colour, (base, _) in PALETTE.items():
        pixels = np.asarray(draw_picture("clock", colour, "round", "plain", np.random.default_rng(0)), np.float64)
        ring = pixels[SIDE // 2, 30:40].mean(axis=0)
        assert np.abs(ring - base).max() < 25, colour


@pytest.mark.no_cover
@pytest.mark.parametrize("attribute", ["colour", "shape", "pattern"])
def test_each_attribute_can_be_read_at_28_pixels(attribute: str) -> None:
    """A nearest neighbour among pictures that differ in one attribute, drawn with other tints, phases and shifts."""
    right = 0
    tried = 0
    for category in CATEGORIES[::2] if attribute == "colour" else CATEGORIES:
        fixed = {"category": category, "colour": "teal", "shape": "round", "pattern": "plain"}
        values = ATTRIBUTES[attribute]
        known = {
            value: [_features(attribute, small(**{**fixed, attribute: value}, seed=seed)) for seed in range(3)]  # type: ignore[arg-type]
            for value in values
        }
        for value in values:
            asked = _features(attribute, small(**{**fixed, attribute: value}, seed=99))  # type: ignore[arg-type]
            near = min(values, key=lambda name: min(float(np.abs(asked - seen).sum()) for seen in known[name]))
            right += near == value
            tried += 1
    assert right / tried >= 0.85


def _features(attribute: str, pixels: np.ndarray) -> np.ndarray:
    """Colour as it is; for shape and pattern the spectrum of the brightness, which ignores where a pattern begins."""
    if attribute == "colour":
        return pixels
    grey = pixels.mean(axis=2)
    return np.abs(np.fft.rfft2(grey - grey.mean()))
