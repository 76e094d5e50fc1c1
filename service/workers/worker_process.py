"""Runs one of several workers: a server on a listening socket that the parent process owns.

A worker takes orders from its parent alone, over a socket: a byte with the number of a signal begins the shutdown, and
so does the end of the socket, when the parent has died. Signals that are sent to the worker itself do nothing, since a
terminal or a process manager sends one to the parent and to all workers at once, and a second one would end the drain.
"""

import asyncio
import contextlib
import logging
import shutil
import signal
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from types import FrameType
from typing import Any, Final

from fastapi import FastAPI

from index.errors import IndexingError
from service.errors import NotReady, ServiceError
from service.http.config import GuardedConfig
from service.runtime.worker_board import WorkerBoard, WorkerState
from service.server import SocketServer, configure_process, run
from service.settings.load import Settings
from service.settings.worker_place import WorkerPlace
from service.workers.handover import Handover, PassingProtocol
from service.workers.shared_directory import shortage

STARTED: Final = b"started"
"""Message to the parent: requests are answered."""
CLOSED: Final = b"closed"
"""Message to the parent: this worker has closed its listening socket."""
FAILED: Final = b"failed "
"""Begin of a message to the parent: the worker could not start; the reason follows."""
EXIT_FAILED: Final = 3
"""Exit code of a worker that could not start."""
_MESSAGE_BYTES: Final = 4096
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_worker(
    settings: Settings,
    place: WorkerPlace,
    listener: socket.socket,
    control: socket.socket,
    inboxes: Sequence[tuple[socket.socket, socket.socket]],
) -> int:
    """Serve until the parent ends this worker.

    Args:
        settings: the worker's own, with its place.
        place: which worker it is.
        listener: shared with the parent, which keeps it open for a replacement.
        control: to the parent.
        inboxes: of all workers, see `service.workers.handover.Handover`.

    Returns:
        The exit code of the process.
    """
    signal.set_wakeup_fd(-1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    configure_process(settings)
    board = WorkerBoard(place.directory, place.count)
    handover = Handover(place.number, board, inboxes)
    try:
        run(settings, listener, partial(_WorkerServer, place.number, board, control, handover))
    except (ServiceError, IndexingError, OSError) as error:
        full = shortage(error, place.directory, place.count) if isinstance(error, OSError) else None
        _tell(control, FAILED + (full or str(error)).encode()[: _MESSAGE_BYTES - len(FAILED)])
        return EXIT_FAILED
    finally:
        if _has_ended(control):
            shutil.rmtree(place.directory, ignore_errors=True)  # the parent cannot any more
        logging.shutdown()  # the process ends without `atexit`
    return 0


class _WorkerServer(SocketServer):
    """A server that takes its orders from the parent and shows on the board whether it is ready."""

    def __init__(
        self,
        number: int,
        board: WorkerBoard,
        control: socket.socket,
        handover: Handover,
        config: GuardedConfig,
        app: FastAPI,
    ) -> None:
        super().__init__(config, app, partial(_tell, control, STARTED))
        self._number = number
        self._board = board
        self._control = control
        self._handover = handover
        self._taking: set[asyncio.Task[Any]] = set()
        self._check_ready = app.state.check_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start answering, and listen to the parent and the other workers."""
        self.config.http_protocol_class = partial(PassingProtocol, self._handover, True)  # type: ignore[assignment]
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._control, self._obey)
        loop.add_reader(self._handover.inbox, self._take_connections)
        self._show()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle no signals; see the module."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown; a second signal ends its delay."""
        self._handover.close()
        super().handle_exit(sig, frame)
        self._show()

    async def on_tick(self, counter: int) -> bool:
        """Check the connections and the parent, and give a sign of life, ten times a second.

        A parent that dies before it has read a message ends the socket with an error, of which uvloop tells no reader.
        """
        self._show()
        if not self.should_exit and _has_ended(self._control):
            self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    def listeners_closed(self) -> None:
        """Let the parent close its copy of the listening socket too."""
        _tell(self._control, CLOSED)

    def _take_connections(self) -> None:
        """Go on with the connections that other workers passed on."""
        loop = asyncio.get_running_loop()
        while (taken := self._handover.take()) is not None:
            task = loop.create_task(self._take(taken))
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _take(self, taken: socket.socket) -> None:
        with contextlib.suppress(OSError):  # its client has left
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol_of_taken, taken)

    def _protocol_of_taken(self) -> PassingProtocol:
        return PassingProtocol(
            self._handover,
            False,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=asyncio.get_running_loop(),
        )

    def _show(self) -> None:
        try:
            self._check_ready()
        except NotReady:
            state = WorkerState.LEAVING if self.should_exit else WorkerState.STARTING
        else:
            state = WorkerState.READY
        self._board.set_state(self._number, state)
        self._board.beat(self._number)

    def _obey(self) -> None:
        message = self._control.recv(1)
        if not message:  # the parent has died
            asyncio.get_running_loop().remove_reader(self._control)
            self.handle_exit(signal.SIGTERM, None)
        for number in message:
            self.handle_exit(number, None)


def _has_ended(control: socket.socket) -> bool:
    """Whether the parent has died."""
    try:
        return not control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _tell(control: socket.socket, message: bytes) -> None:
    with contextlib.suppress(OSError):  # the parent has died; the worker ends soon
        control.send(message)
