"""Simulated users: the rules of every history, and the effect of each parameter."""

import numpy as np
import pytest

from demo.catalogue import ATTRIBUTES, IMAGE_ATTRIBUTES, TEXT_ATTRIBUTES, make_catalogue
from demo.errors import DemoError
from demo.users import Behaviour, Events, World, make_world, simulate

ITEMS = 200


def world(**arguments: float) -> World:
    rng = np.random.default_rng(1)
    made = make_catalogue(rng, ITEMS, theme=arguments.get("theme", 0.0), without_text=0, without_image=0)
    return make_world(rng, made, Behaviour(**arguments))  # type: ignore[arg-type]


def histories(events: Events) -> list[np.ndarray]:
    return np.split(events.items, np.flatnonzero(np.diff(events.users)) + 1)


def agreement(place: World, events: Events, attribute: str) -> float:
    """How much likelier than in the catalogue two consecutive items share a value, minus 1."""
    values = place.catalogue.values[attribute]
    same_user = events.users[1:] == events.users[:-1]
    shared = (values[events.items[1:]] == values[events.items[:-1]])[same_user].mean()
    share = np.bincount(values[events.items], minlength=len(ATTRIBUTES[attribute])) / len(events.items)
    return float(shared / (share**2).sum() - 1)


def test_histories_obey_length_time_and_no_repetition() -> None:
    events = simulate(np.random.default_rng(2), world(), 1_500)
    assert (np.diff(events.users) >= 0).all()
    assert np.unique(events.users).tolist() == list(range(1_500))
    lengths = np.bincount(events.users)
    assert lengths.min() == 5
    assert lengths.max() == 20
    for history in histories(events):
        assert len(set(history.tolist())) == len(history)
    same_user = events.users[1:] == events.users[:-1]
    assert (np.diff(events.times)[same_user] > 0).all()


def test_the_same_seed_gives_the_same_events_and_progress_is_reported() -> None:
    reported: list[int] = []
    first = simulate(np.random.default_rng(3), world(), 1_200, progress=reported.append)
    again = simulate(np.random.default_rng(3), world(), 1_200)
    other = simulate(np.random.default_rng(4), world(), 1_200)
    assert reported == [1_000, 1_200]
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ("users", "items", "times"))
    assert not np.array_equal(first.items, other.items)


def test_a_tiny_catalogue_is_exhausted_not_repeated() -> None:
    rng = np.random.default_rng(0)
    made = make_catalogue(rng, 3, theme=0.0, without_text=0, without_image=0)
    events = simulate(rng, make_world(rng, made, Behaviour()), 50)
    assert all(sorted(history.tolist()) == [0, 1, 2] for history in histories(events))


def test_no_users_give_no_events() -> None:
    events = simulate(np.random.default_rng(0), world(), 0)
    assert len(events.users) == len(events.items) == len(events.times) == 0


@pytest.mark.parametrize(
    ("attributes", "silent"), [(TEXT_ATTRIBUTES, "image_preference"), (IMAGE_ATTRIBUTES, "text_preference")]
)
def test_a_preference_shows_in_its_own_attributes_only(attributes: tuple[str, ...], silent: str) -> None:
    place = world(**{silent: 0.0, "transition": 0.0})
    events = simulate(np.random.default_rng(5), place, 3_000)
    for name in (*TEXT_ATTRIBUTES, *IMAGE_ATTRIBUTES):
        if name in attributes:
            assert agreement(place, events, name) > 0.2
        else:
            assert abs(agreement(place, events, name)) < 0.1


def test_each_category_calls_for_two_others() -> None:
    place = world(text_preference=0.0, image_preference=0.0, transition=3.0, popularity=0.0)
    events = simulate(np.random.default_rng(6), place, 3_000)
    category = place.catalogue.values["category"]
    same_user = events.users[1:] == events.users[:-1]
    before, after = category[events.items[:-1]][same_user], category[events.items[1:]][same_user]
    called = place.follows > 0
    assert (called.sum(axis=1) == 2).all()
    assert not np.diag(called).any()
    sizes = np.bincount(category, minlength=10)
    lifted = called @ sizes * np.exp(3.0)
    expected = np.bincount(before, minlength=10) / len(before) @ (lifted / (lifted + ~called @ sizes))
    assert called[before, after].mean() == pytest.approx(expected, abs=0.02)


def test_popularity_spreads_the_counts() -> None:
    flat, steep = (
        simulate(np.random.default_rng(7), world(text_preference=0.0, image_preference=0.0, popularity=spread), 3_000)
        for spread in (0.0, 1.5)
    )
    counts = [np.bincount(events.items, minlength=ITEMS) for events in (flat, steep)]
    assert counts[0].max() < 2.0 * counts[0].mean()
    assert counts[1].max() > 4.0 * counts[1].mean()


@pytest.mark.parametrize("theme", [0.0, 1.0])
def test_a_shared_theme_correlates_both_preferences(theme: float) -> None:
    """Likers of a brand's theme like its colours too, only under a theme."""
    place = world(theme=theme, popularity=0.0, transition=0.0)
    events = simulate(np.random.default_rng(8), place, 3_000)
    brands = place.catalogue.values["brand"][events.items] % 6
    colours = place.catalogue.values["colour"][events.items] % 6
    # Of different items of one user: pair each event with the user's next one.
    same_user = events.users[1:] == events.users[:-1]
    matched = (brands[:-1] == colours[1:])[same_user].mean()
    chance = (np.bincount(brands, minlength=6) / len(brands)) @ (np.bincount(colours, minlength=6) / len(colours))
    if theme:
        assert matched > 1.5 * chance
    else:
        assert matched == pytest.approx(chance, rel=0.1)


@pytest.mark.parametrize(
    "arguments",
    [{"text_preference": -1.0}, {"image_preference": 21.0}, {"theme": 2.0}, {"popularity": float("nan")},
     {"shortest": 0}, {"shortest": 9, "longest": 8}],
)  # fmt: skip
def test_bounds(arguments: dict[str, float]) -> None:
    with pytest.raises(DemoError, match="got"):
        Behaviour(**arguments)  # type: ignore[arg-type]
