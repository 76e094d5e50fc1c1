"""The report of an interleaved experiment, on shops in which the preference is known."""

from typing import Any

import numpy as np
import pytest

from bench.load.repeated_interleaving import InterleavedTraffic
from service.experiments.interleaved_report import (
    EXPECTED_SHIFT,
    interleaved_report,
    preference_of,
)

EXPERIMENT = {"name": "models", "arms": [{"name": "control"}, {"name": "new"}], "interleave": True}


def counted(preference: float, *, answers: int = 20_000, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """An entry for each arm and group; in a tenth of the decided answers both arms have as many clicks."""
    rng, found = np.random.default_rng(seed), []
    for group in range(256):
        there = int(rng.poisson(answers / 256))
        clicked = int(rng.binomial(there, 0.3))
        ties = int(rng.binomial(clicked, 0.1))
        wins = int(rng.binomial(clicked - ties, preference))
        for arm, won in (("control", clicked - ties - wins), ("new", wins)):
            entry = {"arm": arm, "group": group, "answers": there, "shown": 5 * there, "clicks": won + ties}
            found.append(entry | {"wins": won, "ties": ties} | more.get(arm, {}))
    return found


def test_equal_arms_cause_at_most_16_false_alarms_in_200_looked_at_every_hour() -> None:
    found = InterleavedTraffic().repeated(200)
    assert found["better"] + found["worse"] <= 16


def test_a_better_arm_is_found() -> None:
    found = InterleavedTraffic(preference=0.57).repeated(20)
    assert (found["worse"], found["better"] >= 15) == (0, True)


def test_an_arm_whose_items_are_chosen_more_often_is_kept_and_the_other_one_rolled_back() -> None:
    for preference, verdict in ((0.55, "keep"), (0.45, "roll back"), (0.5, "not yet")):
        found = interleaved_report(EXPERIMENT, counted(preference))
        assert found.verdict == verdict
        assert found.test.low <= 0.9 * (preference - 0.5) <= found.test.high  # ties draw it to 0.5
        assert found.preference.value == pytest.approx(0.5 + 0.9 * (preference - 0.5), abs=0.015)
    assert found.reasons[0].startswith("no preference is found yet: p is")


def test_by_hand() -> None:
    groups = [
        {"arm": arm, "group": group, "answers": 10, "shown": 50, "wins": wins, "ties": 1, "conversion_wins": 1}
        for group in range(30)
        for arm, wins in (("control", 1), ("new", 2))
    ]
    found = interleaved_report(EXPERIMENT, groups)
    assert (found.preference.value, found.preference.denominator, found.ties) == (2.5 / 4, 120, 30)
    assert [arm.wins for arm in found.arms] == [30, 60]
    sold = interleaved_report(EXPERIMENT, groups, "conversions")
    assert (sold.preference.value, sold.verdict) == (0.5, "not yet")
    assert sold.reasons == ("100 answers with conversions are needed, there are 60",)
    assert pytest.approx(1.1 / 2.1 - 0.5) == EXPECTED_SHIFT


def test_a_group_that_a_killed_process_left_below_0_counts_as_0() -> None:
    ones = np.ones(30)
    assert preference_of(ones, ones, -ones).value == 0.5
    assert preference_of(-ones, ones, 0 * ones).value == 1.0


def test_an_arm_that_degrades_is_rolled_back_though_its_items_are_chosen() -> None:
    found = interleaved_report(EXPERIMENT, counted(0.6, new={"degraded": 20}))
    assert (found.verdict, "degraded or refused answers is +" in found.reasons[0]) == ("roll back", True)


@pytest.mark.parametrize(("preference", "verdict"), [(1.0, "keep"), (0.0, "roll back")])
def test_an_arm_that_wins_every_answer_has_a_verdict(preference: float, verdict: str) -> None:
    entries = [entry | {"ties": 0} for entry in counted(preference)]
    found = interleaved_report(EXPERIMENT, entries)
    assert (found.preference.value, found.preference.variance, found.verdict) == (preference, 0.0, verdict)


def test_an_arm_that_always_fails_is_rolled_back() -> None:
    entries = counted(0.5)
    failing = [entry | {"degraded": entry["answers"] if entry["arm"] == "new" else 0} for entry in entries]
    assert interleaved_report(EXPERIMENT, failing).verdict == "roll back"


def test_arms_that_give_unequally_many_items_are_not_compared() -> None:
    found = interleaved_report(EXPERIMENT, counted(0.6, new={"shown": 200}))
    assert found.verdict == "not yet"
    assert "so the arms cannot be compared; look at their filters" in found.reasons[0]


def test_nothing_counted_waits() -> None:
    found = interleaved_report(EXPERIMENT, [])
    assert (found.verdict, found.reasons) == ("not yet", ("100 answers with clicks are needed, there are 0",))
    with pytest.raises(ValueError, match="must have two arms, received 1"):
        interleaved_report({"name": "x", "arms": [{"name": "a"}]}, [])
