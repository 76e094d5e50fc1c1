"""The manifest of one day of an export: which files count, and how far each bucket is exported."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from index.errors import EventExportError
from index.event_export.files import replace_read
from index.event_export.json_file import read_json
from index.event_export.object_path import ExportPath
from index.event_export.positions import Positions, later, positions_as_json, positions_of
from index.event_export.stream_ids import FileRange

MANIFEST_FILE: Final = "manifest.json"
DAY_PREFIX: Final = "day="
_FORMAT: Final = 1
_REMEDY: Final = "restore it from a copy, or export to another directory"


@dataclass(frozen=True)
class ExportedFile:
    """A file of a day.

    Attributes:
        name: of the file.
        rows: number of events in it.
        size: bytes.
    """

    name: str
    rows: int
    size: int

    @property
    def range(self) -> FileRange:
        """The entries that it holds."""
        return FileRange.of_file(self.name)


@dataclass(frozen=True)
class DayManifest:
    """Files and positions of one day; replaced as a whole.

    Attributes:
        files: by name.
        positions: last exported id of the day by bucket, also where compaction removed the rows.
    """

    files: Mapping[str, ExportedFile] = field(default_factory=dict)
    positions: Positions = field(default_factory=dict)

    @classmethod
    def load(cls, day: ExportPath) -> Self:
        """Read the manifest of a day; an empty one if there is none.

        Raises:
            EventExportError: it is damaged or of another format.
        """
        path = day / MANIFEST_FILE
        written = read_json(path, _FORMAT, _REMEDY)
        if written is None:
            return cls()
        try:
            files = [
                ExportedFile(str(file["name"]), int(file["rows"]), int(file["bytes"])) for file in written["files"]
            ]
            for file in files:
                FileRange.of_file(file.name)
            positions = positions_of(written["positions"])
        except (KeyError, TypeError, ValueError, AttributeError, EventExportError) as error:
            raise EventExportError(f"{path}: is not a manifest ({error}); {_REMEDY}") from error
        return cls({file.name: file for file in files}, positions)

    def save(self, day: ExportPath) -> None:
        """Replace the manifest of a day in one step.

        Raises:
            OSError: it cannot be written; the old one stays.
            ExportObjectChanged: another process has written it in the object store since it was loaded.
            ExportUnavailable: the object store does not answer, or refuses.
        """
        written = {
            "format": _FORMAT,
            "positions": positions_as_json(self.positions),
            "files": [
                {"name": file.name, "rows": file.rows, "bytes": file.size}
                for file in sorted(self.files.values(), key=lambda file: file.range)
            ],
        }
        replace_read(day / MANIFEST_FILE, json.dumps(written, indent=1).encode())

    def with_files(self, added: list[ExportedFile]) -> "DayManifest":
        """This manifest with further files, each behind the position of its bucket."""
        return DayManifest({**self.files, **{file.name: file for file in added}}, later(self.positions, ends_of(added)))


def ends_of(files: Iterable[ExportedFile]) -> Positions:
    """The last id that files hold, by bucket."""
    ends: Positions = {}
    for file in files:
        ends = later(ends, {file.range.bucket: file.range.last})
    return ends
