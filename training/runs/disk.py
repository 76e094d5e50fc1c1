"""What a job writes to its run directory: an error of the disk becomes one clear line, whichever library meets it."""

from contextlib import AbstractContextManager
from pathlib import Path

from polars.exceptions import PolarsError
from safetensors import SafetensorError

from index.machine.disk import RESUME_HINT, translate_disk_errors


def writing_run(run: Path, *, again: str = RESUME_HINT) -> AbstractContextManager[None]:
    """Errors of the disk within the block become a :class:`index.errors.DiskError`; see
    :func:`index.machine.disk.writing`.

    Args:
        run: the run directory.
        again: what to do once the cause is mended.
    """
    return translate_disk_errors(run, SafetensorError, PolarsError, again=again)
