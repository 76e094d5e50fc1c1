"""How far each bucket is exported, in a file of its own: it outlives the days, which may be deleted.

It is written after the manifests, so a job that was killed in between leaves it behind them, never ahead.
"""

import json
from collections.abc import Mapping
from typing import Final

from index.errors import EventExportError
from index.event_export.files import replace_read
from index.event_export.json_file import read_json
from index.event_export.object_path import ExportPath
from index.event_export.stream_ids import BEFORE_ALL, StreamId, bucket_name

POSITIONS_FILE: Final = "positions.json"
_FORMAT: Final = 1
_REMEDY: Final = "restore it from a copy, or delete it if no day was deleted"

Positions = Mapping[int, StreamId]
"""The last exported id by bucket."""


def load_positions(root: ExportPath) -> Positions:
    """The positions of the buckets; none where there is no file, as in an export of an older version.

    Raises:
        EventExportError: the file is damaged or of another format.
        ExportUnavailable: the object store does not answer, or refuses.
    """
    path = root / POSITIONS_FILE
    written = read_json(path, _FORMAT, _REMEDY)
    if written is None:
        return {}
    try:
        return positions_of(written["positions"])
    except (KeyError, TypeError, ValueError, AttributeError, EventExportError) as error:
        raise EventExportError(f"{path}: does not hold positions ({error}); {_REMEDY}") from error


def add_positions(root: ExportPath, positions: Positions) -> None:
    """Write positions to their file in one step; of two positions of a bucket the later one counts.

    Raises:
        OSError: the file cannot be written; the old one stays.
        ExportObjectChanged: another process has written it in the object store meanwhile.
        ExportUnavailable: the object store does not answer, or refuses.
        EventExportError: the old one is damaged.
    """
    known = load_positions(root)
    merged = later(known, positions)
    if merged != known:
        written = {"format": _FORMAT, "positions": positions_as_json(merged)}
        replace_read(root / POSITIONS_FILE, json.dumps(written, indent=1).encode())


def later(one: Positions, other: Positions) -> Positions:
    """The later position of each bucket."""
    return {**one, **{bucket: max(last, one.get(bucket, BEFORE_ALL)) for bucket, last in other.items()}}


def positions_of(written: Mapping[str, str]) -> dict[int, StreamId]:
    """Read positions as :func:`positions_as_json` writes them.

    Raises:
        TypeError, ValueError, AttributeError, EventExportError: it is something else.
    """
    return {int(bucket[1:]): StreamId.parse(last) for bucket, last in written.items()}


def positions_as_json(positions: Positions) -> dict[str, str]:
    """Positions as they are written, by the names of the buckets."""
    return {bucket_name(bucket): str(last) for bucket, last in sorted(positions.items())}
