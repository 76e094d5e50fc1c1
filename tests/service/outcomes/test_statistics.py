"""The tests of an experiment, against closed forms and simulated shops in which the truth is known."""

import math
from itertools import pairwise

import numpy as np
import pytest

from bench.load.repeated_experiments import SimulatedTraffic
from service.experiments.statistics import RatioEstimate, mixture_sprt, ratio_of, share_mismatch


def false_alarms(repeats: int) -> int:
    found = SimulatedTraffic().repeated(repeats)
    return int(found["better"] + found["worse"])


def test_few_a_a_tests_find_a_difference() -> None:
    assert false_alarms(6) <= 2


@pytest.mark.slow
def test_at_most_16_of_200_a_a_tests_find_a_difference_looked_at_every_hour() -> None:
    assert false_alarms(200) <= 16


def test_a_large_difference_is_found_with_its_sign() -> None:
    found = [SimulatedTraffic(lift=lift).found(seed) for seed in range(3) for lift in (0.8, -0.6)]
    assert found == [1, -1] * 3


def test_a_ratio_has_the_variance_of_its_groups() -> None:
    rng = np.random.default_rng(1)
    values = []
    for _ in range(400):
        answers = rng.poisson(30.0, 100).astype(np.float64)
        clicks = rng.binomial(answers.astype(np.int64), rng.beta(2.0, 8.0, 100)).astype(np.float64)
        values.append(ratio_of(clicks, answers))
    spread = np.std([found.value for found in values])
    assert np.mean([math.sqrt(found.variance) for found in values]) == pytest.approx(spread, rel=0.1)
    covered = np.mean([found.interval[0] <= 0.2 <= found.interval[1] for found in values])
    assert 0.91 <= covered <= 0.98


def test_a_ratio_by_hand() -> None:
    numerators, denominators = np.tile([1.0, 3.0], 15), np.full(30, 10.0)
    found = ratio_of(numerators, denominators)
    assert (found.value, found.numerator, found.denominator) == (0.2, 60.0, 300.0)
    assert found.variance == pytest.approx(30 / 29 * 30 * 1.0 / 300.0**2)


def test_too_few_groups_find_nothing() -> None:
    few, none = ratio_of(np.ones(10), np.ones(10)), ratio_of(np.zeros(30), np.zeros(30))
    assert (few.value, few.variance, math.isnan(none.value)) == (1.0, math.inf, True)
    assert mixture_sprt(few, few, spread=0.1).p == mixture_sprt(none, none, spread=0.1).p == 1.0


def test_arms_without_any_variance_differ_as_much_as_with_one_exchanged_group() -> None:
    """V = 2 d² G / (G + 1)³, by hand: the variance of the mean of G equal ratios and one that is d away, twice."""
    groups = np.ones(64)
    control, candidate = ratio_of(np.zeros(64), groups), ratio_of(groups, groups)
    assert (control.variance, candidate.variance) == (0.0, 0.0)
    exchanged = 2 * np.var(np.append(np.zeros(64), 1.0)) / 65
    known = RatioEstimate(1.0, exchanged, 1.0, 1.0), RatioEstimate(0.0, 0.0, 1.0, 1.0)
    found, expected = mixture_sprt(control, candidate, spread=0.005), mixture_sprt(known[1], known[0], spread=0.005)
    assert (found.low, found.high, found.p) == pytest.approx((expected.low, expected.high, expected.p))
    assert found.low > 0.5
    assert mixture_sprt(candidate, control, spread=0.005).high == pytest.approx(-found.low)
    assert mixture_sprt(control, control, spread=0.005).p == 1.0
    few = ratio_of(np.ones(20), np.ones(20))
    assert (
        mixture_sprt(ratio_of(np.zeros(20), np.ones(20)), few, spread=0.005).p > 0.5
    )  # too few groups for this spread


def test_the_mixture_in_closed_form() -> None:
    """Λ = √(V/(V+τ²)) exp(τ²d²/(2V(V+τ²))), here against the integral over the mixture."""
    difference, variance, spread = 0.03, 0.0001, 0.02
    one, other = (RatioEstimate(value, variance / 2, 1.0, 1.0) for value in (0.1, 0.1 + difference))
    found = mixture_sprt(one, other, spread=spread)
    effects = np.linspace(-0.3, 0.3, 200_001)
    density = np.exp(-(effects**2) / (2 * spread**2)) / math.sqrt(2 * math.pi) / spread
    ratios = np.exp((2 * effects * difference - effects**2) / (2 * variance))
    likelihood = float((density * ratios).sum() * (effects[1] - effects[0]))
    assert found.p == pytest.approx(1 / likelihood, rel=1e-6)
    assert mixture_sprt(one, one, spread=spread).p == 1.0


def test_the_interval_excludes_0_where_the_test_finds_a_difference() -> None:
    control = RatioEstimate(0.1, 1e-5, 1.0, 1.0)
    tests = [
        mixture_sprt(control, RatioEstimate(0.1 + 0.0005 * step, 1e-5, 1.0, 1.0), spread=0.01) for step in range(60)
    ]
    assert [test.p <= 0.05 for test in tests] == [test.low > 0 for test in tests]
    assert {test.p <= 0.05 for test in tests} == {True, False}
    assert all(later.p <= earlier.p for earlier, later in pairwise(tests))


def test_shares_as_planned_are_no_mismatch_and_others_are() -> None:
    rng = np.random.default_rng(5)
    planned = [
        share_mismatch(rng.multinomial(40, [0.5, 0.3, 0.2], 256).T.astype(float), [0.5, 0.3, 0.2]) for _ in range(200)
    ]
    assert sum(p < 0.05 for p in planned) <= 20
    assert min(planned) > 0.001 / 10
    other = rng.multinomial(40, [0.45, 0.55], 256).T.astype(float)
    assert share_mismatch(other, [0.5, 0.5]) < 1e-6
    assert share_mismatch(np.ones((2, 5)), [0.5, 0.5]) == 1.0


def test_the_shares_of_three_arms_are_three_tests_and_those_of_two_arms_are_one() -> None:
    """The test of one arm is that of two arms, it and all others together."""
    shares = [0.5, 0.3, 0.2]
    counts = np.random.default_rng(6).multinomial(40, [0.52, 0.28, 0.2], 256).T.astype(float)
    alone = [
        share_mismatch(np.stack((counts[arm], counts.sum(axis=0) - counts[arm])), [share, 1 - share])
        for arm, share in enumerate(shares)
    ]
    assert share_mismatch(counts, shares) == pytest.approx(3 * min(alone))
    assert 0 < 3 * min(alone) < 1
