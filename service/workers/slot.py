"""Holds what the parent process knows of one worker."""

import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess

from service.settings.load import Settings
from service.settings.worker_place import WorkerPlace


@dataclass(slots=True, eq=False)
class WorkerSlot:
    """One worker and its process.

    Attributes:
        settings: its own.
        place: its number and the shared directory.
        listener: its listening socket; this process owns it.
        process: None until it is started, and between its end and its replacement.
        control: to the process.
        started_at: monotonic seconds.
        answers: whether the process answers requests.
        deaths: deaths soon after a start, and failed starts, in a row.
        due_at: monotonic seconds at which it is started again; infinite while it runs.
        failure: why the process could not start.
        hangs: whether the process was killed because it gave no sign of life.
        is_last: whether the process was started during the shutdown; there is none after it.
    """

    settings: Settings
    place: WorkerPlace
    listener: socket.socket
    process: BaseProcess | None = None
    control: socket.socket | None = None
    started_at: float = 0.0
    answers: bool = False
    deaths: int = 0
    due_at: float = 0.0
    failure: str | None = None
    hangs: bool = False
    is_last: bool = False

    def order(self, number: int) -> None:
        """Send a signal to the process; one that starts obeys when it answers."""
        if self.control is not None:
            with suppress(OSError):  # it has just died
                self.control.send(bytes([number]))


def reason_of(exit_code: int | None) -> str:
    """How a process ended, in words."""
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"
