"""Under overload requests get popular items or are refused at once, and health is always answered."""

import json
import time
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.errors import QueueFull
from service.http.admission import Admission
from service.http.connections import ConnectionLimits
from service.http.refusals import PreparedRefusal
from service.http.request_context import CONTEXT, RequestContext
from tests.support.shops import OpenClient, eventually
from tests.support.sockets import GET, Client, Running, post, running

ASK = {"items": ["i1", "i2"], "k": 3}
SLOW = GET.replace(b"GET /", b"GET /slow")
READY = GET.replace(b"GET /", b"GET /readyz")
LIMITS = ConnectionLimits(connections=64, request_s=10.0)


def test_above_half_of_the_bound_one_request_in_ten_responses_is_admitted() -> None:
    admission = Admission(200)
    assert all(admission.enter(request) for request in range(100))
    assert not admission.is_high
    entered = [admission.enter(request) for request in range(100, 170)]
    assert entered == [True] * 64 + [False] * 6  # by the credit of quiet times
    assert admission.is_high
    for request in (*range(10), *range(10)):  # once is enough
        admission.leave(request)
    assert (admission.in_progress, [admission.enter(request) for request in range(3)]) == (154, [True, False, False])
    for request in range(10, 66):
        admission.leave(request)
    assert (admission.in_progress, admission.is_high) == (99, False)
    assert admission.enter(300)  # below half of the bound every request is admitted


def test_at_the_bound_no_request_is_admitted() -> None:
    admission = Admission(4)
    assert [admission.enter(request) for request in range(5)] == [True] * 4 + [False]


def test_the_limit_shrinks_while_the_loop_is_late_and_grows_when_it_is_prompt() -> None:
    def turned_away_and(late_s: float) -> int:
        """How many were in progress when the first was refused; then adapts."""
        inside = []
        while admission.enter(request := object()):
            inside.append(request)
        for request in inside:
            admission.leave(request)
        admission.adapt(late_s)
        return len(inside)

    admission = Admission(400)
    counts = [turned_away_and(0.05) for _ in range(30)]
    popular = 64  # admitted for popular items, by the credit of quiet times
    assert counts[0] == 200 + popular
    assert counts[:6] == sorted(counts[:6], reverse=True)
    assert all(16 <= count <= 20 for count in counts[10:])  # few, but never none
    prompt = [turned_away_and(0.001) for _ in range(30)]
    assert prompt[:6] == sorted(prompt[:6])
    assert 200 <= prompt[-1] <= 200 + popular

    admission = Admission(400)
    admission.adapt(5.0)  # late, as in a swap of bundles, but no request was refused
    assert turned_away_and(0.0) == 200 + popular


def held(admission: Admission, stack: ExitStack, members: int, *, overloaded: bool = False) -> bool:
    """Whether a batch of so many members is let in; it ends with the stack."""
    if not admission.enter(request := object()):
        return False
    try:
        stack.enter_context(admission.batch(members, "a batch", overloaded=overloaded))
    except QueueFull:
        admission.leave(request)
        return False
    stack.callback(admission.leave, request)
    return True


def test_a_batch_counts_as_its_members_up_to_a_bound() -> None:
    admission = Admission(400)
    for members, counted in ((1, 1), (2, 2), (16, 16), (17, 16), (256, 16)):
        with ExitStack() as stack:
            assert held(admission, stack, members)
            assert admission.in_progress == counted
        assert admission.in_progress == 0


def test_batches_leave_half_of_the_places_to_single_requests() -> None:
    admission = Admission(400)  # 200 are answered in full
    with ExitStack() as stack:
        assert [held(admission, stack, 256) for _ in range(8)] == [True] * 6 + [False] * 2  # 16 each, of 100
        assert [held(admission, stack, 2) for _ in range(3)] == [True] * 2 + [False]
        assert held(admission, stack, 1)  # as a single request
        assert admission.in_progress == 101
        high = [admission.enter(request) and admission.is_high for request in range(100)]
        assert high == [False] * 99 + [True]
    for request in range(100):
        admission.leave(request)
    assert admission.in_progress == 0
    with ExitStack() as stack:
        assert [held(admission, stack, 256) for _ in range(7)] == [True] * 6 + [False]


