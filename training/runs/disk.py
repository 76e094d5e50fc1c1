"""Translates errors of the disk while a job writes to its run directory."""

from contextlib import AbstractContextManager
from pathlib import Path

from polars.exceptions import PolarsError
from safetensors import SafetensorError

from index.machine.disk import RESUME_HINT, translate_disk_errors


def writing_run(run: Path, *, again: str = RESUME_HINT) -> AbstractContextManager[None]:
    """Raise errors of the disk as `DiskError`; see :func:`index.machine.disk.translate_disk_errors`.

    Args:
        run: the run directory.
        again: what to do after the cause is removed.
    """
    return translate_disk_errors(run, SafetensorError, PolarsError, again=again)
