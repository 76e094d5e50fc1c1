"""Team draft: by hand, its properties for any rankings, and that equal arms win equally often."""

from itertools import islice, repeat

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from service.experiments.interleaved_report import preference_of
from service.experiments.team_draft import Pick, coins_of, team_draft

ITEMS = [f"i{number}" for number in range(12)]
rankings = some.permutations(ITEMS).flatmap(lambda found: some.integers(0, 12).map(lambda size: found[:size]))
coins = some.lists(some.integers(0, 1), min_size=12, max_size=12)


def merged(first: list[str], second: list[str], picks: list[Pick]) -> list[str]:
    return [(first, second)[pick.team][pick.place] for pick in picks]


def test_by_hand() -> None:
    first, second = ["a", "b", "c", "d"], ["b", "e", "a", "f"]
    picks = team_draft((first, second), 6, iter([1, 0, 0]))
    # b of the second; a of the first, which has fewer; then b and c: the first begins with c as b is taken, then e; …
    assert merged(first, second, picks) == ["b", "a", "c", "e", "d", "f"]
    assert [pick.team for pick in picks] == [1, 0, 0, 1, 0, 1]
    assert picks[2] == Pick(0, 2)


@settings(max_examples=50)
@given(rankings, rankings, some.integers(0, 24), coins)
def test_for_any_rankings(first: list[str], second: list[str], length: int, flips: list[int]) -> None:
    picks = team_draft((first, second), length, iter(flips))
    items = merged(first, second, picks)
    assert len(items) == min(length, len({*first, *second})) == len(set(items))
    for team, ranking in enumerate((first, second)):
        places = [pick.place for pick in picks if pick.team == team]
        assert places == sorted(places)
        # What an arm skipped was taken already.
        assert all(item in items for item in ranking[: max(places, default=-1) + 1])
    sizes = [0, 0]
    for position, pick in enumerate(picks):
        sizes[pick.team] += 1
        others = {*(first, second)[1 - pick.team]} - {*items[: position + 1]}
        assert sizes[pick.team] - sizes[1 - pick.team] <= 1 or not others


@settings(max_examples=50)
@given(rankings, rankings, some.integers(0, 12), some.integers(0, 12), coins)
def test_pages_are_parts_of_one_ranking(
    first: list[str], second: list[str], length: int, more: int, flips: list[int]
) -> None:
    whole = team_draft((first, second), length + more, iter(flips))
    assert team_draft((first, second), length, iter(flips)) == whole[:length]
    assert team_draft((first[:length], second[:length]), length, iter(flips)) == whole[:length]


def test_places_for_new_items_by_hand() -> None:
    first, second = ["a", "b", "n", "c", "o"], ["a", "d", "n", "e", "o"]
    new = [item in "no" for item in first]
    picks = team_draft((first, second), 7, repeat(0), (new, new), lambda length: length // 3)
    # n is kept the third place, which is the first arm's; o the sixth; without them: a d b n c e o.
    assert merged(first, second, picks) == ["a", "d", "n", "e", "b", "o", "c"]
    assert [pick.team for pick in picks] == [0, 1, 0, 1, 0, 1, 0]


def with_places(ranking: list[str], fresh: set[str], every: int) -> list[str]:
    """The ranking in which at least n // every of the first n items are new, while there are any."""
    found: list[str] = []
    left = [*ranking]
    while left:
        wanted = sum(item in fresh for item in found) < (len(found) + 1) // every
        best = next((item for item in left if item in fresh), left[0]) if wanted else left[0]
        left.remove(best)
        found.append(best)
    return found


@settings(max_examples=200)
@given(rankings, rankings, some.sets(some.sampled_from(ITEMS)), some.integers(1, 4), some.integers(0, 24), coins)
def test_places_for_new_items_for_any_rankings(
    first: list[str], second: list[str], fresh: set[str], every: int, length: int, flips: list[int]
) -> None:
    first, second = with_places(first, fresh, every), with_places(second, fresh, every)

    def drafted(size: int) -> list[Pick]:
        cut = first[:size], second[:size]
        new = tuple([item in fresh for item in ranking] for ranking in cut)
        return team_draft(cut, size, iter(flips), (new[0], new[1]), lambda end: end // every)

    picks = drafted(length)
    items = merged(first, second, picks)
    assert len(items) == min(length, len({*first, *second})) == len(set(items))
    assert [drafted(size) for size in range(len(picks))] == [picks[:size] for size in range(len(picks))]
    of_both = min(sum(item in fresh for item in ranking) for ranking in (first, second))
    for end in range(len(items) + 1):
        assert sum(item in fresh for item in items[:end]) >= min(end // every, of_both)


def test_coins_are_the_same_again_and_differ_by_salt_user_and_ranking() -> None:
    def flips(*asked: str, first: str = "i1") -> list[int]:
        return list(islice(coins_of(*asked, [first, "i2"]), 1000))

    assert flips("salt", "anna") == flips("salt", "anna")
    assert len({tuple(flips(*asked)) for asked in (("salt", "anna"), ("salt", "bob"), ("pepper", "anna"))}) == 3
    assert flips("salt", "anna") != flips("salt", "anna", first="i3")
    ones = sum(sum(flips("salt", f"user-{number}")) for number in range(50))
    assert abs(ones / 50_000 - 0.5) < 0.01


def test_equal_arms_win_equally_often_whatever_the_position_is_worth() -> None:
    rng, bias, wins, ties = np.random.default_rng(4), 0.5 / np.arange(1, 6), np.zeros((2, 256)), np.zeros(256)
    for user in range(6000):
        ranking = [f"i{item}" for item in rng.permutation(5)]
        picks = team_draft((ranking, ranking), 5, coins_of("salt", f"user-{user}", ranking[:1] * 2))
        second, clicked = np.array([pick.team for pick in picks], dtype=bool), rng.random(5) < bias
        of_first, of_second = (clicked & ~second).sum(), (clicked & second).sum()
        if of_first != of_second:
            wins[int(of_second > of_first), user % 256] += 1
        elif of_first:
            ties[user % 256] += 1
    found = preference_of(*wins, ties)
    assert found.denominator > 3000
    assert abs(found.value - 0.5) < 4 * found.variance**0.5


def test_an_endless_coin_of_one_side_alternates_the_arms() -> None:
    picks = team_draft((ITEMS, ITEMS[::-1]), 6, repeat(0))
    assert [pick.team for pick in picks] == [0, 1] * 3
