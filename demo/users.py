"""Simulates the histories of users in the demo catalogue.

A user has a preference for each brand and material (in texts) and for each colour, shape and pattern (in pictures). The
next item is drawn without replacement from a softmax over

    text_preference · t(user, item) + image_preference · v(user, item)
        + transition(category before → category) + log popularity

where t and v have unit variance over users and items, so equal weights have equal effects.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demo.catalogue import ATTRIBUTES, IMAGE_ATTRIBUTES, TEXT_ATTRIBUTES, THEMES, Catalogue, theme_of
from demo.errors import DemoError

_BLOCK = 1_000
_START = 1_704_067_200  # 2024-01-01
_YEAR_S = 31_536_000
_HOUR_S = 3_600
_FOLLOWS = 2


@dataclass(frozen=True)
class Behaviour:
    """How users choose.

    Attributes:
        text_preference: weight of the preference for brand and material, 0 … 20.
        image_preference: weight of the preference for colour, shape and pattern, 0 … 20.
        transition: log odds added to the two categories that follow the previous one.
        popularity: standard deviation of the items' log popularity.
        theme: 0 makes a user's preferences independent; at 1 all of them are one preference for themes (see
            :func:`demo.catalogue.make_catalogue`).
        shortest: fewest events of a user.
        longest: most events of a user.

    Raises:
        DemoError: a value is out of bounds.
    """

    text_preference: float = 2.5
    image_preference: float = 2.5
    transition: float = 1.5
    popularity: float = 0.8
    theme: float = 0.0
    shortest: int = 5
    longest: int = 20

    def __post_init__(self) -> None:
        for name in ("text_preference", "image_preference", "transition", "popularity"):
            if not 0 <= getattr(self, name) <= 20:
                raise DemoError(f"{name} must lie in 0 … 20, got {getattr(self, name)}")
        if not 0 <= self.theme <= 1:
            raise DemoError(f"theme must lie in 0 … 1, got {self.theme}")
        if not 1 <= self.shortest <= self.longest:
            raise DemoError(f"1 ≤ shortest ≤ longest must hold, got {self.shortest} and {self.longest}")


@dataclass(frozen=True)
class World:
    """Properties that all users share.

    Attributes:
        catalogue: the items.
        behaviour: how users choose.
        log_popularity: (items,) float64.
        follows: (categories, categories) float64, added to the utility of an item whose category is the column when the
            category before was the row.
    """

    catalogue: Catalogue
    behaviour: Behaviour
    log_popularity: NDArray[np.float64]
    follows: NDArray[np.float64]


@dataclass(frozen=True)
class Events:
    """Events in the order of users, a user's oldest first.

    Attributes:
        users: (events,) int64 position of the user.
        items: (events,) int64 item rows.
        times: (events,) int64 seconds since 1970 UTC, strictly rising within a user.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    times: NDArray[np.int64]


def make_world(rng: np.random.Generator, catalogue: Catalogue, behaviour: Behaviour) -> World:
    """Draw the items' popularity and the order of the categories."""
    categories = len(ATTRIBUTES["category"])
    follows = np.zeros((categories, categories))
    order = rng.permutation(categories)
    for step in range(1, _FOLLOWS + 1):
        follows[order, np.roll(order, -step)] = behaviour.transition
    return World(catalogue, behaviour, behaviour.popularity * rng.standard_normal(len(catalogue)), follows)


def simulate(
    rng: np.random.Generator, world: World, users: int, *, progress: Callable[[int], None] = lambda _users: None
) -> Events:
    """Draw the histories of new users.

    Args:
        rng: source of randomness.
        world: items and behaviour.
        users: how many.
        progress: called with the number of users done so far.

    Returns:
        Their events. A user never touches an item twice, so histories are no longer than the catalogue.
    """
    blocks = []
    for start in range(0, users, _BLOCK):
        block = min(_BLOCK, users - start)
        blocks.append(_simulate_block(rng, world, block, start))
        progress(start + block)
    if not blocks:
        return Events(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
    return Events(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def utilities(rng: np.random.Generator, world: World, users: int) -> NDArray[np.float64]:
    """Utilities of every item for new users.

    Returns:
        (users, items) float64: everything in the utility but the transition.
    """
    behaviour = world.behaviour
    themes = rng.standard_normal((users, THEMES))
    text = _preferences(rng, world, themes, TEXT_ATTRIBUTES)
    image = _preferences(rng, world, themes, IMAGE_ATTRIBUTES)
    return behaviour.text_preference * text + behaviour.image_preference * image + world.log_popularity


def _preferences(
    rng: np.random.Generator, world: World, themes: NDArray[np.float64], attributes: tuple[str, ...]
) -> NDArray[np.float64]:
    """(users, items) preference by one modality: sum of unit-variance terms over the root of their number."""
    share = world.behaviour.theme
    total = np.zeros((len(themes), len(world.catalogue)))
    for name in attributes:
        values = len(ATTRIBUTES[name])
        of_value = themes[:, [theme_of(name, value) for value in range(values)]]
        own = rng.standard_normal((len(themes), values))
        mixed = np.sqrt(1.0 - share) * own + np.sqrt(share) * of_value
        total += mixed[:, world.catalogue.values[name]]
    return np.asarray(total / np.sqrt(len(attributes)))


def _simulate_block(
    rng: np.random.Generator, world: World, users: int, first_user: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    behaviour, items = world.behaviour, len(world.catalogue)
    utility = utilities(rng, world, users)
    odds = np.exp(utility - utility.max(axis=1, keepdims=True))
    lift = np.exp(world.follows)
    category = world.catalogue.values["category"]
    longest = min(behaviour.longest, items)
    lengths = rng.integers(min(behaviour.shortest, longest), longest + 1, users)
    everyone = np.arange(users)
    chosen = np.zeros((users, longest), dtype=np.int64)
    for step in range(longest):
        weights = odds * lift[category[chosen[:, step - 1]]][:, category] if step else odds
        chosen[:, step] = _draw_rows(rng, weights)
        odds[everyone, chosen[:, step]] = 0.0
    used = np.arange(longest) < lengths[:, None]
    gaps = (rng.exponential(40.0, (users, longest)) * _HOUR_S).astype(np.int64) + 1
    gaps[:, 0] += rng.integers(0, _YEAR_S, users)
    times = _START + np.cumsum(gaps, axis=1)
    owner = np.broadcast_to(first_user + everyone[:, None], used.shape)
    return owner[used], chosen[used], times[used]


def _draw_rows(rng: np.random.Generator, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """One column of each row, with a probability in proportion to its weight; a weight of 0 is never drawn."""
    ends = np.cumsum(weights, axis=1)
    # 1 − random lies in (0, 1]: the first end that reaches the point has a weight above 0.
    points = (1.0 - rng.random(len(weights))) * ends[:, -1]
    return np.asarray((ends < points[:, None]).sum(axis=1), dtype=np.int64)
