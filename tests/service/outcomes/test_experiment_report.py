"""The report of an experiment, on shops in which the better arm is known."""

from typing import Any

import numpy as np
import pytest

from service.experiments.report import experiment_report

EXPERIMENT = {"name": "models", "arms": [{"name": "control", "share": 0.5}, {"name": "new", "share": 0.5}]}


def counted(
    rates: dict[str, float], *, users: int = 40_000, latency_ms: dict[str, float] | None = None,
    degraded: dict[str, float] | None = None, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """A shop whose users differ in how often they come and how often they click."""
    rng = np.random.default_rng(seed)
    found = []
    for arm, rate in rates.items():
        groups = rng.integers(0, 256, users)
        answers = 1 + rng.poisson(rng.gamma(1.0, 3.0, users))
        clicks = rng.binomial(answers, rng.beta(2.0, 2.0 / rate - 2.0, users))
        bought = rng.binomial(clicks, 0.2)
        for group in range(256):
            of = groups == group
            there = int(answers[of].sum())
            found.append({
                "arm": arm, "group": group, "answers": there, "users": int(of.sum()), "clicks": int(clicks[of].sum()),
                "conversions": int(bought[of].sum()), "revenue": float(bought[of].sum() * 20.0),
                "latency_us": int(there * 1000 * (latency_ms or {}).get(arm, 5.0) * rng.uniform(0.95, 1.05)),
                "degraded": int(rng.binomial(there, (degraded or {}).get(arm, 0.001))),
            })  # fmt: skip
    return found


def test_an_arm_that_is_better_by_a_tenth_is_kept_and_a_worse_one_rolled_back() -> None:
    for rates, verdict in (({"control": 0.05, "new": 0.055}, "keep"), ({"control": 0.055, "new": 0.05}, "roll back")):
        found = experiment_report(EXPERIMENT, counted(rates))
        assert (found.verdict, found.candidates[0].verdict) == (verdict, verdict)
        assert found.candidates[0].lift == pytest.approx(rates["new"] / rates["control"] - 1, abs=0.03)
        for arm in found.arms:
            low, high = arm.rates["clicks"].interval
            assert low <= rates[arm.name] <= high
    money = experiment_report(EXPERIMENT, counted({"control": 0.05, "new": 0.07}), "revenue")
    assert (money.verdict, money.goal) == ("keep", "revenue")


def test_equal_arms_wait() -> None:
    found = experiment_report(EXPERIMENT, counted({"control": 0.05, "new": 0.05}))
    assert found.verdict == "not yet"
    assert found.candidates[0].reasons[0].startswith("no difference is found yet: p is")
    assert found.mismatch_p > 0.001


@pytest.mark.parametrize(
    ("worse", "reason"),
    [({"latency_ms": {"new": 8.0}}, "mean latency is +"), ({"degraded": {"new": 0.05}}, "degraded answers is +4.")],
)
def test_a_guard_rail_rolls_a_better_arm_back(worse: dict[str, Any], reason: str) -> None:
    found = experiment_report(EXPERIMENT, counted({"control": 0.05, "new": 0.08}, **worse))
    assert found.verdict == "roll back"
    assert reason in found.candidates[0].reasons[0]


def test_a_candidate_that_always_fails_is_rolled_back() -> None:
    rates, failing = {"control": 0.05, "new": 0.05}, {"control": 0.0, "new": 1.0}
    found = experiment_report(EXPERIMENT, counted(rates, degraded=failing))
    assert (found.verdict, found.candidates[0].reasons) == (
        "roll back", ("its share of degraded answers is +100.00%",),
    )  # fmt: skip
    repaired = experiment_report(EXPERIMENT, counted(rates, degraded={"control": 1.0, "new": 0.0}))
    assert repaired.verdict == "not yet"


def test_users_that_are_not_divided_as_planned_allow_no_verdict() -> None:
    groups = counted({"control": 0.05, "new": 0.08})
    lost = [entry | {"users": entry["users"] * 9 // 10} if entry["arm"] == "new" else entry for entry in groups]
    found = experiment_report(EXPERIMENT, lost)
    assert (found.verdict, found.mismatch_p < 0.001) == ("not yet", True)
    assert "not divided as planned" in found.candidates[0].reasons[0]


def test_an_arm_whose_users_return_more_often_is_no_wrong_division() -> None:
    """What a candidate changes must not stop its own experiment."""
    groups = [entry | {"visits": 2 * entry["users"]} for entry in counted({"control": 0.05, "new": 0.08})]
    returning = [entry | {"visits": 3 * entry["users"]} if entry["arm"] == "new" else entry for entry in groups]
    found = experiment_report(EXPERIMENT, returning)
    assert (found.verdict, found.mismatch_p > 0.001) == ("keep", True)


def test_little_data_waits() -> None:
    found = experiment_report(EXPERIMENT, [])
    assert (found.verdict, found.mismatch_p) == ("not yet", 1.0)
    assert found.candidates[0].reasons == (
        "control and new must have answers for at least 100 clicks at the rate of both arms together",
    )
    few = experiment_report(EXPERIMENT, counted({"control": 0.05, "new": 0.2}, users=100))
    assert few.verdict == "not yet"
    with pytest.raises(ValueError, match="must have two arms"):
        experiment_report({"name": "x", "arms": []}, [])


@pytest.mark.parametrize(("silent", "verdict"), [("new", "roll back"), ("control", "keep")])
def test_an_arm_that_nobody_clicks_is_decided_by_its_answers(silent: str, verdict: str) -> None:
    """It gets no hundred clicks, however long the experiment runs."""
    groups = counted({"control": 0.05, "new": 0.05})
    without = [entry | {"clicks": 0} if entry["arm"] == silent else entry for entry in groups]
    assert experiment_report(EXPERIMENT, without).verdict == verdict
    few = counted({"control": 0.05, "new": 0.05}, users=800)
    without = [entry | {"clicks": 0} if entry["arm"] == silent else entry for entry in few]
    found = experiment_report(EXPERIMENT, without)
    assert (found.verdict, "must have answers for at least 100 clicks" in found.candidates[0].reasons[0]) == (
        "not yet", True,
    )  # fmt: skip


def test_of_several_candidates_each_has_its_verdict() -> None:
    three = {"name": "three", "arms": [{"name": name, "share": 1 / 3} for name in ("control", "worse", "better")]}
    found = experiment_report(three, counted({"control": 0.06, "worse": 0.05, "better": 0.07}))
    assert [candidate.verdict for candidate in found.candidates] == ["roll back", "keep"]
    assert found.verdict == "keep"
