"""Repeats simulated interleaved experiments of known truth, and compares them with arms of different users.

Only rankings, clicks and counts are simulated; the draft and the tests are those of the service.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.load.repeated_experiments import ARMS, EXPERIMENT, SIGN
from bench.load.shop_visitors import POSITION_BIAS, K
from service.experiments.interleaved_report import EXPECTED_SHIFT, preference_of
from service.experiments.report import FEWEST, GROUPS, MEASURES, report_of_counts
from service.experiments.statistics import ALPHA, RatioEstimate, mixture_sprt
from service.experiments.team_draft import coins_of, team_draft

_INDIFFERENT = RatioEstimate(0.5, 0.0, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class InterleavedTraffic:
    """Users whose answers have items of both arms, over some hours.

    Attributes:
        users: all of them in both arms.
        hours: that the experiment runs, with one look after each.
        decided_an_hour: answers of a user in which an item is clicked, on average.
        preference: for the second arm; 0.5: an A/A test.
    """

    users: int = 400
    hours: int = 168
    decided_an_hour: float = 0.04
    preference: float = 0.5

    def found(self, seed: int) -> int:
        """Look every hour: -1, 0 or 1, the sign of the first preference that the test finds; 0: it finds none.

        Users differ: their visits are Gamma distributed, and so that their answers are not independent their
        preferences are Beta distributed, as the same user gets the same coins for the same rankings.
        """
        rng, shape = np.random.default_rng(seed), (self.users, self.hours)
        groups = rng.integers(0, GROUPS, self.users)
        own = rng.beta(20.0 * self.preference, 20.0 * (1.0 - self.preference), self.users)
        visits = rng.gamma(0.5, 2.0 * self.decided_an_hour, self.users)
        decided = rng.poisson(visits[:, None], shape)
        ties = rng.binomial(decided, 0.1)
        second = rng.binomial(decided - ties, own[:, None])
        sums = []
        for counts in (decided - ties - second, second, ties):
            whole = np.zeros((GROUPS, self.hours))
            np.add.at(whole, groups, counts.astype(np.float64))
            sums.append(whole.cumsum(axis=1))
        for hour in range(self.hours):
            estimate = preference_of(*(counts[:, hour] for counts in sums))
            sign = _significant(estimate) if estimate.denominator >= FEWEST else 0
            if sign:
                return sign
        return 0

    def repeated(self, repeats: int) -> dict[str, Any]:
        """Run independent repeats; how many found the second arm better, worse or neither."""
        found = [self.found(seed) for seed in range(repeats)]
        return {"repeats": repeats, "better": found.count(1), "worse": found.count(-1), "neither": found.count(0)}


@dataclass(frozen=True, slots=True)
class RankedShop:
    """Visitors with known preferences, to whom two rankings of different quality are shown.

    Every visit has items of which some fit the visitor better. Both arms rank them by that fit, blurred: the second
    one less. A visitor looks at a position with the probability of its bias.

    Attributes:
        one_choice: a visitor takes at most one of the items looked at, the better it fits the more probably; else
            each is clicked by itself, whatever the others are.
        better_blur: standard deviation of the noise in the ranking of the better arm; that of the fit is 1.
        control_blur: the same of the control.
        users: visitors.
        visits: of each.
        items: that are ranked at each visit.
    """

    one_choice: bool
    better_blur: float
    control_blur: float = 1.0
    users: int = 5000
    visits: int = 4
    items: int = 40

    def compared(self, seed: int) -> dict[str, float | None]:
        """Answers until either way of comparing finds the better arm; None: not with all visits.

        Also the clicks per answer of both arms, as users of one arm see them.
        """
        rng = np.random.default_rng(seed)
        fit = rng.standard_normal((self.users * self.visits, self.items))
        users = np.repeat(np.arange(self.users), self.visits)
        eagerness = rng.normal(0.0, 1.0, self.users)[users]
        rankings = [
            np.argsort(-(fit + blur * rng.standard_normal(fit.shape)), axis=1)[:, :K]
            for blur in (self.control_blur, self.better_blur)
        ]
        drafted, of_second = _drafted(rankings, users, seed)
        arms = rng.integers(0, 2, self.users)[users]
        apart = np.where(arms[:, None] == 0, *rankings)
        clicks = self._clicked(rng, fit, eagerness, apart).sum(axis=1).astype(np.float64)
        merged = self._clicked(rng, fit, eagerness, drafted)
        return {
            "a/b": _answers_until(users, lambda until: _apart(users[:until], arms[:until], clicks[:until])),
            "interleaved": _answers_until(
                users, lambda until: _together(users[:until], merged[:until], of_second[:until])
            ),
            "control": float(clicks[arms == 0].mean()),
            "better": float(clicks[arms == 1].mean()),
        }

    def _clicked(
        self,
        rng: np.random.Generator,
        fit: NDArray[np.float64],
        eagerness: NDArray[np.float64],
        shown: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """(visits, K) bool, whether each shown item is clicked."""
        looked = rng.random(shown.shape) < POSITION_BIAS
        appeal = np.exp(np.take_along_axis(fit, shown, axis=1) + eagerness[:, None] - 3.5) * looked
        if not self.one_choice:
            return np.asarray(rng.random(shown.shape) < appeal / (1.0 + appeal))
        bounds = np.cumsum(appeal, axis=1) / (1.0 + appeal.sum(axis=1, keepdims=True))
        drawn = rng.random((len(shown), 1))
        return np.asarray((drawn < bounds) & (drawn >= bounds - appeal / (1.0 + appeal.sum(axis=1, keepdims=True))))


def _drafted(
    rankings: list[NDArray[np.int64]], users: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(visits, K) items of the merged rankings, and whether the second arm gave each."""
    shown, of_second = np.empty_like(rankings[0]), np.empty(rankings[0].shape, dtype=np.bool_)
    for visit, user in enumerate(users.tolist()):
        first, second = ([str(item) for item in ranking[visit].tolist()] for ranking in rankings)
        coins = coins_of(f"salt-{seed}", f"user-{user}", [first[0], second[0]])
        for place, pick in enumerate(team_draft((first, second), K, coins)):
            shown[visit, place] = rankings[pick.team][visit, pick.place]
            of_second[visit, place] = pick.team == 1
    return shown, of_second


