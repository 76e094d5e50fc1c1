"""Interleaved answers over HTTP: items of two bundles in one answer, each explained by its own; whom a click helps."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from index.items.item_table import ItemTable
from service.experiments.experiment import Arm, Experiment
from tests.support.shops import AS_ADMIN, OpenClient, Shop, eventually, metric, other_bundle

USERS = [f"user-{number}" for number in range(8)]
TEXT = {"slot_weights": {"text": 3.0}}
ASKED = {"items": ["i1", "i2"], "k": 6}


@pytest.fixture
def opened(open_shop: OpenClient) -> Iterator[TestClient]:
    with open_shop(outcomes=True) as client:
        yield client


def two_arms(*bundles: str | None, **defaults: Any) -> dict[str, Any]:
    arms: list[dict[str, Any]] = [
        {"name": name, "share": 0.5, "bundle": bundle} for name, bundle in zip(("old", "new"), bundles, strict=True)
    ]
    arms[1]["defaults"] = defaults or None
    return {"interleave": True, "salt": "salt", "arms": arms}


def put(client: TestClient, body: Any) -> dict[str, Any]:
    answer = client.put("/experiments/models", json=body, headers=AS_ADMIN)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def asked(client: TestClient, user: str = "anna", **more: Any) -> dict[str, Any]:
    answer = client.post("/recommend", json={"user_id": user, **ASKED, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def rankings_of(client: TestClient, bundles: Sequence[str], **more: Any) -> list[list[dict[str, Any]]]:
    """The items of each bundle alone, without an experiment; the first one answers at the end."""
    found = []
    for bundle in (*bundles[::-1],):
        rolled = client.post("/bundle/rollback", json={"bundle": bundle}, headers=AS_ADMIN)
        assert rolled.status_code == 200, rolled.text
        found.append(asked(client, **{"k": 50, "explain": "full", "fields": ["title"], **more})["items"])
    return found[::-1]


def test_an_answer_has_items_of_two_bundles_each_scored_and_explained_by_its_own(
    opened: TestClient, shop: Shop
) -> None:
    bundles = shop.ids[:2]
    alone = rankings_of(opened, bundles)
    definition = put(opened, two_arms(None, bundles[1]))
    assert (definition["interleave"], [arm["bundle"] for arm in definition["arms"]]) == (True, bundles)
    for user in USERS:
        answer = asked(opened, user, explain="full", fields=["title"])
        assert (answer["arm"], answer["bundle"], answer["degraded"]) == ("models/old+new", bundles[0], None)
        assert [(arm["arm"], arm["bundle"]) for arm in answer["interleaved"]] == [
            ("models/old", bundles[0]), ("models/new", bundles[1]),
        ]  # fmt: skip
        items = answer["items"]
        assert len({item["item_id"] for item in items}) == ASKED["k"]
        for arm, ranking in zip(("models/old", "models/new"), alone, strict=True):
            own = [{**item, "arm": ""} for item in items if item["arm"] == arm]
            by_id = {item["item_id"]: place for place, item in enumerate(ranking)}
            places = [by_id[item["item_id"]] for item in own]
            assert len(own) == ASKED["k"] // 2
            assert places == sorted(places)
            assert own == [{**ranking[place], "arm": ""} for place in places]  # scores, contributions, nearest item
            for item in own:
                assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-5)
    assert {asked(opened, user)["items"][0]["arm"] for user in USERS} == {"models/old", "models/new"}


@pytest.mark.parametrize("more", [{}, {"diversity": 0.6}])
def test_pages_are_the_same_again_repeat_nothing_and_join_to_one_answer(
    opened: TestClient, shop: Shop, more: dict[str, Any]
) -> None:
    put(opened, two_arms(None, shop.ids[1]))
    pages = [asked(opened, offset=offset, k=5, **more)["items"] for offset in range(0, 25, 5)]
    assert pages == [asked(opened, offset=offset, k=5, **more)["items"] for offset in range(0, 25, 5)]
    joined = [item["item_id"] for page in pages for item in page]
    assert len(set(joined)) == 25
    assert joined == [item["item_id"] for item in asked(opened, k=25, **more)["items"]]


def test_every_item_is_answered_once_and_then_no_more(opened: TestClient, shop: Shop) -> None:
    put(opened, two_arms(None, shop.ids[1]))
    whole = [item["item_id"] for item in asked(opened, k=1000)["items"]]
    assert len(whole) == len(set(whole)) == 57  # of 60: two are in the history, one has no slot
    assert asked(opened, k=5, offset=57)["items"] == []
    hats = {"must": [{"field": "category", "eq": "hats"}]}
    assert len({item["item_id"] for item in asked(opened, k=100, filter=hats)["items"]}) == 19


def test_arms_of_one_bundle_have_their_own_defaults(opened: TestClient) -> None:
    plain, text = asked(opened, k=50)["items"], asked(opened, k=50, **TEXT)["items"]
    put(opened, two_arms(None, None, **TEXT))
    answer = asked(opened)
    scores = [{item["item_id"]: item["score"] for item in ranking} for ranking in (plain, text)]
    for item in answer["items"]:
        assert item["score"] == scores[item["arm"] == "models/new"][item["item_id"]]
    # Where the request sets the field itself both rankings are one, and so the answer is that ranking.
    assert [item["item_id"] for item in asked(opened, **TEXT)["items"]] == [item["item_id"] for item in text[:6]]


def test_a_hidden_and_a_seen_item_are_in_no_answer_of_either_arm(opened: TestClient, shop: Shop) -> None:
    put(opened, two_arms(None, shop.ids[1]))
    hidden, seen = (item["item_id"] for item in asked(opened)["items"][:2])
    opened.put(f"/items/{hidden}/availability", json={"available": False}, headers=AS_ADMIN)
    opened.post("/events", json={"user_id": "anna", "item_id": seen, "type": "purchase"})
    assert not {hidden, seen} & {item["item_id"] for item in asked(opened, k=50)["items"]}


def test_other_routes_and_requests_of_nobody_are_in_no_arm(opened: TestClient, shop: Shop) -> None:
    put(opened, two_arms(None, shop.ids[1]))
    batch = opened.post("/recommend/batch", json={"requests": [{"user_id": "anna", **ASKED}]}).json()
    similar = opened.post("/similar", json={"item_id": "i1", "k": 5}).json()
    nobody = opened.post("/recommend", json=ASKED).json()
    for answer in (batch["answers"][0], similar, nobody):
        assert not {"arm", "interleaved"} & {*answer}
        assert not any("arm" in item for item in answer["items"])
    assert {batch["bundle"], similar["bundle"], nobody["bundle"]} == {shop.ids[0]}
    session = opened.post("/recommend", json={"session_id": "s1", **ASKED}).json()
    assert session["arm"] == "models/old+new"


def test_users_without_a_history_get_popular_items_of_both(opened: TestClient, shop: Shop) -> None:
    put(opened, two_arms(None, shop.ids[1]))
    answer = asked(opened, items=[], explain=True)
    assert {arm["strategy"] for arm in answer["interleaved"]} == {answer["strategy"]} == {"popular"}
    assert {item["arm"] for item in answer["items"]} == {"models/old", "models/new"}
    assert all(item["contributions"] is None for item in answer["items"])


def counts_of(client: TestClient) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for entry in client.get("/experiments/models/groups", headers=AS_ADMIN).json()["groups"]:
        of_arm = found.setdefault(entry["arm"], {})
        for measure, amount in entry.items():
            if measure not in {"arm", "group"}:
                of_arm[measure] = of_arm.get(measure, 0) + amount
    return found


def test_a_click_helps_the_arm_of_its_item(opened: TestClient, shop: Shop) -> None:
    put(opened, two_arms(None, shop.ids[1]))
    answer = asked(opened)
    old, new = (
        [item["item_id"] for item in answer["items"] if item["arm"] == arm] for arm in ("models/old", "models/new")
    )

    def did(item: str, kind: str, **more: Any) -> None:
        event = {"user_id": "anna", "item_id": item, "type": kind, "request_id": answer["request_id"], **more}
        assert opened.post("/events", json=event).is_success

    for item in old + new:
        did(item, "impression")
    did(new[0], "click")
    eventually(lambda: counts_of(opened).get("new", {}).get("wins") == 1)
    did(old[0], "click")
    did(new[1], "click")
    did(new[1], "click")
    did(old[1], "purchase", value=20.0)
    eventually(lambda: counts_of(opened)["old"].get("conversions"))
    counts = counts_of(opened)
    latency = counts["old"].pop("latency_us")
    assert (counts["new"].pop("latency_us"), latency > 0) == (latency, True)
    assert {arm: {name: value for name, value in found.items() if value} for arm, found in counts.items()} == {
        "old": {"answers": 1, "visits": 1, "shown": 3, "impressions": 3, "clicks": 1, "conversions": 1, "revenue": 20.0,
                "conversion_wins": 1},
        "new": {"answers": 1, "visits": 1, "shown": 3, "impressions": 3, "clicks": 2, "wins": 1},
    }  # fmt: skip
    by = {
        dimension: {
            entry["value"]: (entry["answers"], entry["shown"], entry["clicks"])
            for entry in opened.get(f"/outcomes?by={dimension}").json()["outcomes"]
        }
        for dimension in ("arm", "bundle", "strategy", "position")
    }
    assert by["arm"] == {"models/old": (1, 3, 1), "models/new": (1, 3, 2)}
    assert by["bundle"] == {shop.ids[0]: (1, 3, 1), shop.ids[1]: (1, 3, 2)}
    assert by["strategy"] == {"sequence": (1, 6, 3)}
    assert sum(clicks for *_, clicks in by["position"].values()) == 3
    events = opened.portal.call(opened.app.state.histories.stream)  # type: ignore[union-attr,attr-defined]
    assert {event.arm for event in events} == {"models/old+new"}


def test_a_degraded_answer_is_in_no_arm_and_counts_against_the_arm_that_degraded(
    opened: TestClient, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(opened, two_arms(None, shop.ids[1]))
    from service.recommend import recommender as module

    ranked = module.Recommender.recommend

    async def slow_second(self: Any, bundle: Any, query: Any, watch: Any) -> Any:
        found = await ranked(self, bundle, query, watch)
        return module.replace(found, degraded="deadline") if bundle.id == shop.ids[slow] else found

    monkeypatch.setattr(module.Recommender, "recommend", slow_second)
    slow = 1
    answer = asked(opened, offset=2)
    assert (answer["bundle"], answer["degraded"], len(answer["items"])) == (shop.ids[0], None, ASKED["k"])
    assert not {"arm", "interleaved"} & {*answer}
    slow = 0
    answer = asked(opened, "bob")
    assert (answer["bundle"], answer["degraded"]) == (shop.ids[1], None)
    counts = eventually(lambda: (found := counts_of(opened)).get("old", {}).get("answers") == 2 and found)
    assert {arm: (found["answers"], found["degraded"], found.get("shown")) for arm, found in counts.items()} == {
        "old": (2, 1, None), "new": (2, 1, None),
    }  # fmt: skip
    assert [entry["value"] for entry in opened.get("/outcomes?by=arm").json()["outcomes"]] == ["none"]


def test_without_histories_the_control_answers_alone(open_shop: OpenClient, shop: Shop, tmp_path: Path) -> None:
    with open_shop(outcomes=True) as client:
        put(client, two_arms(None, shop.ids[1]))
    gone = {
        "redis_url": "redis://127.0.0.1:1",
        "redis_timeout_ms": 50,
        "directives_file": tmp_path / "directives-1.json",
    }
    with open_shop(outcomes=True, **gone) as client:
        eventually(lambda: client.get("/experiments/models", headers=AS_ADMIN).json()["state"] == "running")
        answer = asked(client)
        assert (answer["bundle"], answer["degraded"], "arm" in answer) == (shop.ids[0], "history_unavailable", False)


def test_a_request_that_one_arm_refuses_is_answered_by_the_other(
    opened: TestClient, shop: Shop, small_table: ItemTable, small_encoder: Path, tmp_path: Path
) -> None:
    others = shop.put(other_bundle(small_table, small_encoder, tmp_path, 9, names="x"))
    put(opened, two_arms(None, others))
    answer = asked(opened, unknown_items="error")  # the second bundle has x1, x2 …
    assert (answer["bundle"], len(answer["items"]), "arm" in answer) == (shop.ids[0], ASKED["k"], False)
    assert asked(opened, items=["x1"], unknown_items="error")["bundle"] == others
    merged = asked(opened)
    assert [arm["unknown_items"] for arm in merged["interleaved"]] == [[], ASKED["items"]]
    assert [arm["strategy"] for arm in merged["interleaved"]] == ["sequence", "popular"]
    for refused, field in (({"items": ["?"], "unknown_items": "error"}, "items"), ({"fields": ["?"]}, "fields[0]")):
        found = opened.post("/recommend", json={"user_id": "anna", **ASKED, **refused})
        assert (found.status_code, found.json()["errors"][0]["field"]) == (422, field)
    counts = eventually(lambda: (found := counts_of(opened)).get("old", {}).get("answers") == 3 and found)
    assert (counts["old"]["degraded"], counts["new"]["degraded"]) == (1, 1)


def test_a_rollback_to_a_third_bundle_ends_the_mixture_at_once(opened: TestClient, shop: Shop) -> None:
    first, second, third, _ = shop.ids
    put(opened, two_arms(first, second))
    assert asked(opened)["arm"] == "models/old+new"
    opened.post("/bundle/rollback", json={"bundle": third}, headers=AS_ADMIN)
    answer = asked(opened)
    assert (answer["bundle"], "arm" in answer, "interleaved" in answer) == (third, False, False)


def test_outside_of_the_sample_answers_are_interleaved_and_not_counted(open_shop: OpenClient, shop: Shop) -> None:
    with open_shop(outcomes=True, outcomes_sample=1e-9) as client:
        put(client, two_arms(None, shop.ids[1]))
        assert asked(client)["arm"] == "models/old+new"
        assert eventually(lambda: metric(client, "vlm2rec_outcome_answers_total", result="sampled")) == 1
        missing = eventually(
            lambda: (found := client.get("/outcomes").json())["left_out"]["answers"]["sampled"] and found
        )
        assert (missing["outcomes"], missing["left_out"]["answers"]["sampled"]) == ([], 1)


def test_a_stored_definition_says_that_it_interleaves() -> None:
    experiment = Experiment("e", "salt", (Arm("a", 0.5), Arm("b", 0.5)), interleave=True)
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert '"format": 2' in experiment.to_json()  # a service that cannot interleave does not run it
    three = experiment.to_json().replace(
        '"arms": [', '"arms": [{"name": "c", "share": 0.1, "bundle": null, "defaults": {}}, '
    )
    with pytest.raises(ValueError, match="2 where it interleaves; it has 3"):
        Experiment.from_json(three)
