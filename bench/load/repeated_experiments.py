"""Repeats simulated experiments of known truth and looks at each of them every hour, as an impatient shop would.

Only the counts are simulated; the verdict is that of `vlm2rec experiments report`, with its guard rails and the check
of the shares.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from service.experiments.report import GROUPS, MEASURES, report_of_counts

ARMS: Final = ("control", "second")
EXPERIMENT: Final = {"name": "simulated", "arms": [{"name": name, "share": 0.5} for name in ARMS]}
SIGN: Final = {"keep": 1, "roll back": -1, "not yet": 0}
"""Of the difference that a verdict has found."""

_LATENCY_US, _LATENCY_SPREAD_US = 12_000.0, 6_000.0  # of an answer
_DEGRADED = 0.002  # share of answers

_Counts = dict[str, dict[str, NDArray[np.float64]]]


@dataclass(frozen=True, slots=True)
class SimulatedTraffic:
    """Users of two arms over some hours.

    Attributes:
        users: in both arms.
        hours: that the experiment runs, with one look after each.
        base_rate: clicks per answer of the control.
        answers_an_hour: of a user, on average.
        lift: relative rise of the click rate in the second arm; 0: an A/A test.
    """

    users: int = 4000
    hours: int = 168
    base_rate: float = 0.05
    answers_an_hour: float = 0.05
    lift: float = 0.0

    def counts(self, rng: np.random.Generator) -> Iterator[_Counts]:
        """What was counted until the end of each hour, by arm and measure.

        Users differ: their click rates are Beta distributed around the base rate, their visits Gamma distributed.
        Latencies and degraded answers are alike in both arms.
        """
        arms, groups = rng.integers(0, 2, self.users), rng.integers(0, GROUPS, self.users)
        rates = rng.beta(1.0, 1.0 / self.base_rate - 1.0, self.users) * (1.0 + self.lift * arms)
        visits = rng.gamma(0.5, 2.0 * self.answers_an_hour, self.users)
        answers = rng.poisson(visits[:, None], (self.users, self.hours))
        new_users = (answers.cumsum(axis=1) > 0).astype(np.int64)
        new_users[:, 1:] -= new_users[:, :-1].copy()
        measured = {
            "answers": answers,
            "users": new_users,
            "clicks": rng.binomial(answers, np.minimum(rates, 1.0)[:, None]),
            "degraded": rng.binomial(answers, _DEGRADED),
            "latency_us": answers * _LATENCY_US
            + np.sqrt(answers) * _LATENCY_SPREAD_US * rng.standard_normal(answers.shape),
        }
        sums = {measure: np.zeros((2, GROUPS, self.hours)) for measure in MEASURES}
        for measure, counted in measured.items():
            np.add.at(sums[measure], (arms, groups), counted.astype(np.float64))
        until = {measure: whole.cumsum(axis=2) for measure, whole in sums.items()}
        for hour in range(self.hours):
            yield {
                name: {measure: whole[number, :, hour] for measure, whole in until.items()}
                for number, name in enumerate(ARMS)
            }

    def found(self, seed: int) -> int:
        """Look every hour until there is a verdict: 1 to keep the second arm, -1 to roll it back; 0: there is none."""
        for counted in self.counts(np.random.default_rng(seed)):
            found = SIGN[report_of_counts(EXPERIMENT, counted).verdict]
            if found:
                return found
        return 0

    def repeated(self, repeats: int) -> dict[str, Any]:
        """Run independent repeats; how many kept the second arm, rolled it back or had no verdict."""
        found = [self.found(seed) for seed in range(repeats)]
        return {"repeats": repeats, "better": found.count(1), "worse": found.count(-1), "neither": found.count(0)}