def filled_and_late(admission: Admission, times: int) -> None:
    """Let requests in until one is refused, while the event loop is late; so often."""
    for _ in range(times):
        inside = []
        while admission.enter(request := object()):
            inside.append(request)
        for request in inside:
            admission.leave(request)
        admission.adapt(0.05)


def test_a_late_event_loop_admits_one_batch_and_single_requests_beside_it() -> None:
    admission = Admission(400)
    with ExitStack() as stack:
        assert [held(admission, stack, 256) for _ in range(3)] == [True] * 3
        filled_and_late(admission, 30)  # 16 are let in
        assert [admission.enter(request) for request in range(8)] == [True] * 8
        assert not admission.is_high
    for request in range(8):
        admission.leave(request)
    with ExitStack() as stack:
        assert [held(admission, stack, 256) for _ in range(2)] == [True, False]
        assert [admission.enter(request) for request in range(8)] == [True] * 8


def test_an_overloaded_batch_costs_the_credit_of_its_members() -> None:
    admission = Admission(400)
    assert all(admission.enter(request) for request in range(200))
    with ExitStack() as stack:
        entered = [held(admission, stack, 256, overloaded=True) for _ in range(6)]
        assert entered == [True] * 4 + [False] * 2
        assert admission.in_progress == 264  # 64 popular answers by the credit of quiet times, 16 each


def filled(server: Running, admission: Admission) -> list[Client]:
    """As many clients as may be in progress; all wait until the test releases the server."""
    clients = [server.open(SLOW) for _ in range(admission.bound)]
    eventually(lambda: admission.in_progress == admission.bound)
    return clients


def test_at_the_bound_requests_are_refused_at_once_until_one_ends() -> None:
    admission = Admission(3)
    with running(LIMITS, admission=admission) as server:
        busy = filled(server, admission)
        client = server.open(GET.replace(b"host: x", b"host: x\r\nx-request-id: mine"))
        status, headers, body = client.answer()
        assert (status, headers["retry-after"], headers["content-type"]) == (429, "7", "application/problem+json")
        assert headers["x-request-id"] == json.loads(body)["request_id"] == "mine"
        assert float(headers["server-timing"].removeprefix("total;dur=")) < 1000.0
        assert headers["x-content-type-options"] == "nosniff"
        assert json.loads(body)["type"] == "urn:vlm2rec:problem:queue-full"
        assert client.send(READY).answer()[0] == 200  # the connection stays open, and health is answered
        assert client.send(post(b"[1]")).answer()[0] == 429
        eventually(lambda: server.drops == {"turned away: GET": 1, "turned away: POST": 1})
        server.released.set()
        assert [one.answer()[0] for one in busy] == [200] * 3
        eventually(lambda: admission.in_progress == 0)
        assert client.send(post(b"[1]")).answer()[2] == b"[1]"


def test_a_connection_in_use_is_refused_by_the_head_and_its_body_is_no_request() -> None:
    admission = Admission(3)
    with running(LIMITS, admission=admission) as server:
        client = server.open(GET)
        assert client.answer()[0] == 200
        filled(server, admission)
        identified = post(b"[1]").replace(b"\r\n\r\n", b"\r\nx-request-id: mine\r\n\r\n")
        head, _, body = identified.partition(b"\r\n\r\n")
        status, headers, _ = client.send(head + b"\r\n\r\n").answer()  # its body is not there yet
        assert (status, headers["x-request-id"], headers["retry-after"]) == (429, "mine", "7")
        client.send(body)
        chunks = (
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\n[1]\r\n0\r\nx-request-id: t\r\n\r\n"
        )
        status, headers, _ = client.send(chunks).answer()
        assert (status, headers["x-request-id"] == "t") == (429, False)  # a trailer is no header
        assert [client.send(GET.replace(b"/", path, 1)).answer()[0] for path in (b"/readyz", b"/livez?a", b"/")] == [
            200,
            200,
            429,
        ]
        head, _, rest = received(client.send(GET.replace(b"GET", b"HEAD") + GET), 2).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 ")
        assert rest.startswith(b"HTTP/1.1 429 ")
        closing = GET.replace(b"host: x", b"host: x\r\nconnection: close")
        assert client.send(closing).answer()[1]["connection"] == "close"
        assert client.is_closed()
        eventually(lambda: server.drops == {"turned away: POST": 2, "turned away: GET": 3, "turned away: HEAD": 1})
        server.released.set()
        eventually(lambda: admission.in_progress == 0)


