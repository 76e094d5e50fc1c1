"""Rates with intervals and tests that may be looked at at any time, for experiments whose users come in groups.

A user gets many answers, and users differ, so answers are no independent trials. Users are therefore hashed into
groups, and every variance is that of a ratio over groups (the delta method, with the groups as clusters).

The sequential test is the mixture sequential probability ratio test: R. Johari, P. Koomen, L. Pekelis, D. Walsh,
"Always Valid Inference: Continuous Monitoring of A/B Tests", Operations Research 70 (2022), equations for a normal
mixture N(0, τ²) over the difference of two means. Its p-value holds however often it is looked at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

EXPECTED_EFFECT: Final = 0.1
"""Relative difference for which the test is most sensitive; others are found too, only later."""
ALPHA: Final = 0.05
"""Probability that a test finds a difference where there is none."""
MISMATCH_ALPHA: Final = 0.001
"""The same for the check of shares, which is made at every look and should stop an experiment only with good reason."""

_Z_95: Final = 1.959963984540054
_FEWEST_GROUPS: Final = 20


@dataclass(frozen=True, slots=True)
class RatioEstimate:
    """A sum over a sum, as in clicks per answer.

    Attributes:
        value: NaN without a denominator.
        variance: of the value; infinite where fewer than 20 groups have data.
        numerator: the upper sum.
        denominator: the lower sum.
        groups: that have data; 0: the value is known, not estimated.
    """

    value: float
    variance: float
    numerator: float
    denominator: float
    groups: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of one look."""
        half = _Z_95 * math.sqrt(self.variance)
        return self.value - half, self.value + half


@dataclass(frozen=True, slots=True)
class SequentialTest:
    """The difference of two ratios, tested so that it may be looked at at any time.

    Attributes:
        difference: candidate minus control.
        low: lower end of the always-valid interval.
        high: upper end.
        p: always-valid p-value, 0 … 1; the test finds a difference where it is at most its level.
    """

    difference: float
    low: float
    high: float
    p: float


def ratio_of(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> RatioEstimate:
    """Estimate a ratio and its variance over groups.

    Args:
        numerators: (groups,) float64 sums in each group.
        denominators: (groups,) float64, none below 0.
    """
    upper, lower = float(numerators.sum()), float(denominators.sum())
    if lower <= 0:
        return RatioEstimate(math.nan, math.inf, upper, lower)
    value, groups = upper / lower, int(np.count_nonzero(denominators))
    if groups < _FEWEST_GROUPS:
        return RatioEstimate(value, math.inf, upper, lower, groups)
    residuals = numerators - value * denominators
    variance = groups / (groups - 1) * float(residuals @ residuals) / lower**2
    return RatioEstimate(value, variance, upper, lower, groups)


def mixture_sprt(
    control: RatioEstimate, candidate: RatioEstimate, *, spread: float, alpha: float = ALPHA
) -> SequentialTest:
    """Test whether two ratios differ.

    Where neither varies over the groups, as where all answers of an arm fail and none of the other, the variance is
    that with one more group in each arm, which has the ratio of the other arm. For shares of 0 and 1 these are the
    failure and the success that are added by A. Agresti, B. Caffo, "Simple and Effective Confidence Intervals for
    Proportions and Differences of Proportions Result from Adding Two Successes and Two Failures", The American
    Statistician 54 (2000), with groups as trials.

    Args:
        control: one arm.
        candidate: the other one, of other users.
        spread: τ, standard deviation of the differences that are expected, above 0, in the unit of the ratios.
        alpha: level of the interval.
    """
    difference, variance = candidate.value - control.value, candidate.variance + control.variance
    if variance == 0:
        variance = difference**2 * (_exchanged(control.groups) + _exchanged(candidate.groups))
    if not math.isfinite(variance) or variance <= 0 or spread <= 0:
        return SequentialTest(difference, -math.inf, math.inf, 1.0)
    whole = variance + spread**2
    log_ratio = 0.5 * math.log(variance / whole) + spread**2 * difference**2 / (2 * variance * whole)
    half = math.sqrt(2 * variance * whole / spread**2 * (math.log(1 / alpha) + 0.5 * math.log(whole / variance)))
    return SequentialTest(difference, difference - half, difference + half, math.exp(-max(log_ratio, 0.0)))


def _exchanged(groups: int) -> float:
    """Variance of the mean of as many zeros and a one."""
    return groups / (groups + 1) ** 3


def share_mismatch(counts: NDArray[np.float64], shares: Sequence[float]) -> float:
    """The probability of arms at least as far from their shares as these, were users assigned as planned.

    Args:
        counts: (arms, groups) float64 users, each counted once, in each arm and group.
        shares: of the arms; they sum to 1.

    Returns:
        p-value, corrected for the number of arms; 1 where fewer than 20 groups have data.
    """
    totals = counts.sum(axis=0)
    smallest = 1.0
    for arm, share in enumerate(shares):
        found = ratio_of(counts[arm], totals)
        if not math.isfinite(found.variance):
            return 1.0
        # Under the plan the residuals are around the planned share, not around the one that was found.
        residuals = counts[arm] - share * totals
        deviation = math.sqrt(float(residuals @ residuals))
        z = 0.0 if deviation == 0 else abs(float(residuals.sum())) / deviation
        smallest = min(smallest, math.erfc(z / math.sqrt(2)))
    tests = len(shares) if len(shares) > 2 else 1  # of two arms one is as far from its share as the other
    return min(1.0, smallest * tests)
