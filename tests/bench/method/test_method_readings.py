"""Means, paired ratios and goals of the method's bench against numbers worked out by hand."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.method.method_goals import GOALS, Claim, checked
from bench.method.method_readings import POPULARITY, Reading, Readings


def gains(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def test_gains_are_averaged_over_the_seeds_and_users_are_paired() -> None:
    # Averaged over its seeds, every user gains from "a" exactly twice what "b" gives, so no resample differs from 2.
    runs = {
        "a": {0: {"fused": gains(1, 0.5, 0, 0.5) * 2}, 1: {"fused": gains(0, 0, 0, 0)}},
        "b": {0: {"fused": gains(0.5, 0.25, 0, 0.25)}, 1: {"fused": gains(0.5, 0.25, 0, 0.25)}},
    }
    readings = Readings(runs, gains(0.25, 0.25, 0.25, 0.25))
    assert readings.mean(Reading("a")) == 0.5
    assert readings.mean(Reading("b")) == 0.25
    ratio = readings.ratio(Reading("a"), Reading("b"))
    assert ratio is not None
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    assert readings.ratios_by_seed(Reading("a"), Reading("b")) == {0: 4, 1: 0}


def test_an_interval_is_the_share_of_users_who_differ() -> None:
    # Popularity gains 1 of everyone, so the ratio is a mean of coin tosses: .5 ± 1.96 · .5 / √400.
    coins = np.tile([0.0, 1.0], 200)
    ratio = Readings({"a": {0: {"fused": coins}}}, np.ones(400)).ratio(Reading("a"), Reading(POPULARITY))
    assert ratio is not None
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((0.5, 0.451, 0.549), abs=0.006)


def test_only_seeds_that_both_have_are_compared() -> None:
    runs = {
        "a": {0: {"fused": gains(9, 9)}, 1: {"fused": gains(1, 1)}},
        "b": {1: {"fused": gains(0.5, 0.5)}, 2: {"fused": gains(7, 7)}},
        "c": {2: {"fused": gains(1, 1)}},
    }
    readings = Readings(runs, gains(1, 1))
    assert readings.seeds(Reading("a"), Reading("b"), Reading(POPULARITY)) == [1]
    ratio = readings.ratio(Reading("a"), Reading("b"))
    assert ratio is not None
    assert ratio.ratio == 2
    assert readings.ratio(Reading("a"), Reading("c")) is None
    assert readings.ratio(Reading("a"), Reading("nobody")) is None
    assert readings.ratio(Reading("a"), Reading("b", "image")) is None
    assert math.isnan(readings.mean(Reading("nobody")))


SOME = Readings(
    {
        "ours": {0: {"fused": gains(0.6, 0.6), "text": gains(0.5, 0.5), "image": gains(0.2, 0.2)}},
        "sft-sum": {0: {"fused": gains(0.5, 0.7), "text": gains(0.5, 0.5), "image": gains(0.12, 0.12)}},
        "alone": {0: {"fused": gains(0.2, 0.2), "image": gains(0.2, 0.2)}},
    },
    gains(0.1, 0.1),
)
CHOSEN = {"vlm2rec": "ours", "sft": "sft-sum", "image-alone": "alone"}


def holds(claim: Claim) -> tuple[float | None, bool | None, bool | None]:
    found = checked(claim, SOME, CHOSEN)
    return (None if found["value"] is None else round(found["value"], 9)), found["holds"], found["clear"]


@pytest.mark.parametrize(("bound", "at_least", "expected"), [
    (0.61, False, True), (0.59, False, False), (0.59, True, True), (0.61, True, False),
])  # fmt: skip
def test_a_bound_is_of_the_side_that_is_said(bound: float, at_least: bool, expected: bool) -> None:
    claim = Claim("", ("sft", "image"), (("image-alone", "image"),), bound, at_least=at_least)
    assert holds(claim) == (0.6, expected, True)


def test_what_the_interval_leaves_open_is_not_clear() -> None:
    # SFT's fused is .5 of one user and .7 of the other: the ratio is 1, between .6 / .7 and .6 / .5 in the resamples.
    assert holds(Claim("", ("vlm2rec", "fused"), (("sft", "fused"),), 1.0)) == (1.0, True, False)
    assert holds(Claim("", ("vlm2rec", "fused"), (("sft", "fused"),), 0.8)) == (1.0, True, True)
    assert holds(Claim("", ("vlm2rec", "fused"), (("sft", "fused"),), 1.3)) == (1.0, False, True)


def test_of_several_the_best_is_what_counts() -> None:
    claim = Claim("", ("vlm2rec", "fused"), (("vlm2rec", "image"), ("vlm2rec", "text")), 1.0)
    found = checked(claim, SOME, CHOSEN)
    assert found["value"] == pytest.approx(1.2)
    assert found["compared_with"] == "ours text"


def test_nothing_is_said_where_one_of_several_is_missing() -> None:
    claim = Claim("", ("vlm2rec", "fused"), (("text-alone", "text"), ("image-alone", "image")), 1.0)
    assert holds(claim) == (None, None, None)
    assert holds(Claim("", ("nobody", "fused"), ((POPULARITY, "fused"),), 1.0)) == (None, None, None)


def test_the_goals_are_those_that_were_set() -> None:
    bounds = {name: [(one.bound, one.at_least) for one in claims] for name, claims in GOALS.items()}
    assert bounds == {
        "collapse": [(1.5, True), (0.6, False), (0.9, True), (0.95, True), (1.05, True), (1.0, True), (1.0, True)],
        "balanced": [(1.0, True), (0.95, True), (0.95, True)],
    }
    values = [checked(claim, SOME, CHOSEN)["value"] for claim in GOALS["collapse"]]
    # .2 / .1, .12 / .2, .2 / .2, .5 / .5, .6 / .6, .6 / .5; nothing was trained on texts alone.
    assert values[:-1] == pytest.approx([2, 0.6, 1, 1, 1, 1.2])
    assert values[-1] is None
