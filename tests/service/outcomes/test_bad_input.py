"""Bad events and experiments, and a Redis that is gone in the middle: a clear answer, and nothing is lost."""

import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from starlette.testclient import TestClient

from demo.embedded_redis import EmbeddedRedis
from tests.support.shops import ADMIN, AS_ADMIN, OpenClient, eventually, metric

ASKED = {"items": ["i1", "i2"], "k": 5}
INTERLEAVED = {
    "interleave": True,
    "arms": [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5, "defaults": {"diversity": 0.5}}],
}
AS_JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def client(open_client: OpenClient) -> Iterator[TestClient]:
    with open_client(outcomes=True, admin_keys=[ADMIN]) as opened:
        yield opened


def shown(client: TestClient, **who: str) -> dict[str, Any]:
    """The second item of an answer and its request, as an event names them."""
    answer = client.post("/recommend", json={**who, **ASKED})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    return {"item_id": found["items"][1]["item_id"], "request_id": found["request_id"]}


def events(client: TestClient, result: str) -> float:
    return metric(client, "vlm2rec_outcome_events_total", result=result)


def test_an_event_from_the_future_is_refused_and_the_right_one_still_counts(client: TestClient) -> None:
    click = {"user_id": "anna", "type": "click", **shown(client, user_id="anna")}
    before = events(client, "attributed")
    ahead = client.post("/events", json={**click, "timestamp": time.time() + 2 * 86_400})
    assert (ahead.status_code, ahead.json()["errors"][0]["field"]) == (422, "timestamp")
    assert client.post("/events", json={**click, "timestamp": time.time() + 60}).is_success
    eventually(lambda: events(client, "attributed") == before + 1)


def test_an_unknown_type_is_stored_counted_and_no_outcome(client: TestClient) -> None:
    answer = shown(client, user_id="bob")
    before = {result: events(client, result) for result in ("attributed", "unattributed")}
    unknown = metric(client, "vlm2rec_events_unknown_type_total")
    assert client.post("/events", json={"user_id": "bob", "type": "teleport", **answer}).json()["stored"] == 1
    client.post("/events", json={"user_id": "bob", "type": "view", **answer})
    eventually(lambda: events(client, "attributed") == before["attributed"] + 1)
    assert events(client, "unattributed") == before["unattributed"]
    assert metric(client, "vlm2rec_events_unknown_type_total") == unknown + 1
    assert [step["type"] for step in client.get("/users/bob/history").json()["items"]] == ["teleport", "view"]


def test_what_a_session_was_shown_counts_after_it_was_merged(client: TestClient) -> None:
    before = events(client, "attributed")
    first, second = (shown(client, session_id="s1") for _ in range(2))
    assert client.post("/users/carla/merge", json={"session_id": "s1"}).status_code == 200
    assert client.post("/users/dora/merge", json={"session_id": "s1"}).status_code == 409
    late = {"session_id": "s1", "type": "click", **first}
    bought = {"user_id": "carla", "session_id": "s1", "type": "purchase", "value": 5.0, **second}
    for event in (late, bought, {**bought, "user_id": "dora", "session_id": "s2"}):
        assert client.post("/events", json=event).json()["stored"] == 1
    eventually(lambda: events(client, "attributed") == before + 2)
    assert [step["type"] for step in client.get("/users/carla/history").json()["items"]] == ["click", "purchase"]


@pytest.mark.parametrize("names_request", [True, False])
def test_an_event_of_a_merged_session_counts_for_the_answers_to_its_user(
    client: TestClient, names_request: bool
) -> None:
    """The visitor has logged in, and the page goes on sending the session alone."""
    before, user, session = events(client, "attributed"), f"flora-{names_request}", f"s3-{names_request}"
    assert client.post(f"/users/{user}/merge", json={"session_id": session}).status_code == 200
    answer = shown(client, user_id=user)
    if not names_request:
        del answer["request_id"]
    assert client.post("/events", json={"session_id": session, "type": "click", **answer}).json()["stored"] == 1
    eventually(lambda: events(client, "attributed") == before + 1)
    bulk = [{"session_id": session, "type": "purchase", **answer}, {"user_id": "gina", "item_id": "i1"}]
    assert client.post("/events", json={"events": bulk}).json()["stored"] == 2
    eventually(lambda: events(client, "attributed") == before + 2)


