"""Makes the demo catalogue: titles contain brand and material, pictures show colour, shape and pattern.

Both contain the category. Other attributes of one modality are independent of those of the other, unless ``theme``
correlates them. So a model can know an item's colour from its picture only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from demo.errors import DemoError

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "category": ("mug", "teapot", "bowl", "vase", "planter", "lamp", "clock", "chair", "bottle", "candlestick"),
    "brand": (
        "Ostrell", "Kirrow", "Maduva", "Peltrane", "Sollind", "Vantour", "Brimsel", "Hedlow",
        "Lumette", "Zimmora", "Tolvik", "Nyberth", "Calowa", "Wexmoor", "Ilvaro", "Dunmere",
    ),
    "material": ("oak", "walnut", "bamboo", "cork", "ceramic", "glass", "marble", "brass", "copper", "steel"),
    "colour": ("terracotta", "mustard", "sage", "teal", "navy", "plum", "blush", "charcoal", "ivory", "sky"),
    "shape": ("round", "angular", "slender", "flared"),
    "pattern": ("plain", "stripes", "dots", "checks", "waves", "dipped"),
}  # fmt: skip
"""Every attribute with its values. The text contains ``brand`` and ``material``, the picture ``colour``, ``shape`` and
``pattern``, both ``category``."""

TEXT_ATTRIBUTES = ("brand", "material")
IMAGE_ATTRIBUTES = ("colour", "shape", "pattern")
THEMES = 6
"""Number of themes; the value at position v of an attribute belongs to theme v mod 6 (shapes: v mod 4)."""

_TRIES = 20
_MOST_ITEMS = 1_000_000
_CATEGORY_PRICE = (16, 48, 22, 34, 28, 79, 62, 149, 26, 24)
_MATERIAL_FACTOR = (1.1, 1.3, 0.8, 0.7, 1.0, 0.9, 1.6, 1.4, 1.3, 1.0)
_CARE = {
    "oak": "The oak is oiled by hand and darkens with the years.",
    "walnut": "The walnut is waxed and keeps its grain.",
    "bamboo": "The bamboo is pressed in layers and very light.",
    "cork": "The cork is warm to the touch and easy to wipe.",
    "ceramic": "The ceramic is fired twice and safe in the dishwasher.",
    "glass": "The glass is blown by mouth and rings when tapped.",
    "marble": "The marble is honed and heavy in the hand.",
    "brass": "The brass is left bare and takes on a patina.",
    "copper": "The copper is hammered and wants a soft cloth.",
    "steel": "The steel is brushed and does not rust.",
}
_FIRST_SENTENCES = (
    "A {category} in {material} from the {brand} workshop.",
    "{brand} makes this {category} of {material}.",
    "The {category} by {brand}, worked in {material}.",
    "{material} {category} out of the house of {brand}.",
)


@dataclass(frozen=True)
class Catalogue:
    """Items of the demo.

    Attributes:
        values: (items,) int64 per attribute, positions in :data:`ATTRIBUTES`.
        prices: (items,) float64, euros with two decimals.
        first_sentences: (items,) int64, number of the sentence that the text begins with.
        without_text: (items,) bool, items whose title and text are left out.
        without_image: (items,) bool, items that have no picture.
    """

    values: Mapping[str, NDArray[np.int64]]
    prices: NDArray[np.float64]
    first_sentences: NDArray[np.int64]
    without_text: NDArray[np.bool_] = field(repr=False)
    without_image: NDArray[np.bool_] = field(repr=False)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.prices)

    def item_id(self, row: int) -> str:
        """The id of an item."""
        return f"item-{row + 1:05d}"

    def value(self, row: int, attribute: str) -> str:
        """The value of an attribute of one item, as a word."""
        return ATTRIBUTES[attribute][int(self.values[attribute][row])]

    def title(self, row: int) -> str | None:
        """Brand, material and category, such as ``Ostrell oak mug``; None for an item without text."""
        if self.without_text[row]:
            return None
        return f"{self.value(row, 'brand')} {self.value(row, 'material')} {self.value(row, 'category')}"

    def text(self, row: int) -> str | None:
        """Two sentences on brand, material and category; None for an item without text."""
        if self.without_text[row]:
            return None
        words = {name: self.value(row, name) for name in ("brand", "material", "category")}
        first = _FIRST_SENTENCES[self.first_sentences[row]].format(**words)
        return f"{first[0].upper()}{first[1:]} {_CARE[words['material']]}"


def make_catalogue(
    rng: np.random.Generator, items: int, *, theme: float, without_text: int, without_image: int
) -> Catalogue:
    """Draw a catalogue.

    Args:
        rng: source of randomness.
        items: how many, at least 1.
        theme: probability that an attribute follows the item's theme, 0 … 1. At 0 all attributes are independent; at 1
            all of an item belong to one theme, so text and picture carry the same information.
        without_text: items without title and text.
        without_image: items without a picture; they have a text.

    Raises:
        DemoError: a number is out of bounds.
    """
    if without_text < 0 or without_image < 0:
        raise DemoError(f"without_text and without_image must be at least 0, got {without_text} and {without_image}")
    fewest = max(1, without_text + without_image)
    if not fewest <= items <= _MOST_ITEMS:
        raise DemoError(
            f"items must lie in {fewest} … {_MOST_ITEMS:,} ({without_text} of them have no text and {without_image} no "
            f"picture), got {items}"
        )
    if not 0 <= theme <= 1:
        raise DemoError(f"theme must lie in 0 … 1, got {theme}")
    taken: set[tuple[int, ...]] = set()
    drawn = [_draw_distinct(rng, theme, taken) for _ in range(items)]
    columns = np.array(drawn, dtype=np.int64)
    values = {name: columns[:, position] for position, name in enumerate(ATTRIBUTES)}
    marks = rng.permutation(items)
    return Catalogue(
        values=values,
        prices=_prices(rng, values),
        first_sentences=rng.integers(0, len(_FIRST_SENTENCES), items),
        without_text=marks < without_text,
        without_image=marks >= items - without_image,
    )


def _draw_distinct(rng: np.random.Generator, theme: float, taken: set[tuple[int, ...]]) -> tuple[int, ...]:
    """One item, of a brand, material and category that were not together before if that can be had in 20 draws."""
    for _ in range(_TRIES):
        item = _draw(rng, theme)
        if item[:3] not in taken:
            break
    taken.add(item[:3])
    return item


def _draw(rng: np.random.Generator, theme: float) -> tuple[int, ...]:
    own = int(rng.integers(THEMES))
    item = []
    for name, names in ATTRIBUTES.items():
        follows = name != "category" and rng.random() < theme
        choices = [v for v in range(len(names)) if theme_of(name, v) == own % min(THEMES, len(names))]
        item.append(choices[int(rng.integers(len(choices)))] if follows else int(rng.integers(len(names))))
    return tuple(item)


def theme_of(attribute: str, value: int) -> int:
    """Theme of a value, 0 … 5, or below the number of values of the attribute if that is smaller."""
    return value % min(THEMES, len(ATTRIBUTES[attribute]))


def _prices(rng: np.random.Generator, values: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float64]:
    """Prices from category, material, brand and some noise, ending in .90 or .00."""
    base = np.array(_CATEGORY_PRICE)[values["category"]] * np.array(_MATERIAL_FACTOR)[values["material"]]
    tier = 0.8 + 0.4 * (values["brand"] * 7 % 16) / 15
    noise = rng.uniform(0.85, 1.15, len(base))
    whole = np.maximum(np.round(base * tier * noise), 4.0)
    return np.asarray(np.where(rng.random(len(base)) < 0.7, whole - 0.1, whole).round(2))
