"""Erased users of an export, as keyed hashes with the time of the erasure.

An erasure hides every event of the user that arrived until then; later events of the same id stay.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from typing import Final

from index.errors import EventExportError
from index.event_export.files import make_directory, replace_read
from index.event_export.json_file import read_json
from index.event_export.object_path import ExportPath
from index.event_export.stream_ids import BEFORE_ALL, StreamId, bucket_name

ERASURES_DIRECTORY: Final = "erasures"
NO_KEY: Final = "none"
"""Key of an export to a target that names an erased user by its id, as Kafka does."""
_FORMAT: Final = 1
_DIGITS: Final = 32


def user_hash(key: str, user_id: str) -> str:
    """The keyed hash of a user: the first 128 bits of HMAC-SHA-256, 32 hexadecimal digits.

    Args:
        key: of the export, hexadecimal.
        user_id: in UTF-8 it is what is hashed.
    """
    return hmac.new(key.encode(), user_id.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:_DIGITS]


def erasure_name(key: str, user_id: str) -> str:
    """The name under which an erasure waits for the exporter: the keyed hash, or with `NO_KEY` the user id itself."""
    return user_id if key == NO_KEY else user_hash(key, user_id)


class Erasures:
    """Erased users by keyed hash.

    Args:
        key: of the export, hexadecimal.
        erased: hash → the last stream id that the erasure covers.
    """

    def __init__(self, key: str, erased: Mapping[str, StreamId]) -> None:
        self._key = key
        self._erased = dict(erased)

    def __len__(self) -> int:
        """Number of erased users."""
        return len(self._erased)

    @property
    def state(self) -> str:
        """SHA-256 of all erasures, hexadecimal; another one after every erasure, whatever the clock of Redis says."""
        lines = "".join(f"{found} {until}\n" for found, until in sorted(self._erased.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def until(self, user_ids: Iterable[str]) -> dict[str, StreamId]:
        """Those of the users who were erased, each with the last id that the erasure covers."""
        if not self._erased:
            return {}
        hashed = ((user_id, user_hash(self._key, user_id)) for user_id in user_ids)
        return {user_id: self._erased[found] for user_id, found in hashed if found in self._erased}


def load_erasures(root: ExportPath, bucket: int) -> dict[str, StreamId]:
    """The erasures of one bucket: hash → the last id that it covers.

    Raises:
        EventExportError: their file is damaged.
    """
    path, remedy = _file(root, bucket), "restore it from a copy"
    written = read_json(path, _FORMAT, remedy)
    if written is None:
        return {}
    try:
        return {str(found): StreamId.parse(until) for found, until in written["erased"].items()}
    except (KeyError, TypeError, AttributeError, EventExportError) as error:
        raise EventExportError(f"{path}: does not hold erasures ({error}); {remedy}") from error


def add_erasures(root: ExportPath, bucket: int, erased: Mapping[str, StreamId]) -> None:
    """Write erasures to the file of a bucket, in one step; of two erasures of a user the later one counts.

    Raises:
        OSError: the file cannot be written; the old one stays.
        ExportObjectChanged: another process has written it in the object store meanwhile.
        EventExportError: the old one is damaged.
    """
    known = load_erasures(root, bucket)
    merged = known | {found: max(until, known.get(found, BEFORE_ALL)) for found, until in erased.items()}
    if merged == known:
        return
    make_directory(root / ERASURES_DIRECTORY)
    written = {"format": _FORMAT, "erased": {found: str(until) for found, until in sorted(merged.items())}}
    replace_read(_file(root, bucket), json.dumps(written, indent=0).encode())


def _file(root: ExportPath, bucket: int) -> ExportPath:
    return root / ERASURES_DIRECTORY / f"{bucket_name(bucket)}.json"
