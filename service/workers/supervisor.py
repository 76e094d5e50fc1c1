"""Starts the workers of a service, replaces those that die, and ends them all.

The parent process binds one listening socket a worker (`SO_REUSEPORT`) and owns them all. A replacement inherits the
socket of the worker that died, so connections that wait in its queue are answered and not reset, also during the
shutdown (docs/adr/0030).
"""

import gc
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from math import inf
from time import monotonic
from types import FrameType
from typing import Final

from structlog.typing import FilteringBoundLogger

from service.errors import StartError
from service.runtime.worker_board import WorkerBoard
from service.server import configure_process, handle_unless_handled, listen, url_of
from service.server import serve as serve_alone
from service.settings.load import Settings
from service.settings.worker_place import WorkerPlace
from service.workers.fork import forked
from service.workers.shared_directory import shared_directory
from service.workers.slot import WorkerSlot, reason_of
from service.workers.worker_process import CLOSED, FAILED, STARTED, run_worker

_MOST_FAILED_STARTS: Final = 5  # of all workers together, before any of them answered
_SETTLED_S: Final = 10.0  # a worker that lived as long is replaced at once when it dies
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
_HUNG_S: Final = 30.0
_LATE_STEP_S: Final = 5.0  # a step takes a second at most, unless this process is stopped or gets no processor
_DRAIN_MARGIN_S: Final = 15.0  # beyond the drain itself: closing listeners, saving the operator state
_MESSAGE_BYTES: Final = 8192