def test_a_request_behind_a_running_one_is_not_refused_before_its_turn() -> None:
    admission = Admission(2)
    with running(LIMITS, admission=admission) as server:
        client, _ = filled(server, admission)
        client.send(GET)
        server.released.set()
        status, _, body = client.answer()
        assert (status, body) == (200, server.open(SLOW).answer()[2])  # that of the running one comes first
        assert client.answer()[0] in {200, 429}


def total_ms(headers: dict[str, str]) -> float:
    return float(headers["server-timing"].rpartition("total;dur=")[2])


def sent_slowly(server: Running, request: bytes) -> dict[str, str]:
    """The headers of the answer to a request whose last byte is sent a tenth of a second after the others were read.

    The server's clock starts when its event loop reads them, which on a busy machine is some time after they are sent.
    """
    client = server.open(request[:-1])
    eventually(lambda: server.received(client) == len(request) - 1)
    time.sleep(0.1)
    return client.send(request[-1:]).answer()[1]


def test_the_time_of_a_refusal_counts_from_the_first_bytes_of_its_request() -> None:
    admission = Admission(2)
    with running(LIMITS, admission=admission) as server:
        busy = filled(server, admission)
        assert total_ms(sent_slowly(server, GET)) >= 100.0  # 429, written without the application
        server.released.set()
        assert [one.answer()[0] for one in busy] == [200, 200]
        eventually(lambda: admission.in_progress == 0)
        assert total_ms(sent_slowly(server, GET.replace(b"host: x\r\n", b""))) >= 100.0  # 400, by way of it
        assert total_ms(sent_slowly(server, b"GET / HTTP/1.1\r\nhost\n")) >= 100.0  # 400, written without it
        assert total_ms(sent_slowly(server, GET)) >= 100.0  # 200
        client = server.open(GET)
        client.answer()
        time.sleep(0.3)
        begun = time.monotonic()
        headers = client.send(b"HELLO\r\n\r\n").answer()[1]
        assert total_ms(headers) <= 1000.0 * (time.monotonic() - begun)  # the time between requests is nobody's


def test_a_refused_head_request_gets_no_body() -> None:
    admission = Admission(2)
    with running(LIMITS, admission=admission) as server:
        filled(server, admission)
        client = server.open(GET.replace(b"GET", b"HEAD") + READY)
        head, _, rest = received(client, 2).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 ")
        assert b"content-length: " in head
        assert rest.startswith(b"HTTP/1.1 200 ")


def received(client: Client, answers: int) -> bytes:
    """All bytes until so many answers have begun."""
    data = b""
    while data.count(b"HTTP/1.1 ") < answers:
        data += client.socket.recv(65_536)
    return data


def test_a_refused_client_may_send_the_rest_of_its_body_and_retry() -> None:
    admission = Admission(2)
    with running(LIMITS, admission=admission) as server:
        busy = filled(server, admission)
        client = server.open(post(b"[", length=5))
        assert client.answer()[0] == 429
        server.released.set()
        assert [one.answer()[0] for one in busy] == [200, 200]
        eventually(lambda: admission.in_progress == 0)
        client.send(b"1,2]")  # still of the body that nobody wanted
        assert client.send(post(b"[3]")).answer()[2] == b"[3]"


