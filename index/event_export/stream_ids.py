"""Ids of stream entries, and the names of the files that hold a range of them."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Self

from index.errors import EventExportError

Entry = tuple[bytes, Sequence[bytes]]
"""Id of a stream entry, then names and values of its fields in turn, as Redis sends them."""

_ID: Final = re.compile(r"(\d{1,20})-(\d{1,20})")
_FILE: Final = re.compile(
    r"b(\d{3})-(\d{1,20}-\d{1,20})-(\d{1,20}-\d{1,20})(?:-c(\d{1,6}))?(?:-x([0-9a-f]{8}))?\.parquet"
)
DAY_MS: Final = 86_400_000
LAST_MILLISECOND: Final = 253_402_300_799_999
"""Of the year 9999, the last one that a date can name."""


class StreamId(NamedTuple):
    """Id of a stream entry; ids of one stream rise in the order of arrival.

    Attributes:
        milliseconds: time of arrival since 1970, UTC.
        sequence: place within the millisecond.
    """

    milliseconds: int
    sequence: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``milliseconds-sequence``.

        Raises:
            EventExportError: the text has another form.
        """
        found = _ID.fullmatch(text)
        if found is None:
            raise EventExportError(f"the id of a stream entry must be two numbers as in 1790000000123-0, got {text!r}")
        milliseconds, sequence = found.groups()
        return cls(int(milliseconds), int(sequence))

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.sequence}"

    @property
    def day_number(self) -> int:
        """Days from 1970 to that of the arrival, UTC."""
        return min(self.milliseconds, LAST_MILLISECOND) // DAY_MS

    @property
    def day(self) -> str:
        """The day of arrival in UTC, as in ``2026-11-30``."""
        return datetime.fromtimestamp(self.day_number * DAY_MS // 1000, UTC).date().isoformat()


BEFORE_ALL: Final = StreamId(0, 0)
"""Lower than the id of any entry."""


class FileRange(NamedTuple):
    """The entries of one bucket that a file holds.

    Attributes:
        bucket: number of the bucket of users.
        first: its first id.
        last: its last id.
        compaction: how often the range was rewritten; 0 as exported.
        token: of the process that wrote the file in an object store, 8 hexadecimal digits; empty on a file system.
    """

    bucket: int
    first: StreamId
    last: StreamId
    compaction: int = 0
    token: str = ""

    @classmethod
    def of_file(cls, name: str) -> Self:
        """Read the name of a file.

        Raises:
            EventExportError: it is not the name of an exported file.
        """
        found = _FILE.fullmatch(name)
        if found is None:
            raise EventExportError(f"an exported file is called b017-FIRST-LAST.parquet, got {name!r}")
        first, last = StreamId.parse(found[2]), StreamId.parse(found[3])
        return cls(int(found[1]), first, last, int(found[4] or 0), found[5] or "")

    @property
    def file_name(self) -> str:
        """The name of the file, as in ``b017-1790000000123-0-1790000009999-4.parquet``."""
        compacted = f"-c{self.compaction}" if self.compaction else ""
        token = f"-x{self.token}" if self.token else ""
        return f"{bucket_name(self.bucket)}-{self.first}-{self.last}{compacted}{token}.parquet"


def bucket_name(bucket: int) -> str:
    """The name of a bucket, as in ``b017``."""
    return f"b{bucket:03d}"
