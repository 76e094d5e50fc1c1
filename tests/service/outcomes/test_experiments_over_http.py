"""Experiments over HTTP: arms of bundles and defaults, on every replica, and bad input."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.experiments.experiment import Arm, Experiment
from tests.support.shops import ADMIN, AS_ADMIN, OpenClient, Shop, eventually

TWO = {"arms": [{"name": "control", "share": 0.5}, {"name": "more", "share": 0.5, "defaults": {"diversity": 0.9}}]}
USERS = [f"user-{number}" for number in range(16)]


@pytest.fixture
def opened(open_shop: OpenClient) -> Iterator[TestClient]:
    with open_shop(outcomes=True) as client:
        yield client


@pytest.fixture(scope="module")
def small(open_client: OpenClient) -> Iterator[TestClient]:
    with open_client(outcomes=True, admin_keys=[ADMIN]) as client:
        yield client


def put(client: TestClient, name: str, body: Any, status: int = 200) -> Any:
    answer = client.put(f"/experiments/{name}", json=body, headers=AS_ADMIN)
    assert answer.status_code == status, answer.text
    return answer.json()


def asked(client: TestClient, user: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/recommend", json={"user_id": user, "items": ["i1", "i2"], "k": 5, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def of_bundles(*bundles: str | None) -> dict[str, Any]:
    arms = [{"name": f"arm-{number}", "share": 1 / len(bundles), "bundle": name} for number, name in enumerate(bundles)]
    return {"arms": arms}


def test_users_are_divided_and_keep_their_arm(opened: TestClient) -> None:
    before = asked(opened, "user-0")
    answer = put(opened, "pictures", TWO)
    assert (answer["state"], len(answer["salt"])) == ("running", 32)
    assert put(opened, "pictures", TWO) == answer  # the same again, whatever its salt
    arms = {user: asked(opened, user)["arm"] for user in USERS}
    assert arms == {user: asked(opened, user)["arm"] for user in USERS}
    assert set(Counter(arms.values())) == {"pictures/control", "pictures/more"}
    diverse = next(user for user, arm in arms.items() if arm == "pictures/more")
    by_hand = asked(opened, diverse, diversity=0.9, history="ignore")
    assert asked(opened, diverse, history="ignore")["items"] == by_hand["items"]
    assert asked(opened, diverse, diversity=0.0)["items"] == before["items"]  # the request's own value wins
    assert "arm" not in opened.post("/recommend", json={"items": ["i1"]}).json()
    assert opened.get("/experiments/pictures", headers=AS_ADMIN).json() == answer
    assert opened.delete("/experiments/pictures", headers=AS_ADMIN).status_code == 204
    assert {**asked(opened, "user-0"), "request_id": ""} == {**before, "request_id": ""}
    assert opened.get("/experiments/pictures", headers=AS_ADMIN).json()["state"] == "ended"
    assert opened.delete("/experiments/pictures", headers=AS_ADMIN).status_code == 404


def test_a_default_of_null_is_none(opened: TestClient) -> None:
    before = asked(opened, "anna")["items"]
    nulls = dict.fromkeys(("slot_weights", "diversity", "fresh_share", "filter"))
    arms = [{"name": "a", "share": 0.5, "defaults": nulls}, {"name": "b", "share": 0.5, "defaults": {**nulls}}]
    answer = put(opened, "nulls", {"arms": arms})
    assert [arm["defaults"] for arm in answer["arms"]] == [{}, {}]
    assert asked(opened, "anna")["items"] == before
    assert put(opened, "nulls", {"arms": [{"name": name, "share": 0.5} for name in "ab"]}) == answer


def test_a_stored_default_of_null_is_none(opened: TestClient) -> None:
    before = asked(opened, "anna")["items"]
    arms = (Arm("a", 0.5, None, {"diversity": None}), Arm("b", 0.5, None, {"diversity": None}))
    operator_state = opened.app.state.watcher._operator_state  # type: ignore[attr-defined]
    opened.portal.call(partial(operator_state.set_experiment, Experiment("nulls", "salt", arms), instead_of=None))  # type: ignore[union-attr]
    answer = asked(opened, "anna")
    assert (answer["arm"][:6], answer["items"]) == ("nulls/", before)


def test_a_session_is_in_an_arm_of_its_own(opened: TestClient) -> None:
    put(opened, "pictures", TWO)

    def arm(session: str, **more: Any) -> str:
        return str(opened.post("/recommend", json={"session_id": session, "items": ["i1"], **more}).json()["arm"])

    arms = {session: arm(session) for session in USERS}
    assert arms == {session: arm(session) for session in USERS}
    assert set(arms.values()) == {"pictures/control", "pictures/more"}
    assert arms != {user: asked(opened, user)["arm"] for user in USERS}  # a session is not the user of the same name
    assert {arm(session, user_id="anna") for session in USERS} == {asked(opened, "anna")["arm"]}


def test_an_arm_is_in_outcomes_events_and_groups(opened: TestClient) -> None:
    put(opened, "pictures", TWO)
    answer = asked(opened, "anna")
    item = answer["items"][0]["item_id"]
    event = {"user_id": "anna", "item_id": item, "type": "click", "request_id": answer["request_id"]}
    assert opened.post("/events", json=event).is_success

    def group() -> Any:
        groups = opened.get("/experiments/pictures/groups", headers=AS_ADMIN).json()["groups"]
        return groups if groups and "clicks" in groups[0] else None

    (found,) = eventually(group)
    assert f"pictures/{found['arm']}" == answer["arm"]
    assert [found[measure] for measure in ("answers", "users", "visits", "clicks")] == [1, 1, 1, 1]
    assert found["latency_us"] > 0
    entries = opened.get("/outcomes?by=arm").json()["outcomes"]
    assert [(entry["value"], entry["clicks"]) for entry in entries] == [(answer["arm"], 1)]
    events = opened.portal.call(opened.app.state.histories.stream)  # type: ignore[union-attr,attr-defined]
    assert [(event.item_id, event.arm) for event in events] == [(item, answer["arm"])]


def test_an_event_of_a_merged_session_has_the_arm_of_its_user(opened: TestClient) -> None:
    put(opened, "pictures", TWO)
    of_anna = asked(opened, "anna")["arm"]
    of_sessions = {
        session: opened.post("/recommend", json={"session_id": session, "items": ["i1"]}).json()["arm"]
        for session in USERS
    }
    session = next(session for session, arm in of_sessions.items() if arm != of_anna)
    opened.post("/events", json={"session_id": session, "item_id": "before"})
    assert opened.post("/users/anna/merge", json={"session_id": session}).status_code == 200
    opened.post("/events", json={"session_id": session, "item_id": "after"})
    events = opened.portal.call(opened.app.state.histories.stream)  # type: ignore[union-attr,attr-defined]
    arms = {event.item_id: event.arm for event in events}
    assert arms == {"before": of_sessions[session], "after": of_anna}


def test_every_replica_has_it_within_a_second(open_shop: OpenClient) -> None:
    with open_shop(outcomes=True) as one, open_shop(outcomes=True) as other:
        put(one, "pictures", TWO)
        eventually(lambda: "arm" in asked(other, "anna"), seconds=1.0)
        assert asked(other, "anna")["arm"] == asked(one, "anna")["arm"]
        one.delete("/experiments/pictures", headers=AS_ADMIN)
        eventually(lambda: "arm" not in asked(other, "anna"), seconds=1.0)


def test_every_replica_says_at_once_whether_it_runs(open_shop: OpenClient) -> None:
    """One that had not looked yet said that the experiment had ended, right after its start."""
    seldom = {"outcomes": True, "poll_ms": 60_000}
    with open_shop(**seldom) as one, open_shop(**seldom) as other:
        answer = put(one, "pictures", TWO)
        assert other.get("/experiments/pictures", headers=AS_ADMIN).json() == answer
        assert other.get("/experiments/pictures/groups", headers=AS_ADMIN).json()["experiment"] == answer
        assert one.delete("/experiments/pictures", headers=AS_ADMIN).status_code == 204
        assert other.get("/experiments/pictures", headers=AS_ADMIN).json()["state"] == "ended"


def test_a_new_replica_has_it_from_the_start(open_shop: OpenClient, shop: Shop) -> None:
    with open_shop(outcomes=True) as one:
        put(one, "pictures", of_bundles(None, shop.ids[1]))
        with open_shop(outcomes=True) as other:
            eventually(lambda: "arm" in asked(other, "anna"))
            answers = [(asked(one, user), asked(other, user)) for user in USERS[:6]]
            assert all(here["bundle"] == there["bundle"] for here, there in answers)


def test_arms_of_two_bundles_answer_and_a_new_one_waits(opened: TestClient, shop: Shop) -> None:
    first, second, third, _ = shop.ids
    answer = put(opened, "models", of_bundles(None, second))
    assert [arm["bundle"] for arm in answer["arms"]] == [first, second]
    answers = [asked(opened, user) for user in USERS]
    assert {(answer["arm"], answer["bundle"]) for answer in answers} == {
        ("models/arm-0", first), ("models/arm-1", second),
    }  # fmt: skip
    shop.point(third)
    waiting = eventually(lambda: opened.get("/bundle").json()["swap"].get("waiting"))
    assert waiting == (
        f"bundle {third} waits until experiment models ends, which uses {first} and {second}; "
        "at most two bundles are in memory"
    )
    assert {asked(opened, user)["bundle"] for user in USERS} == {first, second}
    assert opened.get("/metrics").text.count("vlm2rec_bundles_in_memory 2.0") == 1
    opened.delete("/experiments/models", headers=AS_ADMIN)
    eventually(lambda: opened.get("/bundle").json()["bundle"] == third)
    assert "waiting" not in opened.get("/bundle").json()["swap"]


def test_an_experiment_within_one_bundle_makes_nothing_wait(opened: TestClient, shop: Shop) -> None:
    put(opened, "pictures", TWO)
    shop.point(shop.ids[1])
    eventually(lambda: asked(opened, "anna")["bundle"] == shop.ids[1])
    assert asked(opened, "anna")["arm"].startswith("pictures/")


def test_a_rollback_goes_first_and_pauses_the_experiment(opened: TestClient, shop: Shop) -> None:
    first, second, third, _ = shop.ids
    put(opened, "models", of_bundles(first, second))
    swapped = opened.post("/bundle/rollback", json={"bundle": third}, headers=AS_ADMIN)
    assert swapped.json()["bundle"] == third
    assert {asked(opened, user).get("arm") for user in USERS} == {None}
    found = opened.get("/experiments/models", headers=AS_ADMIN).json()
    assert found["state"] == "paused"
    assert found["reason"].startswith(f"bundle {second} is not in memory")
    opened.post("/bundle/rollback", json={"bundle": first}, headers=AS_ADMIN)
    eventually(lambda: "arm" in asked(opened, "anna"))
    assert opened.get("/experiments/models", headers=AS_ADMIN).json()["state"] == "running"


def test_a_bundle_that_is_refused_or_pruned_stops_the_experiment_before_it_runs(opened: TestClient, shop: Shop) -> None:
    shop.cut(shop.ids[1])
    answer = put(opened, "models", of_bundles(None, shop.ids[1]), 409)
    assert answer["type"] == "urn:vlm2rec:problem:bundle-refused"
    put(opened, "models", of_bundles(None, "20200101T000000Z-abcdef"), 409)
    detail = put(opened, "models", of_bundles(*shop.ids[2:4]), 409)["detail"]
    assert detail.startswith(f"the arms may name the active bundle {shop.ids[0]} and one more")
    assert opened.get("/experiments/models", headers=AS_ADMIN).status_code == 404
    assert "arm" not in asked(opened, "anna")


def test_a_bundle_that_is_pruned_while_it_answers_goes_on_and_a_new_replica_pauses(
    opened: TestClient, open_shop: OpenClient, shop: Shop
) -> None:
    put(opened, "models", of_bundles(None, shop.ids[1]))
    shop.path(shop.ids[1]).rename(shop.registry.root / "gone")
    assert {asked(opened, user)["bundle"] for user in USERS} == set(shop.ids[:2])
    with open_shop(outcomes=True) as other:
        found = eventually(
            lambda: (answer := other.get("/experiments/models", headers=AS_ADMIN).json())["reason"] and answer
        )
        assert found["state"] == "paused"
        eventually(lambda: "was refused (missing)" in other.get("/experiments/models", headers=AS_ADMIN).text)
        assert "arm" not in asked(other, "anna")


def with_shares(*shares: float) -> dict[str, Any]:
    return {"arms": [{"name": f"a{number}", "share": share} for number, share in enumerate(shares)]}


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        (with_shares(0.5, 0.4), "arms must have shares that sum to 1; received 0.9"),
        (with_shares(0.5, 0.6), "arms must have shares that sum to 1; received 1.1"),
        (with_shares(0.0, 1.0), "arms[0].share must be greater than 0; received 0.0"),
        (with_shares(0.9), "arms must have at least 2 items, not 1; received"),
        (with_shares(*[0.2] * 5), "arms must have at most 4 items"),
        ({"arms": [{"name": "a", "share": 0.5}] * 2}, "must have a name of its own each"),
        ({**TWO, "salt": "a b"}, r"salt must match ^[\x21-\x7e]+$"),
        ({**TWO, "interleaved": True}, "interleaved is not a known field"),
        ({**TWO, "interleave": "yes"}, "interleave must be true or false"),
        ({**with_shares(0.4, 0.6), "interleave": True}, "arms must be two with a share of 0.5 each where interleave"),
        ({**with_shares(0.4, 0.3, 0.3), "interleave": True}, "arms must be two with a share of 0.5 each"),
        ({"arms": [{"name": "A!", "share": 0.5}, {"name": "b", "share": 0.5}]}, r"arms[0].name must match ^[a-z0-9]"),
        (
            {"arms": [{"name": "a", "share": 0.5, "bundle": "x"}, {"name": "b", "share": 0.5}]},
            "bundle must match ^[0-9]{8}T",
        ),
        ({"arms": [{"name": "a", "share": 0.5, "defaults": {"k": 3}}, {"name": "b", "share": 0.5}]}, "defaults.k"),
        (
            {
                "arms": [
                    {"name": "a", "share": 0.5, "defaults": {"slot_weights": {"smell": 2}}},
                    {"name": "b", "share": 0.5},
                ]
            },
            "must be one of the slots text, image, behaviour",
        ),
        (
            {
                "arms": [
                    {"name": "a", "share": 0.5, "defaults": {"slot_weights": {"text": 0}}},
                    {"name": "b", "share": 0.5},
                ]
            },
            "not all be 0",
        ),
        (
            {
                "arms": [
                    {"name": "a", "share": 0.5, "defaults": {"filter": {"must": [{"field": "smell", "eq": 1}]}}},
                    {"name": "b", "share": 0.5},
                ]
            },
            "unknown field 'smell'",
        ),
    ],
)
def test_a_bad_experiment_is_refused(small: TestClient, body: Any, rule: str) -> None:
    assert rule in put(small, "bad", body, 422)["detail"]
    assert "arm" not in asked(small, "anna")


def test_other_refusals(opened: TestClient, open_shop: OpenClient) -> None:
    put(opened, "Bad Name", TWO, 422)
    put(opened, "pictures", TWO)
    assert "experiment pictures runs, and one runs at a time" in put(opened, "other", TWO, 409)["detail"]
    changed = {"arms": [{"name": "control", "share": 0.4}, {"name": "more", "share": 0.6}]}
    assert "experiment pictures runs with other arms" in put(opened, "pictures", changed, 409)["detail"]
    opened.delete("/experiments/pictures", headers=AS_ADMIN)
    assert "choose another name" in put(opened, "pictures", TWO, 409)["detail"]
    assert opened.put("/experiments/p", json=TWO).status_code == 401
    with open_shop() as off:
        assert "VLM2REC_OUTCOMES=true" in put(off, "pictures", TWO, 409)["detail"]


def test_without_redis_nothing_runs_and_the_problem_says_so(open_shop: OpenClient) -> None:
    with open_shop(outcomes=True, redis_url="redis://127.0.0.1:1", redis_timeout_ms=50) as client:
        put(client, "pictures", TWO, 503)
        assert "arm" not in asked(client, "anna")


def test_shares_hold_and_another_salt_divides_anew() -> None:
    arms = (Arm("a", 0.2), Arm("b", 0.3), Arm("c", 0.5))
    one, other = (Experiment("e", salt, arms) for salt in ("salt", "another"))
    users = [f"user-{number}" for number in range(20_000)]
    counted = Counter(one.arm_of(user).name for user in users)
    assert all(abs(counted[arm.name] / len(users) - arm.share) < 0.015 for arm in arms)
    both = Counter((one.arm_of(user).name, other.arm_of(user).name) for user in users)
    for first in arms:
        for second in arms:
            expected = first.share * second.share
            assert abs(both[first.name, second.name] / len(users) - expected) < 0.015
    assert Experiment.from_json(one.to_json()) == one
    for bad in (
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 3, "name": "a", "salt": "b", "arms": []}',
        '{"format": 1, "name": "a", "salt": "b", "arms": []}',
    ):
        with pytest.raises(ValueError, match=r"must|Expecting"):
            Experiment.from_json(bad)
