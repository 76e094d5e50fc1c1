"""Garbage below HTTP: the service survives it, and what judges the answers sees what a server may not do."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.faults.raw_http import Damaged, DamagedRequests
from bench.load.shop import Service

HEAD = b"HTTP/1.1 %s\r\nX-Request-ID: %s\r\nContent-Length: 2\r\n\r\n{}"


def test_the_service_survives_it(small_registry: Path, redis_url: str, tmp_path: Path) -> None:
    with Service(small_registry, redis_url, tmp_path / "log", redis_prefix="raw") as service:
        found = DamagedRequests(service.port, seed=7).run(250)
        assert service.alive
    assert found["wrong"] == []
    assert found["cases"] == 250
    assert len(found["kinds"]) == 8
    assert found["outcomes"]["400"] > 50  # most of it is no HTTP
    assert [line for line in service.errors() if '"failed"' in line] == []


def test_the_same_seed_gives_the_same_cases() -> None:
    one, other = DamagedRequests(1, seed=3), DamagedRequests(1, seed=3)
    assert [one.case() for _ in range(50)] == [other.case() for _ in range(50)]
    assert DamagedRequests(1, seed=4).case() != DamagedRequests(1, seed=3).case()


@contextmanager
def answering(answer: Callable[[bytes], bytes]) -> Iterator[DamagedRequests]:
    """A server that reads once, answers and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(answer(connection.recv(1 << 16)))

        thread = threading.Thread(target=serve)
        thread.start()
        yield DamagedRequests(listener.getsockname()[1], seed=0)
        thread.join(10)


def outcome(case: Damaged, answer: bytes) -> str:
    with answering(lambda _: answer) as damaged:
        return damaged._outcome(case)


def test_the_answers_of_a_server_are_distinguished() -> None:
    case = Damaged("one", (b"GET / HTTP/1.1\r\n\r\n",))
    assert outcome(case, HEAD % (b"500 Oh", b"a")) == "500"
    assert outcome(case, HEAD % (b"422 No", b"a")) == "422"
    assert outcome(case, HEAD % (b"200 OK", b"a") + HEAD % (b"503 No", b"a")) == "503"
    assert outcome(case, b"") == "closed"
    assert outcome(case, b"Traceback").startswith("no HTTP")


def test_pipelined_answers_must_come_in_order() -> None:
    case = Damaged("two", (b"GET / HTTP/1.1\r\n\r\n" * 2,), asked=("a", "b"))
    right = HEAD % (b"200 OK", b"a"), HEAD % (b"200 OK", b"b")
    assert outcome(case, right[0] + right[1]) == "200"
    assert outcome(case, right[1] + right[0]).startswith("unequal")
    assert outcome(case, right[0]).startswith("unequal")
    assert outcome(case, right[0] + HEAD % (b"503 No", b"other")).startswith("unequal")


def test_of_a_long_pipeline_the_end_may_be_refused() -> None:
    names = tuple(f"n{number}" for number in range(60))
    case = Damaged("sixty", (b"GET / HTTP/1.1\r\n\r\n" * 60,), asked=names)
    answers = [HEAD % (b"200 OK", name.encode()) for name in names]
    refusal = HEAD % (b"503 No", b"other")
    assert outcome(case, b"".join(answers)) == "200"
    assert outcome(case, b"".join(answers[:12]) + refusal) == "503"
    assert outcome(case, b"".join(answers[:16])) == "200"
    assert outcome(case, b"".join(answers[:11]) + refusal).startswith("unequal")
    assert outcome(case, b"".join(answers[1:20])).startswith("unequal")