def _answers_until(users: NDArray[np.int64], look: Any) -> float | None:  # noqa: ANN401 - a function of a number
    """The first of many looks at which the test finds the second arm better."""
    for until in range(250, len(users) + 1, 250):
        if look(until) > 0:
            return until
    return None


def _apart(users: NDArray[np.int64], arms: NDArray[np.int64], clicks: NDArray[np.float64]) -> int:
    counted = {}
    for number, name in enumerate(ARMS):
        own = arms == number
        measured = {
            "answers": _by_group(users[own]),
            "users": _by_group(np.unique(users[own])),
            "clicks": _by_group(users[own], clicks[own]),
        }
        counted[name] = dict.fromkeys(MEASURES, np.zeros(GROUPS)) | measured
    return SIGN[report_of_counts(EXPERIMENT, counted).verdict]


def _together(users: NDArray[np.int64], clicked: NDArray[np.bool_], of_second: NDArray[np.bool_]) -> int:
    lead = (clicked & of_second).sum(axis=1) - (clicked & ~of_second).sum(axis=1)
    decided = clicked.any(axis=1)
    counts = (_by_group(users[decided & chosen]) for chosen in (lead < 0, lead > 0, lead == 0))
    estimate = preference_of(*counts)
    return _significant(estimate) if estimate.denominator >= FEWEST else 0


def _by_group(users: NDArray[np.int64], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    return np.bincount(users % GROUPS, weights, minlength=GROUPS).astype(np.float64)


def _significant(preference: RatioEstimate) -> int:
    """The sign of a preference that the test finds; 0: it finds none."""
    test = mixture_sprt(_INDIFFERENT, preference, spread=EXPECTED_SHIFT)
    return int(np.sign(test.difference)) if test.p <= ALPHA else 0


def sample_sizes(shop: RankedShop, repeats: int) -> dict[str, Any]:
    """Median answers until the better arm is found, in both ways; a repeat that does not find it counts as all visits.

    Args:
        shop: of every repeat.
        repeats: independent ones.
    """
    found = [shop.compared(seed) for seed in range(repeats)]
    whole = float(shop.users * shop.visits)
    sizes = {way: [whole if one[way] is None else one[way] for one in found] for way in ("a/b", "interleaved")}
    control, better = (float(np.mean([one[arm] for one in found])) for arm in ("control", "better"))
    return {
        "repeats": repeats,
        "clicks_per_answer": {"control": control, "better": better},
        "lift": better / control - 1.0,
        "median_answers": {way: float(np.median(answers)) for way, answers in sizes.items()},
        "not_found": {way: sum(one[way] is None for one in found) for way in sizes},
    }
