"""Says of an interleaved experiment which arm's items users choose, and whether to keep the candidate.

Of each answer the arm wins whose items got more clicks (or conversions). The preference for the candidate is the share
of its wins, a tie counting half to each, among the answers in which an item was clicked: O. Chapelle, T. Joachims,
F. Radlinski, Y. Yue, "Large-scale validation and analysis of interleaved search evaluation", ACM Transactions on
Information Systems 30 (2012). Without a difference it is 0.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from service.experiments.report import DEGRADED_BOUND, FEWEST, Verdict, counts_by_arm
from service.experiments.statistics import (
    ALPHA,
    EXPECTED_EFFECT,
    MISMATCH_ALPHA,
    RatioEstimate,
    SequentialTest,
    mixture_sprt,
    ratio_of,
    share_mismatch,
)

InterleavedGoal = Literal["clicks", "conversions"]

EXPECTED_SHIFT: Final = EXPECTED_EFFECT / (2.0 * (2.0 + EXPECTED_EFFECT))
"""How far the preference is from 0.5 where the items of one arm are clicked a tenth more often; τ of the test."""
BALANCE_BOUND: Final = 0.01
"""How far the share of the items that an arm gave may be from a half."""

_INDIFFERENT: Final = RatioEstimate(0.5, 0.0, 1.0, 2.0)
_WINS: Final[Mapping[InterleavedGoal, tuple[str, str]]] = {
    "clicks": ("wins", "ties"),
    "conversions": ("conversion_wins", "conversion_ties"),
}
_TOTALS: Final = ("answers", "shown", "impressions", "clicks", "conversions", "revenue", "degraded")
_MEASURES: Final = (*_TOTALS, *(measure for pair in _WINS.values() for measure in pair))


@dataclass(frozen=True, slots=True)
class InterleavedArmReport:
    """What the items of one arm brought.

    Attributes:
        name: of the arm.
        totals: sum of each measure; answers are those of both arms.
        wins: answers in which its items got more clicks, or conversions.
        degraded: share of the answers in which its part was degraded or refused.
    """

    name: str
    totals: Mapping[str, float]
    wins: float
    degraded: RatioEstimate


@dataclass(frozen=True, slots=True)
class InterleavedReport:
    """The report of an interleaved experiment.

    Attributes:
        name: of the experiment.
        goal: what decides an answer.
        arms: the control, then the candidate.
        ties: answers in which both arms got as many, at least one each.
        preference: for the candidate, 0 … 1.
        test: of the preference against 0.5; its difference and interval are those from 0.5.
        degraded: difference of the degraded shares.
        verdict: what to do.
        reasons: why, in sentences.
    """

    name: str
    goal: InterleavedGoal
    arms: tuple[InterleavedArmReport, InterleavedArmReport]
    ties: float
    preference: RatioEstimate
    test: SequentialTest
    degraded: SequentialTest
    verdict: Verdict
    reasons: tuple[str, ...]


def interleaved_report(
    experiment: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], goal: InterleavedGoal = "clicks"
) -> InterleavedReport:
    """Say which arm's items users choose.

    Args:
        experiment: its name, and two arms with their names; the first is the control.
        groups: what was counted, one entry for each arm and group, see `GET /experiments/{name}/groups`.
        goal: what decides an answer.

    Raises:
        ValueError: there are not two arms.
    """
    names = [arm["name"] for arm in experiment["arms"]]
    if len(names) != 2:
        raise ValueError(f"an interleaved experiment must have two arms, received {len(names)}")
    counted = counts_by_arm(names, groups, _MEASURES)
    control, candidate = (counted[name] for name in names)
    wins, ties = _WINS[goal]
    preference = preference_of(control[wins], candidate[wins], candidate[ties])
    test = mixture_sprt(_INDIFFERENT, preference, spread=EXPECTED_SHIFT, alpha=ALPHA)
    first, second = (_arm(name, counted[name], wins) for name in names)
    degraded = mixture_sprt(first.degraded, second.degraded, spread=DEGRADED_BOUND, alpha=ALPHA)
    balance = _balance(control["shown"], candidate["shown"])
    verdict, reasons = _verdict(names[1], goal, preference, test, degraded, balance)
    tied = float(candidate[ties].sum())
    return InterleavedReport(
        str(experiment["name"]), goal, (first, second), tied, preference, test, degraded, verdict, tuple(reasons)
    )


def preference_of(
    control: NDArray[np.float64], candidate: NDArray[np.float64], ties: NDArray[np.float64]
) -> RatioEstimate:
    """The preference for the candidate, with its variance over groups of users.

    Args:
        control: (groups,) float64 answers in which the control wins.
        candidate: (groups,) float64 answers in which the candidate wins.
        ties: (groups,) float64 answers in which both got as many. A number below 0, as a killed process leaves it
            that had counted a win but not its end, counts as 0.
    """
    control, candidate, ties = (np.maximum(values, 0.0) for values in (control, candidate, ties))
    return ratio_of(candidate + 0.5 * ties, control + candidate + ties)


def _arm(name: str, counted: Mapping[str, NDArray[np.float64]], wins: str) -> InterleavedArmReport:
    totals = {measure: float(counted[measure].sum()) for measure in _TOTALS}
    return InterleavedArmReport(
        name, totals, float(counted[wins].sum()), ratio_of(counted["degraded"], counted["answers"])
    )


def _balance(control: NDArray[np.float64], candidate: NDArray[np.float64]) -> float | None:
    """The share of the items that the candidate gave, where it is not a half; else None."""
    total = float(control.sum() + candidate.sum())
    if total <= 0:
        return None
    share = float(candidate.sum()) / total
    uneven = abs(share - 0.5) > BALANCE_BOUND
    return share if uneven and share_mismatch(np.stack((control, candidate)), [0.5, 0.5]) < MISMATCH_ALPHA else None


def _verdict(
    name: str,
    goal: InterleavedGoal,
    preference: RatioEstimate,
    test: SequentialTest,
    degraded: SequentialTest,
    balance: float | None,
) -> tuple[Verdict, list[str]]:
    if degraded.low > DEGRADED_BOUND:
        reason = f"its share of degraded or refused answers is {degraded.difference:+.2%}"
        return "roll back", [reason]
    if balance is not None:
        reason = f"{name} gave {balance:.1%} of the items, so the arms cannot be compared; look at their filters"
        return "not yet", [reason]
    if preference.denominator < FEWEST:
        return "not yet", [f"{FEWEST} answers with {goal} are needed, there are {preference.denominator:.0f}"]
    if test.p > ALPHA:
        return "not yet", [f"no preference is found yet: p is {test.p:.3g}, and {ALPHA:.3g} is needed"]
    more = test.difference > 0
    reason = f"its items get {goal} in {'more' if more else 'fewer'} answers than the others: p is {test.p:.3g}"
    return ("keep" if more else "roll back"), [reason]
