"""The board of the workers: who is ready, who hangs, who has what mapped."""

from pathlib import Path

import pytest

from service.errors import NotReady
from service.runtime import worker_board
from service.runtime.worker_board import WorkerBoard, WorkerState, bundle_digest


def test_ready_is_when_all_are_ready_and_give_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(worker_board, "monotonic", lambda: now[0])
    first, second = WorkerBoard(tmp_path, 2), WorkerBoard(tmp_path, 2)  # as two processes map it
    first.set_state(1, WorkerState.READY)
    first.beat(1)
    with pytest.raises(NotReady, match="worker 2 of 2 starts; try again soon"):
        first.check_ready()
    second.set_state(2, WorkerState.READY)
    second.beat(2)
    first.check_ready()
    assert second.ready_count() == 2
    second.set_state(2, WorkerState.LEAVING)
    with pytest.raises(NotReady, match="worker 2 of 2 is ending"):
        first.check_ready()
    second.set_state(2, WorkerState.READY)
    now[0] += 7.0
    first.beat(1)
    with pytest.raises(NotReady, match="worker 2 of 2 has not responded for 7 seconds"):
        first.check_ready()
    assert (first.silence_s(2), first.ready_count()) == (7.0, 1)


def test_a_worker_that_ended_is_forgotten(tmp_path: Path) -> None:
    board = WorkerBoard(tmp_path, 2)
    board.set_state(2, WorkerState.READY)
    board.set_bundles(2, ["b", "a"])
    board.set_wants_room(2, True)
    board.count_restart(2)
    assert board.bundles() == {bundle_digest("a"), bundle_digest("b")}
    assert board.room_is_wanted(1)
    board.reset(2)
    assert (board.state(2), board.bundles(), board.room_is_wanted(1)) == (WorkerState.STARTING, frozenset(), False)
    assert board.restarts() == 1