def test_pipelined_requests_are_refused_in_their_order() -> None:
    admission = Admission(2)
    with running(LIMITS, admission=admission) as server:
        busy = filled(server, admission)
        client = server.open(GET + READY + GET)
        assert [client.answer()[0] for _ in range(3)] == [429, 200, 429]
        server.released.set()
        assert [one.answer()[0] for one in busy] == [200, 200]


def test_a_connection_that_is_to_close_is_closed_after_the_refusal() -> None:
    admission = Admission(2)
    with running(LIMITS, admission=admission) as server:
        filled(server, admission)
        client = server.open(GET.replace(b"host: x", b"host: x\r\nconnection: close"))
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (429, "close")
        assert client.is_closed()


def test_a_client_that_leaves_frees_its_slot() -> None:
    admission = Admission(2)
    with running(LIMITS, admission=admission) as server:
        for client in filled(server, admission):
            client.close()
        server.released.set()
        eventually(lambda: admission.in_progress == 0)


def answered_under_overload(client: TestClient, ask: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """An answer to a request that came when more than half of what may be was in progress."""
    app: Any = client.app

    async def marked(scope: Any, receive: Any, send: Any) -> None:
        context = {CONTEXT: RequestContext(time.perf_counter(), overloaded=True)}
        await app(scope if scope["type"] != "http" else scope | context, receive, send)

    answer = TestClient(marked).post(ask[0], json=ask[1])
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_above_half_of_the_bound_every_response_is_popular_items(open_client: OpenClient, oracle: Any) -> None:
    with open_client() as client:
        asks: tuple[tuple[str, dict[str, Any]], ...] = (
            ("/recommend", ASK),
            ("/similar", ASK),
            ("/recommend", {"user_id": "u", "k": 3}),
        )
        for ask in asks:
            answer = answered_under_overload(client, ask)
            assert (answer["strategy"], answer["degraded"]) == ("popular", "overload")
            wanted = [item for item, _ in oracle.popular(3, set(ask[1].get("items", ())))]
            assert [item["item_id"] for item in answer["items"]] == wanted
        assert client.post("/recommend", json=ASK).json()["degraded"] is None
        assert 'vlm2rec_degraded_total{reason="overload"} 3.0' in client.get("/metrics").text


@pytest.mark.parametrize("who", [{"session_id": "s"}, {"user_id": "u"}, {"user_id": "u", "session_id": "s"}])
def test_above_half_of_the_bound_redis_is_not_asked_for_histories_and_users(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, who: dict[str, str]
) -> None:
    """Nobody would use what it says, and it has enough to do."""
    asked = []
    with open_client() as client:
        histories: Any = client.app.state.histories  # type: ignore[attr-defined]
        for name in ("entries", "impressions", "merged_into"):

            async def counted(owner: str, name: str = name, ask: Any = getattr(histories, name)) -> Any:  # noqa: B008 - the bound one
                asked.append(name)
                return await ask(owner)

            monkeypatch.setattr(histories, name, counted)
        for ask in (("/recommend", who), ("/recommend/batch", {"requests": [who, who]})):
            answer = answered_under_overload(client, ask)
            for one in answer.get("answers", [answer]):
                assert (one["strategy"], one["degraded"]) == ("popular", "overload")
        assert not asked
        client.post("/recommend/batch", json={"requests": [who]})
        assert "entries" in asked


def test_the_time_to_refuse_is_counted_until_the_refusal_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = PreparedRefusal.to

    def late(self: PreparedRefusal, *given: Any, **named: Any) -> bytes:
        refusal = computed(self, *given, **named)
        time.sleep(0.05)  # after Server-Timing was computed, before the write
        return refusal

    monkeypatch.setattr(PreparedRefusal, "to", late)
    admission = Admission(2)
    with running(LIMITS, admission=admission) as server:
        filled(server, admission)
        answer = server.open(GET).answer()
        eventually(lambda: server.refused_s)
        assert 1000.0 * server.refused_s[0] >= total_ms(answer[1]) + 50.0
        server.released.set()
