"""Says of an experiment what its arms brought, and whether to keep the candidate, to roll back, or to wait."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

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

Goal = Literal["clicks", "conversions", "revenue"]
Verdict = Literal["keep", "roll back", "not yet"]

GOALS: Final[tuple[Goal, ...]] = ("clicks", "conversions", "revenue")
GROUPS: Final = 256
FEWEST: Final = 100
"""Clicks, or conversions, that the answers of each arm must bring at the rate of both arms together before there is a
verdict: below it the normal approximation is poor. It is no bound of what an arm did bring: that may stay at 0."""
LATENCY_BOUND: Final = 0.1
"""Relative rise of the mean latency that a candidate may not have."""
DEGRADED_BOUND: Final = 0.005
"""Rise of the share of degraded answers that a candidate may not have."""

MEASURES: Final = ("answers", "users", "impressions", *GOALS, "degraded", "latency_us")
"""What is counted for each arm and group of users."""


@dataclass(frozen=True, slots=True)
class ArmReport:
    """What one arm brought.

    Attributes:
        name: of the arm.
        share: of the users, as planned.
        totals: sum of each measure.
        rates: each goal per answer.
        latency_ms: mean of its answers.
        degraded: share of its answers.
    """

    name: str
    share: float
    totals: Mapping[str, float]
    rates: Mapping[Goal, RatioEstimate]
    latency_ms: RatioEstimate
    degraded: RatioEstimate


@dataclass(frozen=True, slots=True)
class CandidateReport:
    """How a candidate compares with the control.

    Attributes:
        name: of the arm.
        test: of the goal.
        lift: difference relative to the control; NaN where the control has nothing.
        latency: difference of the mean latencies in ms.
        degraded: difference of the degraded shares.
        verdict: what to do.
        reasons: why, in sentences.
    """

    name: str
    test: SequentialTest
    lift: float
    latency: SequentialTest
    degraded: SequentialTest
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExperimentReport:
    """The report of an experiment.

    Attributes:
        name: of the experiment.
        goal: what is compared, per answer.
        arms: the control first.
        candidates: the other arms, compared with it.
        mismatch_p: p-value of the check that users are divided as planned.
        verdict: that of the best candidate; ``not yet`` where users are not divided as planned.
    """

    name: str
    goal: Goal
    arms: tuple[ArmReport, ...]
    candidates: tuple[CandidateReport, ...]
    mismatch_p: float
    verdict: Verdict


def experiment_report(
    experiment: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], goal: Goal = "clicks"
) -> ExperimentReport:
    """Compare the arms of an experiment.

    Args:
        experiment: its name, and arms with name and share; the first is the control.
        groups: what was counted, one entry for each arm and group, see `GET /experiments/{name}/groups`.
        goal: what is compared.

    Raises:
        ValueError: there are fewer than two arms.
    """
    names = [arm["name"] for arm in experiment["arms"]]
    return report_of_counts(experiment, counts_by_arm(names, groups, MEASURES), goal)


def report_of_counts(
    experiment: Mapping[str, Any], counted: Mapping[str, Mapping[str, NDArray[np.float64]]], goal: Goal = "clicks"
) -> ExperimentReport:
    """Compare the arms of an experiment.

    Args:
        experiment: as for :func:`experiment_report`.
        counted: by arm and measure (:data:`MEASURES`), (256,) float64 over the groups of users.
        goal: what is compared.

    Raises:
        ValueError: there are fewer than two arms.
    """
    arms = experiment["arms"]
    if len(arms) < 2:
        raise ValueError(f"the experiment must have two arms, received {len(arms)}")
    reports = tuple(_arm(arm, counted[arm["name"]]) for arm in arms)
    # Users and not their answers or visits: as many users visit a better arm more often.
    users = np.stack([counted[arm["name"]]["users"] for arm in arms])
    mismatch = share_mismatch(users, [arm["share"] for arm in arms])
    level = ALPHA / (len(arms) - 1)
    candidates = tuple(
        _candidate(reports[0], arm, goal, level=level, mismatched=mismatch < MISMATCH_ALPHA) for arm in reports[1:]
    )
    return ExperimentReport(str(experiment["name"]), goal, reports, candidates, mismatch, _verdict(candidates))


def counts_by_arm(
    names: Sequence[str], groups: Sequence[Mapping[str, Any]], measures: Sequence[str]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """What was counted, by arm and measure, (256,) float64 over the groups of users.

    Args:
        names: of the arms.
        groups: as for :func:`experiment_report`; entries of other arms are passed over.
        measures: which ones.
    """
    counted = {name: {measure: np.zeros(GROUPS) for measure in measures} for name in names}
    for entry in groups:
        of_arm = counted.get(entry["arm"])
        if of_arm is not None and 0 <= entry["group"] < GROUPS:
            for measure in measures:
                of_arm[measure][entry["group"]] += entry.get(measure, 0)
    return counted


def _arm(arm: Mapping[str, Any], counted: Mapping[str, NDArray[np.float64]]) -> ArmReport:
    answers = counted["answers"]
    return ArmReport(
        arm["name"],
        float(arm["share"]),
        {measure: float(values.sum()) for measure, values in counted.items()},
        {goal: ratio_of(counted[goal], answers) for goal in GOALS},
        ratio_of(counted["latency_us"] / 1000.0, answers),
        ratio_of(counted["degraded"], answers),
    )


def _candidate(
    control: ArmReport, candidate: ArmReport, goal: Goal, *, level: float, mismatched: bool
) -> CandidateReport:
    base, other = control.rates[goal], candidate.rates[goal]
    test = mixture_sprt(base, other, spread=_spread(base, other), alpha=level)
    latency = mixture_sprt(
        control.latency_ms, candidate.latency_ms, spread=_spread(control.latency_ms, candidate.latency_ms), alpha=level
    )
    degraded = mixture_sprt(control.degraded, candidate.degraded, spread=DEGRADED_BOUND, alpha=level)
    broken = []
    if latency.low > LATENCY_BOUND * control.latency_ms.value:
        broken.append(
            f"its mean latency is {latency.difference:+.2f} ms, more than {LATENCY_BOUND:.0%} above the control"
        )
    if degraded.low > DEGRADED_BOUND:
        broken.append(f"its share of degraded answers is {degraded.difference:+.2%}")
    few = _few(control, candidate, goal)
    verdict: Verdict = "not yet"
    if mismatched:
        reasons = ["users are not divided as planned, so the arms cannot be compared; find out why first"]
    elif broken:
        verdict, reasons = "roll back", broken
    elif few:
        needed = "conversions" if goal == "revenue" else goal
        reasons = [
            f"{' and '.join(few)} must have answers for at least {FEWEST} {needed} at the rate of both arms together"
        ]
    elif test.p > level:
        reasons = [f"no difference is found yet: p is {test.p:.3g}, and {level:.3g} is needed"]
    else:
        verdict = "keep" if test.difference > 0 else "roll back"
        reasons = [f"its {goal} per answer are {'higher' if test.difference > 0 else 'lower'}: p is {test.p:.3g}"]
    lift = test.difference / base.value if base.value else math.nan
    return CandidateReport(candidate.name, test, lift, latency, degraded, verdict, tuple(reasons))


def _spread(base: RatioEstimate, other: RatioEstimate) -> float:
    """τ of a test: a tenth of the ratio of both arms together; 0 where there is none."""
    answers = base.denominator + other.denominator
    return EXPECTED_EFFECT * (base.numerator + other.numerator) / answers if answers > 0 else 0.0


def _few(control: ArmReport, candidate: ArmReport, goal: Goal) -> list[str]:
    """Names of the arms with too few answers for a verdict."""
    arms = (control, candidate)
    answers = sum(arm.totals["answers"] for arm in arms)
    rate = sum(_events(arm, goal) for arm in arms) / answers if answers > 0 else 0.0
    return [arm.name for arm in arms if rate * arm.totals["answers"] < FEWEST]


def _events(arm: ArmReport, goal: Goal) -> float:
    return arm.totals["conversions" if goal == "revenue" else goal]


def _verdict(candidates: Sequence[CandidateReport]) -> Verdict:
    found = {candidate.verdict for candidate in candidates}
    if "keep" in found:
        return "keep"
    return "roll back" if found == {"roll back"} else "not yet"