def serve(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM, SIGHUP or SIGINT; requests in progress are answered first.

    With one worker everything runs in this process, see `service.server.serve`. With several this process starts and
    replaces them, and passes the signal on to all.

    Args:
        settings: what to serve, where, with how many workers.
        announce: called once with the URL, when all workers answer requests.

    Raises:
        StartError: the address cannot be used, nothing is published, no worker could start, or start-up failed.
        BundleRefused: no published bundle is good.
        IndexingError: the registry cannot be read.
        SettingsError: there are too many workers for the bounds.
        KeyboardInterrupt: after the graceful shutdown, if the signal was SIGINT.
    """
    count = settings.worker_count
    if count == 1:
        serve_alone(settings, announce=announce)
        return
    if sys.platform != "linux":
        raise StartError(f"workers must be 1 here, received {count}: several can share a port on Linux only")
    with shared_directory(count) as directory:
        places = [WorkerPlace(number=number, count=count, directory=directory) for number in range(1, count + 1)]
        shares = [settings.for_worker(place) for place in places]
        listeners = listen(settings.server, count)
        try:
            log = configure_process(settings, forks=True)
            gc.freeze()  # a collection in a worker would write to the pages that it shares with this process
            url = url_of(settings.server, listeners[0])
            Supervisor(settings, shares, listeners, log=log, ready=lambda: announce(url)).run()
        finally:
            for listener in listeners:
                listener.close()


class Supervisor:
    """Keeps all workers running until a signal ends them.

    Args:
        settings: of the service.
        shares: of each worker, with its place.
        listeners: one a worker.
        log: of this process, which has no threads.
        ready: called once, when all workers answer requests.
    """

    def __init__(
        self,
        settings: Settings,
        shares: list[Settings],
        listeners: list[socket.socket],
        *,
        log: FilteringBoundLogger,
        ready: Callable[[], None],
    ) -> None:
        self._workers = [
            WorkerSlot(share, share.worker, listener)
            for share, listener in zip(shares, listeners, strict=True)
            if share.worker is not None
        ]
        self._board = WorkerBoard(self._workers[0].place.directory, len(self._workers))
        self._server = settings.server
        self._log = log
        self._ready: Callable[[], None] | None = ready
        # Owned here: what waits in them outlives the death of a worker.
        self._inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in self._workers]
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._passed_on = 0
        self._ends = False
        self._delay_until = self._kill_at = inf  # of the shutdown, monotonic seconds
        self._stepped_at, self._resumed_at = inf, -inf
        self._has_answered = self._was_ready = False  # one worker; all of them
        self._failed_starts = 0
        self._failure: StartError | None = None

    def run(self) -> None:
        """Start the workers and return after the shutdown.

        Raises:
            StartError: a worker could not start before all answered.
            KeyboardInterrupt: the signal was SIGINT.
        """
        with self._watching_signals():
            try:
                while not (self._ends and all(one.process is None and one.due_at == inf for one in self._workers)):
                    self._step()
            finally:
                self._kill_all()
                for end in chain.from_iterable(self._inboxes):
                    end.close()
        if self._failure is not None:
            raise self._failure
        if signal.SIGINT in self._signals:
            raise KeyboardInterrupt

    def _step(self) -> None:
        self._notice_pause()
        self._pass_signals_on()
        now = monotonic()
        for worker in self._workers:
            if worker.due_at <= now:
                self._start(worker)
            self._end_if_hung(worker)
        if now >= self._kill_at:
            self._log.error("drain took too long; the workers are killed")
            self._end_at_once()
        due = min(worker.due_at for worker in self._workers)
        for key, _ in self._selector.select(max(0.0, min(due - monotonic(), 1.0))):
            key.data()
        for worker in self._workers:
            if worker.process is not None and worker.process.exitcode is not None:
                self._ended(worker)

    def _notice_pause(self) -> None:
        """Give the workers their time anew after a pause of the whole service: they could give no sign of life in it.

        It was stopped (`docker pause`, SIGTSTP), or the machine gave it no processor.
        """
        now = monotonic()
        late_s, self._stepped_at = now - self._stepped_at, now
        if late_s > _LATE_STEP_S:
            self._resumed_at = now
            self._kill_at = max(self._kill_at, now + _DRAIN_MARGIN_S)
            self._log.warning("service was paused", paused_s=round(late_s, 1))

    def _start(self, worker: WorkerSlot) -> None:
        number = worker.place.number
        self._board.reset(number)
        worker.started_at, worker.due_at, worker.failure = monotonic(), inf, None
        worker.answers = worker.hangs = False
        try:
            worker.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                worker.process = forked(self._run_in_child, worker, theirs, name=f"worker-{number}")
        except OSError as error:
            self._could_not_start(worker, error.strerror or str(error))
            return
        self._selector.register(worker.control, selectors.EVENT_READ, lambda: self._hear(worker))
        self._selector.register(worker.process.sentinel, selectors.EVENT_READ, lambda: None)
        for passed in self._signals[: self._passed_on]:
            worker.order(passed)

    def _could_not_start(self, worker: WorkerSlot, reason: str) -> None:
        """Try again later to start a worker for which there was no process: the others go on meanwhile."""
        if worker.control is not None:
            worker.control.close()
            worker.control = None
        if self._ends or self._was_ready or not self._gives_up(worker, reason):
            self._start_later(worker, "worker could not be started", reason)

    def _run_in_child(self, worker: WorkerSlot, control: socket.socket) -> None:
        """Close what belongs to the parent: a copy of a socket here would keep it open after the parent closed it."""
        self._selector.close()
        for other in self._workers:
            if other.control is not None:
                other.control.close()
            if other is not worker:
                other.listener.close()
        settings = worker.settings
        if self._ends:
            left_s = max(0.0, self._delay_until - monotonic())
            server = settings.server.model_copy(update={"drain_delay_s": left_s})
            settings = settings.model_copy(update={"server": server})
        sys.exit(run_worker(settings, worker.place, worker.listener, control, self._inboxes))

    def _hear(self, worker: WorkerSlot) -> None:
        """Read one message of a worker."""
        if worker.control is None:
            return
        try:
            message = worker.control.recv(_MESSAGE_BYTES)
        except ConnectionResetError:
            return  # it ended with an order unread: its messages come after this
        except OSError:
            message = b""
        if message == STARTED:
            worker.answers = self._has_answered = True
            self._board.beat(worker.place.number)  # the last one may be as old as the start
            self._announce()
        elif message == CLOSED:
            worker.listener.close()
        elif message.startswith(FAILED):
            worker.failure = message.removeprefix(FAILED).decode(errors="replace")
        elif not message:
            self._selector.unregister(worker.control)
            worker.control.close()
            worker.control = None

    def _announce(self) -> None:
        if self._ready is not None and not self._ends and all(worker.answers for worker in self._workers):
            self._was_ready = True
            ready, self._ready = self._ready, None
            ready()

    def _ended(self, worker: WorkerSlot) -> None:
        """Clean up after a process that has ended; start it again unless the service ends."""
        process, number = worker.process, worker.place.number
        if process is None:
            return
        while worker.control is not None:
            self._hear(worker)
        self._selector.unregister(process.sentinel)
        reason = reason_of(process.exitcode)
        process.close()
        worker.process = None
        self._board.reset(number)
        if self._ends:
            self._start_last(worker, reason)
            return
        if not self._was_ready and self._gives_up(worker, reason):
            return
        self._board.count_restart(number)
        self._start_later(worker, "worker ended", reason)

    def _start_later(self, worker: WorkerSlot, event: str, reason: str) -> None:
        """Start a worker at once if it lived long, else after a pause that doubles with each such end in a row."""
        now = monotonic()
        worker.deaths = 0 if now - worker.started_at >= _SETTLED_S else worker.deaths + 1
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** (worker.deaths - 1), _LONGEST_PAUSE_S) if worker.deaths else 0.0
        worker.due_at = now + pause_s
        self._log.error(event, starts_again_s=round(pause_s, 2), **_about(worker, reason))

    def _gives_up(self, worker: WorkerSlot, reason: str) -> bool:
        """Whether a failed start before all answered ends the service; workers that answer are drained."""
        self._failed_starts += 1
        if worker.failure is not None:
            failure = StartError(worker.failure)
        elif self._failed_starts >= _MOST_FAILED_STARTS:
            failure = StartError(
                f"workers ended or could not be started {self._failed_starts} times before all of them answered, "
                f"the last time: {reason}; the log has more"
            )
        else:
            return False
        self._failure = self._failure or failure
        worker.listener.close()
        self._signals.append(signal.SIGTERM)
        return True

    def _end_if_hung(self, worker: WorkerSlot) -> None:
        """Kill a worker that gives no sign of life; one that drains gives none, and `_kill_at` bounds it."""
        if self._ends or worker.process is None or worker.hangs:
            return
        now = monotonic()
        if worker.answers:
            if min(self._board.silence_s(worker.place.number), now - self._resumed_at) < _HUNG_S:
                return
            self._log.error("worker hangs; it is killed", worker=worker.place.number)
        else:  # it gives no sign of life while it loads a bundle
            if now - max(worker.started_at, self._resumed_at) < self._server.start_timeout_s:
                return
            self._log.error("worker did not start in time; it is killed", worker=worker.place.number)
        worker.answers, worker.hangs = False, True
        worker.process.kill()

    def _pass_signals_on(self) -> None:
        for number in self._signals[self._passed_on :]:
            self._passed_on += 1
            now = monotonic()
            delay_s = 0.0 if self._ends else self._server.drain_delay_s  # a second signal ends it
            self._delay_until = min(self._delay_until, now + delay_s)
            self._kill_at = min(self._kill_at, self._delay_until + self._server.drain_s + _DRAIN_MARGIN_S)
            if not self._ends:
                self._begin_shutdown()
            for worker in self._workers:
                worker.order(number)

    def _begin_shutdown(self) -> None:
        """Drain all workers, also those that still start; where none has answered yet, end them at once."""
        self._ends = True
        if not self._has_answered:
            self._end_at_once()
        for worker in self._workers:
            if worker.process is None:
                self._start_last(worker)

    def _start_last(self, worker: WorkerSlot, reason: str | None = None) -> None:
        """Start a worker that is dead in the shutdown once more, unless it has closed its socket.

        Connections may wait there: it answers them and drains as the others do.
        """
        worker.due_at = inf
        if worker.listener.fileno() < 0:
            return
        if reason is not None:
            self._log.error("worker ended in the shutdown", **_about(worker, reason))
        if worker.is_last:
            worker.listener.close()
        else:
            worker.is_last, worker.due_at = True, monotonic()

    def _end_at_once(self) -> None:
        """Kill all workers; none is started again, as their sockets are closed."""
        for worker in self._workers:
            worker.listener.close()
            worker.due_at = inf
        self._kill_all()

    def _kill_all(self) -> None:
        for worker in self._workers:
            if worker.process is not None:
                worker.process.kill()
                worker.process.join()

    @contextmanager
    def _watching_signals(self) -> Iterator[None]:
        """Note SIGTERM, SIGINT and, unless it is ignored, SIGHUP; each wakes the loop up."""
        reads, writes = socket.socketpair()
        for end in (reads, writes):
            end.setblocking(False)
        self._selector.register(reads, selectors.EVENT_READ, lambda: reads.recv(_MESSAGE_BYTES))
        before = {number: signal.getsignal(number) for number in signal.Signals if number in _HANDLED}
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        handle_unless_handled(signal.SIGHUP, self._note)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            handle_unless_handled(number, lambda _number, _frame: None)
        wakeup = signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            reads.close()
            writes.close()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)


def _about(worker: WorkerSlot, reason: str) -> dict[str, int | str]:
    """What the log says of a worker that has ended."""
    detail = {} if worker.failure is None else {"detail": worker.failure}
    return {"worker": worker.place.number, "reason": reason, **detail}


_HANDLED: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
