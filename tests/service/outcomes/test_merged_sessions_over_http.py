"""Recommendations for a session that was merged into a user: by history, arm and outcomes they are that user's."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.errors import HistoriesUnavailable
from service.stores.redis_connection import RedisConnection
from tests.support.shops import AS_ADMIN, OpenClient, Shop, eventually, metric

TWO = {"arms": [{"name": "control", "share": 0.5}, {"name": "more", "share": 0.5, "defaults": {"diversity": 0.9}}]}
SESSIONS = [f"session-{number}" for number in range(16)]


@pytest.fixture
def client(open_client: OpenClient) -> Iterator[TestClient]:
    with open_client() as opened:
        yield opened


@pytest.fixture
def opened(open_shop: OpenClient) -> Iterator[TestClient]:
    with open_shop(outcomes=True) as client:
        yield client


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/recommend", json={"k": 10, **body})
    assert answer.status_code == 200, answer.text
    return {**answer.json(), "request_id": ""}


def send(client: TestClient, *items: str, **owner: str) -> None:
    answer = client.post("/events", json={"events": [{**owner, "item_id": item} for item in items]})
    assert answer.status_code == 200, answer.text


def merge(client: TestClient, session: str, user: str) -> None:
    assert client.post(f"/users/{user}/merge", json={"session_id": session}).status_code == 200


def put(client: TestClient, definition: Any) -> None:
    answer = client.put("/experiments/pictures", json=definition, headers=AS_ADMIN)
    assert answer.status_code == 200, answer.text


def test_a_merged_session_gets_the_answers_of_its_user(client: TestClient) -> None:
    send(client, "i5", user_id="anna")
    send(client, "i1", "i2", session_id="s1")
    own = ask(client, session_id="s1")
    assert own["history_used"] == 2
    merge(client, "s1", "anna")
    of_anna = ask(client, user_id="anna")
    assert of_anna["history_used"] == 3
    assert ask(client, session_id="s1") == of_anna
    assert ask(client, user_id="anna", session_id="s1") == of_anna
    send(client, "i9", session_id="s1")
    assert ask(client, session_id="s1", items=["i4"]) == ask(client, user_id="anna", items=["i4"])
    assert client.delete("/users/anna").status_code == 204
    assert ask(client, session_id="s1")["strategy"] == "popular"


def test_members_of_a_batch_get_them_too(client: TestClient) -> None:
    send(client, "i5", user_id="berta")
    send(client, "i1", session_id="s2")
    send(client, "i7", session_id="apart")
    merge(client, "s2", "berta")
    members = [{"session_id": "s2"}, {"user_id": "berta"}, {"session_id": "apart"}, {"session_id": "s2", "k": 3}]
    answers = client.post("/recommend/batch", json={"requests": members}).json()["answers"]
    assert answers[0]["items"] == answers[1]["items"]
    assert answers[3]["items"] == answers[0]["items"][:3]
    assert [answer["history_used"] for answer in answers] == [2, 2, 1, 2]


def test_what_the_session_was_shown_is_excluded_as_the_users(client: TestClient) -> None:
    shown = [item["item_id"] for item in ask(client, items=["i1"])["items"][:3]]
    answer = client.post(
        "/events", json={"events": [{"session_id": "s3", "item_id": item, "type": "impression"} for item in shown]}
    )
    assert answer.json()["stored"] == 3
    merge(client, "s3", "clara")
    found = ask(client, session_id="s3", items=["i1"], exclude_seen=["impression"])["items"]
    assert found
    assert not {item["item_id"] for item in found} & {*shown}


def test_a_session_of_another_user_is_not_read_beside_a_user(client: TestClient) -> None:
    send(client, "i1", session_id="s4")
    merge(client, "s4", "dora")
    assert ask(client, user_id="emil", session_id="s4")["history_used"] == 0
    assert ask(client, session_id="s4", history="ignore")["history_used"] == 0


def test_whose_a_session_is_and_its_history_are_read_in_one_round_trip(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, record, of_user = b"history:\x1fs5", b"merges:\x1fs5", b"history:fred"
    exchange, exchanges = RedisConnection.exchange, list[set[bytes]]()

    async def noted(wire: RedisConnection, commands: Any) -> Any:
        named = {key for key in (history, record, of_user) if any(key in command for command in commands)}
        if named:
            exchanges.append(named)
        return await exchange(wire, commands)

    def read(**body: str) -> list[set[bytes]]:
        exchanges.clear()
        assert ask(client, **body)["history_used"] == 1
        return exchanges.copy()

    send(client, "i1", session_id="s5")
    monkeypatch.setattr(RedisConnection, "exchange", noted)
    assert read(session_id="s5") == [{history, record}]
    merge(client, "s5", "fred")
    assert read(session_id="s5") == [{history, record}, {of_user}]
    assert read(user_id="fred") == [{of_user}]
    assert read(user_id="fred", session_id="s5") == [{of_user, history}]


@pytest.mark.parametrize("path", ["single", "batch"])
def test_where_it_is_not_known_whose_a_session_is_the_answer_is_degraded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Its history may be empty as it was merged, and the answer must not look complete."""

    async def refused(session_id: str) -> str | None:
        raise HistoriesUnavailable(f"whose {session_id} is")

    send(client, "i1", session_id="s6")
    monkeypatch.setattr(client.app.state.histories, "merged_into", refused)  # type: ignore[attr-defined]
    if path == "single":
        answer = ask(client, session_id="s6")
    else:
        (answer,) = client.post("/recommend/batch", json={"requests": [{"session_id": "s6"}]}).json()["answers"]
    assert (answer["strategy"], answer["degraded"]) == ("popular", "history_unavailable")


