"""Parity of results, by hand."""

import math
import re

import pytest

from index.errors import SearchError
from index.search.parity import ParityResult, RankedItems

SCORES = {"a": 0.9, "b": 0.8, "c": 0.8, "d": 0.5, "e": 0.3}
RIGHT = RankedItems(["a", "b", "d"], [0.9, 0.8, 0.5])


def compared(ids: str, scores: list[float], right: RankedItems = RIGHT) -> ParityResult:
    parity = ParityResult("one – other", tolerance=1e-4)
    parity.compare("h", right, RankedItems(list(ids), scores), SCORES.get)
    return parity


def test_identical_results_agree() -> None:
    parity = compared("abd", [0.9, 0.8, 0.5])
    assert parity.agrees
    assert (parity.histories, parity.identical, parity.difference) == (1, 1, 0.0)


def test_without_a_comparison_there_is_no_agreement() -> None:
    assert not ParityResult("one – other").agrees


@pytest.mark.parametrize(
    ("ids", "scores", "difference"),
    [
        ("abd", [0.90005, 0.8, 0.5], 0.00005),
        ("acd", [0.9, 0.8, 0.5], 0.0),  # of equals another
        ("abc", [0.9, 0.8, 0.8], 0.0),  # a better one was found
    ],
)
def test_small_differences_ties_and_better_finds_agree(ids: str, scores: list[float], difference: float) -> None:
    parity = compared(ids, scores)
    assert parity.agrees
    assert parity.difference == pytest.approx(difference)
    assert parity.identical == (ids == "abd")


@pytest.mark.parametrize(
    ("ids", "scores", "says"),
    [
        ("abd", [0.9, 0.8, 0.501], "'d' at rank 3 scores 0.501000 instead of 0.500000"),
        ("abd", [0.9, math.nan, 0.5], "'b' at rank 2 scores nan"),
        ("abe", [0.9, 0.8, 0.3], r"'e' \(0.300000\) at rank 3 instead of 'd' \(0.500000\)"),
        ("bad", [0.8, 0.9, 0.5], r"'b' \(0.800000\) at rank 1 instead of 'a'"),
        ("abe", [0.9, 0.8, 0.5], "'e' at rank 3 scores 0.500000 instead of 0.300000"),
        ("abx", [0.9, 0.8, 0.5], "'x' at rank 3 is unknown"),
        ("aab", [0.9, 0.9, 0.8], "an item is repeated"),
        ("ab", [0.9, 0.8], "2 items instead of 3"),
    ],
)
def test_differences_are_described(ids: str, scores: list[float], says: str) -> None:
    parity = compared(ids, scores)
    assert not parity.agrees
    (line,) = parity.wrong
    assert re.search(f"^h: .*{says}", line)


def test_one_different_history_is_a_disagreement() -> None:
    parity = compared("abd", [0.9, 0.8, 0.5])
    parity.fail("other", "no answer")
    assert not parity.agrees
    assert (parity.histories, parity.identical, parity.wrong) == (2, 1, ["other: no answer"])


def test_ranked_items_need_a_score_each() -> None:
    with pytest.raises(SearchError, match="got 2 and 1"):
        RankedItems(["a", "b"], [0.1])
