"""Repeats simulated experiments of known truth and looks at each of them every hour, as an impatient shop would.

Only the counts are simulated; the tests are those of `vlm2rec experiments report`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.experiments.statistics import ALPHA, EXPECTED_EFFECT, mixture_sprt, ratio_of


@dataclass(frozen=True, slots=True)
class SimulatedTraffic:
    """Users of two arms over some hours.

    Attributes:
        users: in both arms.
        hours: that the experiment runs, with one look after each.
        base_rate: clicks per answer of the control.
        answers_an_hour: of a user, on average.
        lift: relative rise of the click rate in the second arm; 0: an A/A test.
        groups: of users, over which variances are taken.
        fewest: clicks that each arm needs before a look counts.
    """

    users: int = 4000
    hours: int = 168
    base_rate: float = 0.05
    answers_an_hour: float = 0.05
    lift: float = 0.0
    groups: int = 256
    fewest: int = 50

    def counts(self, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Answers and clicks by arm, hour and group, each (2, hours, groups) float64 and cumulative.

        Users differ: their click rates are Beta distributed around the base rate, their visits Gamma distributed.
        """
        arms, groups = rng.integers(0, 2, self.users), rng.integers(0, self.groups, self.users)
        rates = rng.beta(1.0, 1.0 / self.base_rate - 1.0, self.users) * (1.0 + self.lift * arms)
        visits = rng.gamma(0.5, 2.0 * self.answers_an_hour, self.users)
        answers = rng.poisson(visits[:, None], (self.users, self.hours))
        clicks = rng.binomial(answers, np.minimum(rates, 1.0)[:, None])
        sums = []
        for counted in (answers, clicks):
            whole = np.zeros((2, self.groups, self.hours))
            np.add.at(whole, (arms, groups), counted.astype(np.float64))
            sums.append(whole.cumsum(axis=2).transpose(0, 2, 1))
        return sums[0], sums[1]

    def found(self, seed: int) -> int:
        """Look every hour: -1, 0 or 1, the sign of the first difference that the test finds; 0: it finds none."""
        answers, clicks = self.counts(np.random.default_rng(seed))
        for hour in range(self.hours):
            control, candidate = (ratio_of(clicks[arm, hour], answers[arm, hour]) for arm in (0, 1))
            if min(control.numerator, candidate.numerator) < self.fewest:
                continue
            test = mixture_sprt(control, candidate, spread=EXPECTED_EFFECT * control.value)
            if test.p <= ALPHA:
                return 1 if test.difference > 0 else -1
        return 0

    def repeated(self, repeats: int) -> dict[str, Any]:
        """Run independent repeats; how many found the second arm better, worse or neither."""
        found = [self.found(seed) for seed in range(repeats)]
        return {"repeats": repeats, "better": found.count(1), "worse": found.count(-1), "neither": found.count(0)}
