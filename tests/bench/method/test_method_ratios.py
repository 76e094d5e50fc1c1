"""Ratios between stored rows against numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest

from bench.method.method_ratios import RowRatios
from bench.method.method_readings import POPULARITY, Reading, Readings


def row(name: str, by_seed: dict[str, float], **paired: list[float]) -> dict[str, Any]:
    """A row of which only the fused reading was measured."""
    return {
        "name": name,
        "ndcg@10": {"fused": sum(by_seed.values()) / len(by_seed)},
        "ndcg@10 by seed": {seed: {"fused": mean} for seed, mean in by_seed.items()},
        "paired": {"fused": paired},
    }


def found(ratios: RowRatios, above: str, below: str) -> tuple[tuple[float, float, float], bool] | None:
    ratio = ratios.ratio(Reading(above), Reading(below))
    if ratio is None:
        return None
    return (ratio.interval.ratio, ratio.interval.low, ratio.interval.high), ratio.paired


def test_an_interval_that_a_row_holds_is_taken_from_both_of_its_sides() -> None:
    ratios = RowRatios([row("a", {"0": 0.3}, b=[1.5, 1.2, 2.0]), row("b", {"0": 0.2})], 0.1)
    assert found(ratios, "a", "b") == ((1.5, 1.2, 2.0), True)
    assert found(ratios, "b", "a") == (pytest.approx((1 / 1.5, 1 / 2.0, 1 / 1.2)), True)
    assert found(ratios, "a", "a") == ((1.0, 1.0, 1.0), True)


def test_a_third_row_bounds_the_interval_by_the_sum_of_both_half_widths() -> None:
    # The logarithms of both intervals are wider on the upper side: ln 1.1 and ln 1.05.
    stored = [
        row("a", {"0": 0.30, "1": 0.34}, third=[2.0, 1.9, 2.2], popularity=[3.2, 1.6, 6.4]),
        row("b", {"0": 0.20, "1": 0.20}, third=[1.0, 0.98, 1.05], popularity=[2.0, 1.0, 4.0]),
        row("third", {"0": 0.2}),
    ]
    ratio, is_paired = found(RowRatios(stored, 0.1), "a", "b") or ((), True)
    assert ratio == pytest.approx((1.6, 1.6 / (1.1 * 1.05), 1.6 * 1.1 * 1.05))
    assert not is_paired


def test_only_seeds_that_both_have_are_divided() -> None:
    stored = [row("a", {"0": 0.3, "1": 0.9}, popularity=[6, 5, 7]), row("b", {"0": 0.2}, popularity=[2, 1.9, 2.1])]
    ratios = RowRatios(stored, 0.1)
    assert ratios.ratios_by_seed(Reading("a"), Reading("b")) == {"0": pytest.approx(1.5)}
    bounded = found(ratios, "a", "b")
    assert bounded is not None
    assert bounded[0][0] == pytest.approx(1.5)


def test_nothing_is_said_of_what_was_not_measured_or_has_no_interval() -> None:
    ratios = RowRatios([row("a", {"0": 0.3}, popularity=[3, 2, 4]), row("b", {"0": 0.2})], 0.1)
    assert found(ratios, "a", "b") is None
    assert found(ratios, "a", "nobody") is None
    assert ratios.ratio(Reading("a", "image"), Reading("b", "image")) is None
    assert found(ratios, "a", POPULARITY) == ((3, 2, 4), True)
    assert math.isnan(ratios.mean(Reading("nobody")))
    assert ratios.mean(Reading(POPULARITY)) == 0.1


def test_the_bound_of_a_third_row_holds_the_paired_interval() -> None:
    # Gains of 2,000 users: a and b share a part, and both share another one with the third.
    random = np.random.default_rng(0)
    part = {name: random.random(2_000) for name in ("ab", "all", "a", "b", "third")}
    gains = {
        "a": part["ab"] + part["all"] + part["a"],
        "b": part["ab"] + part["all"] + part["b"],
        "third": part["all"] + part["third"],
    }
    readings = Readings({name: {0: {"fused": of}} for name, of in gains.items()}, np.ones(2_000))
    stored = []
    for name, of in gains.items():
        against = readings.ratio(Reading(name), Reading("third"))
        assert against is not None
        stored.append(row(name, {"0": of.mean()}, third=[against.ratio, against.low, against.high]))
    paired, bounded = readings.ratio(Reading("a"), Reading("b")), found(RowRatios(stored, 1.0), "a", "b")
    assert paired is not None
    assert bounded is not None
    assert bounded[0][0] == pytest.approx(paired.ratio)
    assert bounded[0][1] < paired.low < paired.high < bounded[0][2]
