"""Records which rows and values an import left out, with reason, file and lines."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

_LINES = 10


@dataclass
class Entry:
    """Rows or values of one file that were left out for one reason.

    Attributes:
        file: name of the source file.
        reason: the broken rule and what was done.
        count: number of rows or values.
        lines: the first line numbers, from 1.
    """

    file: str
    reason: str
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, lines: Iterable[int]) -> None:
        """Count one row or value per line number."""
        for line in lines:
            self.count += 1
            if len(self.lines) < _LINES:
                self.lines.append(line)


class ImportRecord:
    """Counts of an import.

    Attributes:
        items: rows of the catalogue.
        interactions: events; None if the source has no events.
        notes: other remarks for readers of the data set, one sentence each.
    """

    def __init__(self) -> None:
        self.items = 0
        self.interactions: int | None = None
        self.notes: list[str] = []
        self._rows: dict[tuple[str, str], Entry] = {}
        self._values: dict[tuple[str, str], Entry] = {}

    @property
    def rows_left_out(self) -> list[Entry]:
        """Rows of the source that were not imported, by reason."""
        return list(self._rows.values())

    @property
    def values_left_empty(self) -> list[Entry]:
        """Values of imported rows that could not be parsed and were left empty, by reason."""
        return list(self._values.values())

    def leave_out(self, file: str, reason: str, lines: Iterable[int]) -> None:
        """Count rows that are left out.

        Args:
            file: name of the source file.
            reason: the rule that they break.
            lines: one line number per row; without lines no entry is made.
        """
        _add(self._rows, file, reason, lines)

    def leave_empty(self, file: str, reason: str, lines: Iterable[int]) -> None:
        """Count values that are left empty; the arguments are those of :meth:`leave_out`."""
        _add(self._values, file, reason, lines)

    def note(self, sentence: str) -> None:
        """Add a sentence unless it is there."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-able values."""
        return {
            "items": self.items,
            "interactions": self.interactions,
            "rows_left_out": [asdict(entry) for entry in self.rows_left_out],
            "values_left_empty": [asdict(entry) for entry in self.values_left_empty],
            "notes": self.notes,
        }


def _add(entries: dict[tuple[str, str], Entry], file: str, reason: str, lines: Iterable[int]) -> None:
    numbers = list(lines)
    if numbers:
        entries.setdefault((file, reason), Entry(file, reason)).add(numbers)
