"""Locks a run directory, so that one job at a time writes to it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from index.machine.locks import directory_lock
from training.errors import ReindexError, RunBusy
from training.runs.adoption import adoption_is_pending, finish_adoption
from training.runs.disk import writing_run


@contextlib.contextmanager
def run_lock(run: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a run directory while the block runs; never waits.

    A writer first finishes the adoption of a job that was killed meanwhile (:mod:`training.runs.adoption`).

    Args:
        run: an existing directory.
        shared: for a reader: fails only while a writer is at work.

    Raises:
        RunBusy: another process holds it.
        ReindexError: there is no such directory, or its file system has no locks.
        DiskError: an adoption cannot be finished.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(directory_lock(Path(os.path.realpath(run)), shared=shared))
        except BlockingIOError as error:
            raise RunBusy(f"{run}: another job is at work on this run; try again when it has ended") from error
        except (OSError, ValueError) as error:
            raise ReindexError(f"{run}: the run directory cannot be locked ({error}); check the path") from error
        if not shared:
            with writing_run(run):
                finish_adoption(run)
        yield


def finish_interrupted(run: Path) -> None:
    """Finish the adoption of a killed job, for a command that reads the run before it locks it, or never does.

    Args:
        run: the run directory; it need not exist.

    Raises:
        RunBusy: another process holds the lock.
        ReindexError, DiskError: see :func:`run_lock`.
    """
    if adoption_is_pending(run):
        with run_lock(run):
            pass
