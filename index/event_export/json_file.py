"""Reads the JSON files of an export."""

import json
from typing import Any, Final

from index.errors import EventExportError
from index.event_export.files import content_of
from index.event_export.object_path import ExportPath

_LARGEST: Final = 256 << 20


def read_json(path: ExportPath, number: int, remedy: str) -> dict[str, Any] | None:
    """Read a JSON object with its format number.

    Args:
        path: the file.
        number: the format that this version reads.
        remedy: what to do where the file cannot be read.

    Returns:
        The object; None if there is no file.

    Raises:
        ExportUnavailable: the object store does not answer, or refuses.
        EventExportError: it cannot be read, has more than 256 MiB, or is of another format.
    """
    try:
        written = json.loads(content_of(path, limit=_LARGEST))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise EventExportError(f"{path}: cannot be read ({error}); {remedy}") from error
    if not isinstance(written, dict) or written.get("format") != number:
        raise EventExportError(
            f"{path}: must be an object of format {number}; {remedy}, or use the version that wrote it"
        )
    return written
