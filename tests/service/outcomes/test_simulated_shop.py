"""A shop in which the truth is known: position bias, a slot that sells, an arm that is better.

Users see answers through the real queue and counts; what they click is drawn from known rates.
"""

import asyncio
from functools import partial
from typing import Any

import numpy as np
import structlog

from service.experiments.experiment import Arm, Experiment
from service.experiments.report import experiment_report
from service.outcomes.breakdown import Period, breakdown, experiment_counts
from service.outcomes.outcomes import Outcomes
from service.outcomes.sent_answers import SentAnswer
from service.settings.groups import OutcomeSettings
from service.stores.outcomes.answer_records import AnswerContext
from tests.service.outcomes.test_outcomes import BUNDLE, SLOTS, MemoryOutcomes, Seen, event

USERS, K = 1000, 5
POSITION_BIAS = np.array([1.0, 0.7, 0.5, 0.35, 0.25])
SLOT_RATE = {"text": 0.10, "image": 0.20, "behaviour": 0.15}
LIFT = 1.6
EXPERIMENT = Experiment("models", "salt", (Arm("control", 0.5), Arm("new", 0.5)))


async def simulated(outcomes: Outcomes, rng: np.random.Generator) -> None:
    for number in range(USERS):
        user, arm = f"user-{number}", EXPERIMENT.arm_of(f"user-{number}")
        eagerness = rng.gamma(4.0, 0.25)
        for visit in range(2):
            slots = rng.integers(0, 3, K)
            parts = np.full((K, 3), 0.1, dtype=np.float32)
            parts[np.arange(K), slots] = 0.5
            items = [f"item-{item}" for item in rng.choice(1000, K, replace=False)]
            context = AnswerContext(BUNDLE, "sequence", EXPERIMENT.label(arm))
            request = f"{user}-{visit}"
            outcomes.answered(SentAnswer(user, request, 0, items, SLOTS, partial(np.copy, parts), context, False, 3000))
            rates = np.array([SLOT_RATE[SLOTS[slot]] for slot in slots]) * POSITION_BIAS * eagerness
            clicked = rng.random(K) < np.minimum(rates * (LIFT if arm.name == "new" else 1.0), 1.0)
            outcomes.happened([
                *(event(item, "impression", user, timestamp=0.0, request_id=request) for item in items),
                *(event(item, "click", user, timestamp=0.0, request_id=request) for item in np.array(items)[clicked]),
                event("bought elsewhere", "purchase", user, timestamp=0.0, value=10.0),
            ])  # fmt: skip
        while len(outcomes._waiting) > 2000:
            await asyncio.sleep(0)


def test_attribution_finds_the_true_rates_and_the_report_the_better_arm() -> None:
    store, seen, rng = MemoryOutcomes(), Seen(), np.random.default_rng(3)

    async def whole() -> tuple[Any, ...]:
        outcomes = Outcomes(store, OutcomeSettings(), seen, structlog.get_logger())  # type: ignore[arg-type]
        await simulated(outcomes, rng)
        await outcomes.close()
        hours = [int(name.partition(":")[0]) for name in store.stored if name[0].isdigit()]
        period = Period(min(hours), max(hours))
        found = [await breakdown(store, period, by) for by in ("position", "slot")]  # type: ignore[arg-type]
        return *found, await experiment_counts(store, "models")  # type: ignore[arg-type]

    positions, slots, groups = asyncio.run(whole())
    answers = 2 * USERS
    assert dict(seen.results) | {("event", "attributed"): 0} == {
        ("answer", "kept"): answers, ("event", "attributed"): 0, ("event", "unattributed"): answers,
    }  # fmt: skip
    both_arms = (1.0 + LIFT) / 2
    mean_slot, mean_bias = np.mean(list(SLOT_RATE.values())), POSITION_BIAS.mean()
    for entry, bias in zip(positions, POSITION_BIAS, strict=True):
        assert (entry["shown"], entry["impressions"]) == (answers, answers)
        assert within(entry, both_arms * mean_slot * bias)
    assert {entry["value"] for entry in slots} == set(SLOT_RATE)
    for entry in slots:
        assert within(entry, both_arms * SLOT_RATE[entry["value"]] * mean_bias)
    report = experiment_report(EXPERIMENT.as_json(), groups)
    assert report.verdict == "keep"
    for arm, lift in zip(report.arms, (1.0, LIFT), strict=True):
        found = arm.rates["clicks"]
        assert abs(found.value - lift * mean_slot * mean_bias * K) <= 3.5 * found.variance**0.5


def within(entry: dict[str, Any], rate: float) -> bool:
    """Whether a click rate is within 3.5 standard errors of the truth; the users' differences widen them by half."""
    error = 1.5 * (rate * (1 - rate) / entry["impressions"]) ** 0.5
    found: bool = abs(entry["click_rate"] - rate) <= 3.5 * error
    return found
