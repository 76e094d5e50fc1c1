import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bench.load.open_loop import open_loop, summary

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"degraded":null}'
LESS = b'HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\n{"degraded":"overload"}'
REFUSED = b"HTTP/1.1 429 Too Many\r\nserver-timing: parse;dur=1.0, total;dur=2.500\r\ncontent-length: 2\r\n\r\n{}"
FAILED = b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"


@contextmanager
def serving(answer_to: Callable[[int], bytes], stall_s: float = 0.0) -> Iterator[tuple[int, Counter[bytes]]]:
    """A server that answers its n-th request with ``answer_to(n)``; the whole of it stalls once, at the tenth.

    After `LAST` it answers nothing on that connection (RFC 9112, 9.6).
    """
    sent: Counter[bytes] = Counter()
    turn = threading.Lock()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline():
                headers = dict(line.rstrip().split(b": ") for line in iter(self.rfile.readline, b"\r\n"))
                self.rfile.read(int(headers[b"Content-Length"]))
                with turn:
                    answer = answer_to(sent.total())
                    sent[answer] += 1
                    if sent.total() == 10:
                        time.sleep(stall_s)
                if not answer:
                    return
                self.wfile.write(answer)
                if answer == LAST:
                    self.rfile.readline()
                    return

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 1000

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server.server_address[1], sent
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gives up, on a busy machine either."""
    monkeypatch.setattr("bench.load.open_loop._PATIENCE_S", 120.0)


def test_every_request_is_sent_and_counted_by_what_became_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.load.open_loop._LATE_S", 120.0)
    answers = [OK, LESS, REFUSED, FAILED, CHUNKED, b""]
    with serving(lambda number: answers[number % len(answers)]) as (port, sent):
        found = open_loop(port, "/recommend", [b'{"k":1}', b'{"k":20}'], rate=600, seconds=0.5, seed=1)
    assert sent.total() > 200
    assert found["offered"] * 0.5 == sent.total()
    assert found["good"] * 0.5 == sent[OK] + sent[CHUNKED]
    assert found["degraded"] * 0.5 == sent[LESS]
    assert found["refused"] * 0.5 == sent[REFUSED]
    assert found["errors"] == sent[FAILED] + sent[b""]
    assert found["refusal_server_p50_ms"] == 2.5
    assert found["refusal_client_p50_ms"] > 0.0


def test_nothing_is_sent_on_a_connection_after_its_last_answer() -> None:
    with serving(lambda number: LAST if number % 3 == 2 else OK) as (port, sent):
        found = open_loop(port, "/recommend", [b"{}"], rate=600, seconds=0.5, seed=1)
    assert sent[LAST] > 60
    assert found["errors"] == 0
    assert found["offered"] * 0.5 == sent.total()


def test_arrivals_are_poisson_and_the_same_for_a_seed() -> None:
    with serving(lambda _: OK) as (port, sent):
        first = open_loop(port, "/", [b"{}"], rate=1000, seconds=0.4, seed=3)
        again = open_loop(port, "/", [b"{}"], rate=1000, seconds=0.4, seed=3)
    assert first["offered"] == again["offered"]
    assert sent.total() == 0.4 * 2 * first["offered"]
    assert abs(0.4 * first["offered"] - 400) < 5 * 400**0.5


def test_a_stall_is_charged_to_all_that_was_due_meanwhile() -> None:
    with serving(lambda _: OK, stall_s=0.3) as (port, _):
        found = open_loop(port, "/", [b"{}"], rate=200, seconds=0.5, seed=0)
    # About 60 of 100 requests fall due during the stall and wait 150 ms on average, whatever the machine does.
    assert found["p90_ms"] > 100
    assert found["errors"] == 0


def test_a_server_that_is_gone_costs_errors_not_an_exception() -> None:
    with serving(lambda _: b"") as (port, sent):
        found = open_loop(port, "/", [b"{}"], rate=100, seconds=0.2, seed=0)
    assert found["errors"] == sent.total() == round(0.2 * found["offered"])
    assert "p50_ms" not in found


def test_figures_by_hand() -> None:
    nan = float("nan")
    records = [
        (10.0, 10.002, 200, 0, 0.0),
        (10.5, 10.504, 200, 1, 0.0),
        (11.0, 12.5, 200, 0, 0.0),  # a second and a half: late
        (11.1, 11.2, 429, 0, 3.0),
        (11.2, 11.3, 503, 0, 5.0),
        (11.3, 0.0, 0, 0, 0.0),
        (11.4, 11.5, 500, 0, nan),
    ]
    found = summary(records, started=10.0, seconds=2.0)
    assert {name: found[name] for name in ("offered", "good", "degraded", "late", "refused", "errors")} == {
        "offered": 3.5,
        "good": 0.5,
        "degraded": 0.5,
        "late": 0.5,
        "refused": 1.0,
        "errors": 2,
    }
    assert found["good_by_second"] == [0.5, 0.0]
    assert found["p50_ms"] == pytest.approx(4.0)
    assert found["refusal_server_p50_ms"] == pytest.approx(4.0)
    assert found["refusal_client_p50_ms"] == pytest.approx(100.0)  # from when they were due, both after a tenth of one
    assert "refusal_p99_ms" not in found  # in files of earlier runs, where it was something else
