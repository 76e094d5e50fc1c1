"""Translates errors of the disk while a job writes to its run directory."""

from contextlib import AbstractContextManager
from pathlib import Path

from polars.exceptions import PolarsError
from safetensors import SafetensorError

from index.machine.disk import GOES_ON, writing


def writing_run(run: Path, *, again: str = GOES_ON) -> AbstractContextManager[None]:
    """Raise errors of the disk as :class:`index.errors.DiskError`; see :func:`index.machine.disk.writing`.

    Args:
        run: the run directory.
        again: what to do after the cause is removed.
    """
    return writing(run, SafetensorError, PolarsError, again=again)