def test_a_deadline_ends_the_wait_for_the_user_of_a_session(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(session_id: str) -> str | None:
        await asyncio.sleep(30)
        return session_id

    monkeypatch.setattr(client.app.state.histories, "merged_into", slow)  # type: ignore[attr-defined]
    began = time.monotonic()
    answer = ask(client, session_id="s7", deadline_ms=50)
    assert (answer["strategy"], answer["degraded"]) == ("popular", "deadline")
    assert time.monotonic() - began < 10


def test_a_merged_session_has_the_arm_and_the_outcomes_of_its_user(opened: TestClient) -> None:
    put(opened, TWO)
    of_anna = ask(opened, user_id="anna", items=["i1"])["arm"]
    arms = {session: ask(opened, session_id=session, items=["i1"])["arm"] for session in SESSIONS}
    session = next(session for session, arm in arms.items() if arm != of_anna)
    merge(opened, session, "anna")
    answer = opened.post("/recommend", json={"session_id": session, "items": ["i1"], "k": 5}).json()
    assert answer["arm"] == of_anna
    assert ask(opened, session_id=session, items=["i1"], history="ignore")["arm"] == arms[session]  # nothing is read
    # The answer was to the user: a click that names the user alone counts for it.
    click = {"user_id": "anna", "item_id": answer["items"][0]["item_id"], "type": "click"}
    assert opened.post("/events", json={**click, "request_id": answer["request_id"]}).json()["stored"] == 1
    assert eventually(lambda: metric(opened, "vlm2rec_outcome_events_total", result="attributed")) == 1


def test_an_interleaved_answer_to_a_merged_session_is_that_to_its_user(opened: TestClient, shop: Shop) -> None:
    bundles = [("old", None), ("new", shop.ids[1])]
    arms = [{"name": name, "share": 0.5, "bundle": bundle} for name, bundle in bundles]
    put(opened, {"interleave": True, "salt": "salt", "arms": arms})
    send(opened, "i1", "i2", session_id="s8")
    assert ask(opened, session_id="s8")["history_used"] == 2
    merge(opened, "s8", "gustav")
    answer = ask(opened, session_id="s8")
    assert answer["history_used"] == 2
    assert answer == ask(opened, user_id="gustav")