@pytest.mark.parametrize(
    "arm",
    [
        '{"name": "a", "share": NaN}',
        '{"name": "a", "share": 1e400}',
        '{"name": "a", "share": 0.5, "defaults": {"slot_weights": {"text": 1e400}}}',
        '{"name": "a", "share": 0.5, "defaults": {"slot_weights": {"text": -Infinity}}}',
        '{"name": "a", "share": 0.5, "defaults": {"slot_weights": {"text": 11}}}',
        '{"name": "a", "share": 0.5, "defaults": {"diversity": NaN}}',
    ],
)
def test_a_weight_or_share_that_is_not_finite_runs_no_experiment(client: TestClient, arm: str) -> None:
    body = f'{{"arms": [{arm}, {{"name": "b", "share": 0.5}}]}}'
    answer = client.put("/experiments/bad", content=body, headers={**AS_ADMIN, **AS_JSON})
    assert answer.status_code in {400, 422}
    assert answer.status_code == 400 or answer.json()["errors"][0]["field"].startswith("arms[0].")
    assert client.get("/experiments/bad", headers=AS_ADMIN).status_code == 404
    assert "arm" not in client.post("/recommend", json={"user_id": "anna", **ASKED}).json()


def test_redis_gone_in_the_middle_of_an_experiment_loses_no_definition_and_says_what_is_missing(
    open_client: OpenClient,
) -> None:
    with (
        EmbeddedRedis() as redis,
        open_client(outcomes=True, admin_keys=[ADMIN], redis_url=redis.url, redis_timeout_ms=200) as client,
    ):
        assert client.put("/experiments/e", json=INTERLEAVED, headers=AS_ADMIN).status_code == 200
        click = {"user_id": "anna", "type": "click", **shown(client, user_id="anna")}
        eventually(lambda: metric(client, "vlm2rec_outcome_answers_total", result="kept") == 1)
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            answer = client.post("/recommend", json={"user_id": "anna", **ASKED}).json()
            assert (answer["degraded"], len(answer["items"])) == ("history_unavailable", 5)
            assert client.post("/events", json=click).status_code == 503
            eventually(lambda: metric(client, "vlm2rec_outcome_answers_total", result="failed") == 1)
            for path in ("/experiments/e/groups", "/outcomes"):
                refused = client.get(path, headers=AS_ADMIN)
                assert (refused.status_code, refused.json()["type"]) == (
                    503,
                    "urn:vlm2rec:problem:outcomes-unavailable",
                )
            assert client.delete("/experiments/e", headers=AS_ADMIN).status_code == 503
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        eventually(lambda: client.post("/events", json=click).status_code == 200)
        eventually(lambda: client.post("/recommend", json={"user_id": "bob", **ASKED}).json().get("arm") == "e/a+b")
        found = eventually(
            lambda: (
                (read := client.get("/outcomes").json()).get("left_out", {}).get("answers", {}).get("failed") and read
            )
        )
        assert found["left_out"]["answers"]["failed"] >= 1
        counted = eventually(
            lambda: (
                (groups := client.get("/experiments/e/groups", headers=AS_ADMIN).json()["groups"])
                and sum(entry.get("clicks", 0) for entry in groups)
            )
        )
        assert counted == 1


@pytest.mark.parametrize("stored", ["1" + 30 * "0", "-1" + 30 * "0", "--5", "9223372036854775808", "1" * 5000])
def test_counts_that_another_program_wrote_are_passed_over(
    open_client: OpenClient, redis_url: str, stored: str
) -> None:
    hour, prefix = int(time.time()) // 3600, f"test-{uuid.uuid4().hex}"
    with (
        open_client(outcomes=True, admin_keys=[ADMIN], redis_prefix=prefix) as client,
        redis.Redis.from_url(redis_url) as server,
    ):
        server.hset(f"{prefix}:{{outcomes}}:{hour}:position", mapping={"1|clicks": stored, "2|clicks": 7})
        answer = client.get("/outcomes", params={"from": 3600 * hour, "to": 3600 * hour + 1})
        assert [(found["value"], found["clicks"]) for found in answer.json()["outcomes"]] == [("2", 7)]
        assert client.put("/experiments/two", json=INTERLEAVED, headers=AS_ADMIN).status_code == 200
        written = {"a|1|clicks": stored, "a|\u00b2|clicks": 1, f"a|{stored}|clicks": 1, "a|2|clicks": 7}
        server.hset(f"{prefix}:{{outcomes}}:experiment:two", mapping=written)
        groups = client.get("/experiments/two/groups", headers=AS_ADMIN).json()["groups"]
        assert groups == [{"arm": "a", "group": 2, "clicks": 7}]
