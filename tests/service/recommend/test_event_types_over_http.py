"""Types of events, sessions and history windows over HTTP, against the arithmetic of docs/method.md."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.support.oracle import Oracle

Open = Callable[..., AbstractContextManager[TestClient]]
DAY = 86_400


def send(client: TestClient, user: str, *steps: tuple[str, str | None], **more: Any) -> dict[str, int]:
    """Events of a user, (item, type), a second apart and the last one just now."""
    first = time() - len(steps)
    events = [
        {"user_id": user, "item_id": item, "type": kind, "timestamp": first + place} | more
        for place, (item, kind) in enumerate(steps)
    ]
    answer = client.post("/events", json={"events": events})
    assert answer.status_code == 200, answer.text
    counts: dict[str, int] = answer.json()
    return counts


def ask(client: TestClient, k: int = 10, **body: Any) -> dict[str, Any]:
    answer = client.post("/recommend", json={"k": k} | body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def found(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(item["item_id"], item["score"]) for item in answer["items"]]


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def expected(oracle: Oracle, weighted: list[tuple[str, float]], without: set[str], k: int) -> list[tuple[str, float]]:
    """e + ‖e‖ · [Σ_{w>0}(w − 1) x + Σ_{w<0} w x] / n, by hand."""
    encoded = oracle.encoded([item for item, weight in weighted if weight > 0])
    shift = sum((weight - (weight > 0)) * oracle.vectors[oracle.row(item)] for item, weight in weighted)
    return oracle.best(encoded + np.linalg.norm(encoded) * shift / len(weighted), k, without)


def check(answer: dict[str, Any], wanted: list[tuple[str, float]]) -> None:
    assert ids(answer) == [item for item, _ in wanted]
    assert [score for _, score in found(answer)] == pytest.approx([score for _, score in wanted], abs=1e-4)


@pytest.mark.parametrize("kind", [None, "view", "cart", "purchase", "rent", "x" * 64])
def test_a_history_of_one_type_answers_as_a_plain_one(client: TestClient, kind: str | None) -> None:
    items = ["i1", "i2", "i5", "i9"]
    send(client, f"plain {kind}", *((item, kind) for item in items))
    stored, plain = ask(client, user_id=f"plain {kind}", explain=True), ask(client, items=items, explain=True)
    for answer in (stored, plain):
        del answer["request_id"]
    assert json.dumps(stored) == json.dumps(plain)


def test_positive_types_weigh_relative_to_their_mean_and_negative_ones_push_away(
    client: TestClient, oracle: Oracle
) -> None:
    send(client, "mixed", ("i1", "view"), ("i2", "purchase"), ("i4", "dislike"), ("i5", "cart"))
    mean = (1 + 5 + 3) / 3
    weighted = [("i1", 1 / mean), ("i2", 5 / mean), ("i4", -5 / mean), ("i5", 3 / mean)]
    answer = ask(client, user_id="mixed")
    check(answer, expected(oracle, weighted, {"i1", "i2", "i4", "i5"}, 10))
    given = [{"item_id": item, "weight": weight} for item, weight in weighted]
    assert found(answer) == found(ask(client, items=given))


def test_only_the_positive_events_that_the_encoder_reads_set_the_mean(client: TestClient, oracle: Oracle) -> None:
    send(client, "long", ("i20", "view"), ("i21", "view"), *((f"i{at}", "purchase") for at in (1, 2, 4, 5, 8)))
    seen = {"i20", "i21", "i1", "i2", "i4", "i5", "i8"}
    check(ask(client, user_id="long"), oracle.best(oracle.encoded(["i1", "i2", "i4", "i5", "i8"]), 10, seen))


def test_a_history_of_dislikes_alone_pushes_away(client: TestClient, oracle: Oracle) -> None:
    send(client, "sour", ("i1", "dislike"), ("i2", "return"))
    answer = ask(client, user_id="sour")
    vectors = oracle.vectors[[oracle.row("i1"), oracle.row("i2")]]
    assert answer["strategy"] == "similar"
    check(answer, oracle.best((-5 * vectors[0] - 2 * vectors[1]) / 7, 10, {"i1", "i2"}))


def test_impressions_and_ignored_types_change_no_answer(client: TestClient) -> None:
    send(client, "shown", ("i1", "view"), ("i2", "view"))
    before = found(ask(client, user_id="shown"))
    shown = before[0][0]
    assert send(client, "shown", (shown, "impression"))["stored"] == 1
    assert found(ask(client, user_id="shown")) == before
    steps = {name: client.get(f"/users/shown/{name}").json()["items"] for name in ("history", "impressions")}
    assert [(step["item_id"], step["type"]) for step in steps["history"]] == [("i1", "view"), ("i2", "view")]
    assert [(step["item_id"], step["type"]) for step in steps["impressions"]] == [(shown, "impression")]
    assert shown not in ids(ask(client, user_id="shown", exclude_seen=["impression", "view"]))


@pytest.mark.parametrize(
    ("exclude_seen", "excluded"),
    [
        (True, {"i1", "i2", "i4", "i5", "i8"}),
        (None, {"i1", "i2", "i4", "i5", "i8"}),
        (False, {"i4"}),
        ("positive", {"i1", "i2", "i4", "i5", "i8"}),
        (["purchase"], {"i2", "i4"}),
        (["view"], {"i1", "i4", "i5"}),
        (["view", "like"], {"i1", "i4", "i5"}),
        ([], {"i4"}),
    ],
)
def test_which_stored_items_are_excluded(client: TestClient, exclude_seen: Any, excluded: set[str]) -> None:
    # The newest event of an item decides whether it is disliked: i4 is, i5 is no longer.
    user = f"seen {exclude_seen}"
    steps = [("i1", "view"), ("i2", "purchase"), ("i4", "view"), ("i4", "dislike"), ("i5", "dislike"), ("i5", "view")]
    send(client, user, *steps, ("i8", "cart"))
    if exclude_seen in (["view"], ["view", "like"]):
        excluded = excluded | {"i4"}
    answer = ids(ask(client, user_id=user, exclude_seen=exclude_seen, k=60))
    assert {"i1", "i2", "i4", "i5", "i8"} - set(answer) == excluded


@pytest.mark.parametrize(
    ("exclude_seen", "excluded"),
    [(True, {"i1", "i2", "i4"}), ("positive", {"i1", "i4"}), (["view"], {"i4"}), (False, {"i4"})],
)
def test_which_given_items_are_excluded(client: TestClient, exclude_seen: Any, excluded: set[str]) -> None:
    given = ["i1", {"item_id": "i2", "weight": -1}, {"item_id": "i4", "weight": 0}]
    answer = ids(ask(client, items=given, exclude_seen=exclude_seen, k=60))
    assert {"i1", "i2", "i4"} - set(answer) == excluded


@pytest.mark.parametrize("value", ["negative", 1, ["a\nb"], [""], [1], ["a"] * 65, {}])
def test_other_values_of_exclude_seen_are_refused(client: TestClient, value: Any) -> None:
    answer = client.post("/recommend", json={"items": ["i1"], "exclude_seen": value})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "exclude_seen")


def test_the_settings_change_the_table_and_unknown_types_are_counted(
    open_client: Open, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "service.toml"
    file.write_text('[events]\ndefault_type = "search"\n[events.types]\nrent = 4\nsearch = "ignore"\n')
    monkeypatch.setenv("VLM2REC_CONFIG", str(file))
    with open_client() as client:
        send(client, "u", ("i1", "rent"), ("i2", "view"), ("i4", "what"), ("i5", None))
        check(ask(client, user_id="u"), expected(oracle, [("i1", 1.6), ("i2", 0.4)], {"i1", "i2"}, 10))
        assert "vlm2rec_events_unknown_type_total 1.0" in client.get("/metrics").text


@pytest.mark.parametrize("kind", [None, "of nobody", "shown"])
def test_an_impression_without_a_type_is_excluded_as_one_of_the_default_type(
    open_client: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    file = tmp_path / "service.toml"
    file.write_text('[events]\ndefault_type = "shown"\n[events.types]\nshown = "impression"\n')
    monkeypatch.setenv("VLM2REC_CONFIG", str(file))
    with open_client() as client:
        send(client, "u", ("i1", "view"), ("i2", "view"))
        first, second, *_ = ids(ask(client, user_id="u"))
        send(client, "u", (first, kind), (second, "impression"))
        left = ids(ask(client, user_id="u", exclude_seen=["shown"], k=60))
        assert (first in left, second in left, "i1" in left) == (False, True, True)


def test_an_event_of_an_unknown_type_is_excluded_by_its_name_and_as_the_default_type(client: TestClient) -> None:
    send(client, "unknown", ("i1", "of nobody"), ("i2", "cart"))
    for excluded in ("of nobody", "view"):
        left = ids(ask(client, user_id="unknown", exclude_seen=[excluded], k=60))
        assert ("i1" in left, "i2" in left) == (False, True)


@pytest.mark.parametrize("ahead", [DAY + 60, 30 * DAY])
def test_an_event_more_than_a_day_ahead_is_refused_and_nothing_of_its_call_is_stored(
    client: TestClient, ahead: float
) -> None:
    good, bad = (
        {"user_id": f"ahead {ahead}", "item_id": "i1", "timestamp": time() + more} for more in (DAY - 60, ahead)
    )
    answer = client.post("/events", json={"events": [good, bad]})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "events[1].timestamp")
    assert "must be at most a day after the service's clock" in answer.json()["detail"]
    assert client.post("/events", json=bad).json()["errors"][0]["field"] == "timestamp"
    assert client.get(f"/users/ahead%20{ahead}/history").json()["items"] == []
    assert client.post("/events", json=good).json()["stored"] == 1


def test_a_late_event_gets_its_place_and_a_very_late_one_comes_last(open_client: Open) -> None:
    with open_client(late_s=600) as client:
        for item, ago in (("i1", 500), ("i2", 100), ("i4", 300), ("i5", 700)):
            client.post("/events", json={"user_id": "late", "item_id": item, "timestamp": time() - ago})
        steps = client.get("/users/late/history").json()["items"]
        assert [step["item_id"] for step in steps] == ["i1", "i4", "i2", "i5"]


def test_a_session_has_a_history_until_it_is_merged(client: TestClient) -> None:
    for item in ("i1", "i2"):
        event = {"session_id": "s1", "item_id": item}
        assert client.post("/events", json=event).json()["stored"] == 1
    plain = found(ask(client, items=["i1", "i2"]))
    assert found(ask(client, session_id="s1")) == plain
    batch = client.post("/recommend/batch", json={"requests": [{"session_id": "s1", "k": 10}]}).json()["answers"]
    assert found(batch[0]) == plain
    send(client, "anna", ("i5", "view"), session_id="s1")
    assert found(ask(client, user_id="anna", session_id="s1")) == found(ask(client, items=["i5", "i1", "i2"]))
    assert found(ask(client, user_id="anna", session_id="s1", history="ignore", items=["i9"])) == found(
        ask(client, items=["i9"])
    )
    merged = client.post("/users/anna/merge", json={"session_id": "s1"})
    assert (merged.status_code, merged.json()) == (200, {"user_id": "anna", "session_id": "s1", "moved": 2})
    assert client.post("/users/anna/merge", json={"session_id": "s1"}).json()["moved"] == 0
    assert sorted(step["item_id"] for step in client.get("/users/anna/history").json()["items"]) == ["i1", "i2", "i5"]
    assert client.post("/events", json={"session_id": "s1", "item_id": "i9"}).json()["stored"] == 1
    assert client.get("/users/anna/history").json()["items"][-1]["item_id"] == "i9"


def test_the_session_of_another_user_is_refused_and_stays_theirs(client: TestClient) -> None:
    client.post("/events", json={"session_id": "s2", "item_id": "i1"})
    client.post("/users/berta/merge", json={"session_id": "s2"})
    answer = client.post("/users/carl/merge", json={"session_id": "s2"})
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:vlm2rec:problem:session-merged")
    assert client.get("/users/carl/history").json()["items"] == []
    assert len(client.get("/users/berta/history").json()["items"]) == 1


def test_a_dislike_of_the_user_counts_after_a_click_of_the_session(client: TestClient) -> None:
    now = time()
    click = {"session_id": "s-dislike", "item_id": "i3", "type": "click", "timestamp": now - 60}
    dislike = {"user_id": "dora", "item_id": "i3", "type": "dislike", "timestamp": now - 5}
    assert client.post("/events", json={"events": [click, dislike]}).is_success
    both = {"user_id": "dora", "session_id": "s-dislike", "exclude_seen": False, "items": ["i3"], "k": 60}
    assert "i3" not in ids(ask(client, **both))
    again = click | {"timestamp": now}
    assert client.post("/events", json=again).is_success
    assert "i3" in ids(ask(client, **both))


@pytest.mark.parametrize("body", [{}, {"session_id": ""}, {"session_id": "a\nb"}, {"session_id": "s", "once": True}])
def test_a_bad_merge_is_refused(client: TestClient, body: Any) -> None:
    assert client.post("/users/anna/merge", json=body).status_code == 422


@pytest.fixture(scope="module")
def aged(client: TestClient) -> Iterator[TestClient]:
    """A user with two events of an hour ago and one of a minute ago."""
    events = [
        {"user_id": "aged", "item_id": item, "timestamp": time() - ago, "type": "purchase"}
        for item, ago in (("i1", 3600), ("i2", 3500), ("i5", 60))
    ]
    assert client.post("/events", json={"events": events}).status_code == 200
    return client


@pytest.mark.parametrize("long_term", [0.3, 1.0])
def test_a_window_weighs_what_is_recent(aged: TestClient, oracle: Oracle, long_term: float) -> None:
    answer = ask(aged, user_id="aged", history={"session_minutes": 30, "long_term": long_term})
    mean = (2 * long_term + 1) / 3
    weighted = [("i1", long_term / mean), ("i2", long_term / mean), ("i5", 1 / mean)]
    check(answer, expected(oracle, weighted, {"i1", "i2", "i5"}, 10))


def test_without_a_long_term_only_the_session_shapes_the_query(aged: TestClient, oracle: Oracle) -> None:
    answer = ask(aged, user_id="aged", history={"session_minutes": 30})
    check(answer, oracle.best(oracle.encoded(["i5"]), 10, {"i1", "i2", "i5"}))
    nothing = ask(aged, user_id="aged", history={"session_minutes": 0.5}, k=60)
    assert nothing["strategy"] == "popular"
    assert not {"i1", "i2", "i5"} & set(ids(nothing))


def test_a_session_in_which_nothing_is_recent_is_a_plain_history(aged: TestClient) -> None:
    window = {"session_minutes": 0.5, "long_term": 0.3}
    assert found(ask(aged, user_id="aged", history=window)) == found(ask(aged, user_id="aged"))


@pytest.mark.parametrize(
    ("window", "field"),
    [
        ({"session_minutes": 0}, "history.session_minutes"),
        ({"session_minutes": "30"}, "history.session_minutes"),
        ({"session_minutes": 30, "long_term": 1.5}, "history.long_term"),
        ({"long_term": 0.5}, "history.session_minutes"),
        ({"session_minutes": 30, "decay": 1}, "history.decay"),
        ([], "history"),
    ],
)
def test_a_bad_window_is_refused(client: TestClient, window: Any, field: str) -> None:
    answer = client.post("/recommend", json={"user_id": "u", "history": window})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
