"""The demo catalogue: what each modality contains, and the effect of theme and seed."""

import re

import numpy as np
import pytest

from demo.catalogue import ATTRIBUTES, IMAGE_ATTRIBUTES, TEXT_ATTRIBUTES, Catalogue, make_catalogue, theme_of
from demo.errors import DemoError


def catalogue(items: int = 400, *, theme: float = 0.0, seed: int = 0, missing: int = 5) -> Catalogue:
    rng = np.random.default_rng(seed)
    return make_catalogue(rng, items, theme=theme, without_text=missing, without_image=missing)


def words(text: str | None) -> set[str]:
    return set(re.findall(r"[a-z]+", (text or "").lower()))


def test_texts_contain_brand_material_and_category_and_nothing_that_pictures_show() -> None:
    made = catalogue()
    shown = {word for name in IMAGE_ATTRIBUTES for word in ATTRIBUTES[name]}
    for row in np.flatnonzero(~made.without_text).tolist():
        stated = {made.value(row, name).lower() for name in (*TEXT_ATTRIBUTES, "category")}
        assert stated <= words(made.title(row))
        assert stated <= words(made.text(row))
        assert not shown & (words(made.title(row)) | words(made.text(row)))


def test_texts_name_no_other_brand_or_material() -> None:
    made = catalogue()
    for row in np.flatnonzero(~made.without_text).tolist():
        for name in TEXT_ATTRIBUTES:
            others = {value.lower() for value in ATTRIBUTES[name]} - {made.value(row, name).lower()}
            assert not others & words(made.text(row))


def test_missing_texts_and_pictures_are_of_different_items() -> None:
    made = catalogue(missing=7)
    assert made.without_text.sum() == made.without_image.sum() == 7
    assert not (made.without_text & made.without_image).any()
    row = int(np.flatnonzero(made.without_text)[0])
    assert made.title(row) is None
    assert made.text(row) is None


def test_without_a_theme_text_and_picture_are_independent() -> None:
    """Pearson's chi-square of 6 × 6 themes, 25 degrees of freedom: above 52.6 with a probability of 0.001."""
    made = catalogue(1_500, missing=0)
    materials = [theme_of("material", int(v)) for v in made.values["material"]]
    colours = [theme_of("colour", int(v)) for v in made.values["colour"]]
    counts = np.histogram2d(materials, colours, bins=(6, 6))[0]
    expected = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 52.6


def test_at_theme_1_all_attributes_belong_to_one_theme() -> None:
    made = catalogue(theme=1.0)
    themes = {
        name: np.array([theme_of(name, int(v)) for v in made.values[name]])
        for name in ("brand", "material", "colour", "pattern")
    }
    assert all((themes["brand"] == other).all() for other in themes.values())
    assert (themes["brand"] % 4 == made.values["shape"]).all()
    assert len(np.unique(themes["brand"])) == 6


def test_titles_hardly_repeat() -> None:
    made = catalogue(600, missing=0)
    assert len({made.title(row) for row in range(600)}) >= 595


def test_prices_and_ids_are_well_formed() -> None:
    made = catalogue(30, missing=0)
    assert [made.item_id(row) for row in (0, 29)] == ["item-00001", "item-00030"]
    assert (made.prices >= 3.9).all()
    assert {f"{price:.2f}"[-2:] for price in made.prices} <= {"90", "00"}


@pytest.mark.parametrize(
    ("items", "theme", "without"),
    [(0, 0.0, 0), (5, -0.1, 0), (5, 1.1, 0), (5, float("nan"), 0), (5, 0.0, 3), (5, 0.0, -1)],
)
def test_bounds(items: int, theme: float, without: int) -> None:
    with pytest.raises(DemoError, match="got"):
        make_catalogue(np.random.default_rng(0), items, theme=theme, without_text=without, without_image=without)
