"""Defines the report of a dataset check: facts and defects."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import polars as pl

from training.data.tables.table_files import ROW, rows_named
from training.data_check.k_core import Core

_EXAMPLES = 3
_EXAMPLE_CHARACTERS = 60


class Severity(StrEnum):
    """How much a defect matters."""

    ERROR = "error"  # training refuses the data set
    WARNING = "warning"  # training skips these rows, texts or pictures
    NOTE = "note"  # training is not affected


@dataclass(frozen=True)
class Defect:
    """One kind of defect.

    Attributes:
        kind: short name, the same in every report.
        severity: how much it matters.
        count: how often it occurs.
        message: one line: file, defect, rows and remedy.
        rows: first row numbers; the first record after a CSV header is row 1.
    """

    kind: str
    severity: Severity
    count: int
    message: str
    rows: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Column:
    """A metadata column: its name, type, and how many items lack a value."""

    name: str
    kind: str
    missing: int


@dataclass(frozen=True)
class ItemFacts:
    """The catalogue in numbers; ``file`` is its name, ``with_text`` counts items with a title or text."""

    file: str
    items: int
    with_text: int
    metadata: list[Column]


@dataclass(frozen=True)
class ImageFacts:
    """Pictures in numbers.

    Attributes:
        named: items that name a picture.
        readable: items whose picture was decoded.
        missing: items whose picture does not exist or lies outside the directory.
        unreadable: items whose picture cannot be decoded.
        duplicates: items whose picture has the same content as an earlier item's.
    """

    named: int
    readable: int
    missing: int
    unreadable: int
    duplicates: int


@dataclass(frozen=True)
class InteractionFacts:
    """Interactions in numbers, of usable rows only (positive, ids and timestamp good, item known).

    Attributes:
        file: name of the file.
        rows: all rows of the file.
        left_out: rows that are not positive by ``events.toml``, by their meaning.
        usable: rows that training would use.
        users: users of the usable rows.
        items: items of the usable rows.
        time_unit: unit of the timestamps.
        first: earliest event, ISO-8601 UTC.
        last: latest event, ISO-8601 UTC.
        lengths: events per user: quantile name → number.
        long_enough: users with at least 3 events, who can be evaluated.
        repeats: test targets (last events of these users) that occur in their own history.
        five_core: the 5-core.
        largest_core: the core with the largest k that is not empty.
    """

    file: str
    rows: int
    left_out: dict[str, int]
    usable: int
    users: int
    items: int
    time_unit: str
    first: str | None
    last: str | None
    lengths: dict[str, float]
    long_enough: int
    repeats: int
    five_core: Core
    largest_core: Core


@dataclass(frozen=True)
class DatasetReport:
    """All facts and defects of one dataset directory; a part that could not be read is None."""

    directory: str
    items: ItemFacts | None
    images: ImageFacts | None
    interactions: InteractionFacts | None
    defects: list[Defect]

    @property
    def ok(self) -> bool:
        """Whether training would accept the dataset: no defect is an error."""
        return all(defect.severity is not Severity.ERROR for defect in self.defects)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {"ok": self.ok, **asdict(self)}


def defect_of(
    kind: str, severity: Severity, rows: pl.DataFrame, what: str, remedy: str, *, example: str | None = None
) -> list[Defect]:
    """A defect of table rows, or none if there are no rows.

    Args:
        kind: short name.
        severity: how much it matters.
        rows: the rows concerned, with their :data:`ROW`.
        what: the file and the defect.
        remedy: how to correct it.
        example: column from which example values are shown.
    """
    if rows.is_empty():
        return []
    place = rows_named(rows[ROW])
    if example is not None:
        place += f" ({examples(rows[example].unique(maintain_order=True).to_list())})"
    message = f"{what}: {place}; {remedy}"
    return [Defect(kind, severity, rows.height, message, rows[ROW].head(10).to_list())]


def examples(values: Sequence[object]) -> str:
    """The first few values, shortened, for a message."""
    shown = []
    for value in values[:_EXAMPLES]:
        text = repr(value)
        shown.append(text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[:_EXAMPLE_CHARACTERS]}…")
    return ", ".join(shown) + (", …" if len(values) > _EXAMPLES else "")
