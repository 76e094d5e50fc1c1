"""Means and paired ratios of the method's bench against numbers worked out by hand."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

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
