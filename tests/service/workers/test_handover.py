"""Connections are passed on, and end early, only where that evens them out."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.runtime.worker_board import WorkerBoard, WorkerState
from service.workers.handover import Handover

Inboxes = list[tuple[socket.socket, socket.socket]]


class Transport:
    """What the handover uses of a transport."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def get_extra_info(self, name: str) -> socket.socket:
        assert name == "socket"
        return self._connection


@pytest.fixture
def inboxes() -> Iterator[Inboxes]:
    made = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3)]
    yield made
    for pair in made:
        for end in pair:
            end.close()


@pytest.fixture
def board(tmp_path: Path) -> WorkerBoard:
    """Three workers that are ready, without connections."""
    made = WorkerBoard(tmp_path, 3)
    for number in (1, 2, 3):
        made.set_state(number, WorkerState.READY)
        made.beat(number)
    return made


@pytest.fixture
def connection() -> Iterator[tuple[Any, socket.socket]]:
    """The service's end of a connection as a transport, and the client's end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    yield Transport(accepted), client
    accepted.close()
    client.close()


def test_the_one_with_the_fewest_takes_it(
    board: WorkerBoard, inboxes: Inboxes, connection: tuple[Any, socket.socket]
) -> None:
    transport, client = connection
    first, third = Handover(1, board, inboxes), Handover(3, board, inboxes)
    board.set_connections(2, 4)
    board.set_connections(3, 3)
    assert first.pass_on(transport, 4, 0.0)
    transport.get_extra_info("socket").close()  # as the worker does
    taken = third.take()
    assert taken is not None
    client.sendall(b"hello")
    assert taken.recv(10) == b"hello"
    assert third.take() is None
    taken.close()


def test_it_stays_where_the_difference_is_small(
    board: WorkerBoard, inboxes: Inboxes, connection: tuple[Any, socket.socket]
) -> None:
    first = Handover(1, board, inboxes)
    for number in (2, 3):
        board.set_connections(number, 3)
    assert [first.pass_on(connection[0], mine, 0.0) for mine in (0, 2, 3)] == [False, False, False]
    assert first.pass_on(connection[0], 4, 0.0)


def test_what_was_passed_on_just_now_counts(
    board: WorkerBoard, inboxes: Inboxes, connection: tuple[Any, socket.socket]
) -> None:
    first = Handover(1, board, inboxes)
    assert [first.pass_on(connection[0], 1, 1.0) for _ in range(4)] == [True, True, False, False]  # one to each
    assert first.pass_on(connection[0], 1, 2.0)  # now the board would show them


@pytest.mark.parametrize("why", ["not ready", "silent", "ending here", "queue full"])
def test_it_stays_where_nobody_would_take_it(
    board: WorkerBoard, inboxes: Inboxes, connection: tuple[Any, socket.socket], why: str, monkeypatch: Any
) -> None:
    first = Handover(1, board, inboxes)
    if why == "not ready":
        board.set_state(2, WorkerState.LEAVING)
        board.reset(3)
    elif why == "silent":
        monkeypatch.setattr("service.runtime.worker_board.monotonic", lambda: 1e9)
    elif why == "ending here":
        first.close()
    else:
        for _ in range(10_000):
            if not first.pass_on(connection[0], 10**6, 0.0):
                break
    assert not first.pass_on(connection[0], 9, 0.0)


def test_one_moves_when_there_were_too_many_for_a_second(board: WorkerBoard, inboxes: Inboxes) -> None:
    first = Handover(1, board, inboxes)
    for number in (2, 3):
        board.set_connections(number, 2)
    asked = {at: first.moves_one(5, at) for at in (10.0, 10.05, 10.9, 11.0, 11.05, 11.1)}
    assert asked == {10.0: False, 10.05: False, 10.9: False, 11.0: True, 11.05: False, 11.1: True}
    assert not first.moves_one(3, 11.3)  # one more than the others: no move would even that out
    assert not first.moves_one(5, 11.5)  # too many for no second yet
    assert first.moves_one(5, 12.5)


@pytest.mark.parametrize(
    ("mine", "others", "moves"),
    [(3, (1, 1), True), (2, (1, 1), False), (5, (3, 4), True), (8, (6, 6), False), (100, (79, 79), False)],
)
def test_clearly_more_is_a_quarter_more_than_the_mean(
    board: WorkerBoard, inboxes: Inboxes, mine: int, others: tuple[int, int], moves: bool
) -> None:
    first = Handover(1, board, inboxes)
    for number, count in enumerate(others, 2):
        board.set_connections(number, count)
    first.moves_one(mine, 1.0)
    assert first.moves_one(mine, 2.0) == moves


@pytest.mark.parametrize("why", ["not ready", "ending here"])
def test_none_moves_where_nobody_would_take_it(board: WorkerBoard, inboxes: Inboxes, why: str) -> None:
    first = Handover(1, board, inboxes)
    if why == "ending here":
        first.close()
    else:
        for number in (2, 3):
            board.reset(number)
    assert [first.moves_one(9, at) for at in (1.0, 2.0, 3.0)] == [False] * 3
