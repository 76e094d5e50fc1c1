"""Reads from a data set's ``events.toml`` what its events mean and how much each weighs.

Without the file every event is positive and weighs the same. The file names the column that decides, and may change the
table of types that the service uses too::

    weight_by = "type"          # or "weight", or "rating"
    rating_threshold = 4        # for "rating": the least rating of a positive event

    [events]
    default_type = "view"
    [events.types]
    rent = 4
"""

import math
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from index.bundle.event_types import EventTypes
from index.errors import EventTypesError
from training.data.tables.table_files import ROW, rows_named
from training.errors import DatasetError

EVENTS_FILE: Final = "events.toml"
WEIGHT: Final = "weight"
_LEAST_WEIGHT: Final = 1e-9
_LARGEST_WEIGHT: Final = 1e9
"""With these bounds no positive weight is 0 in float32 after the division by the mean."""
DECIDING_COLUMNS: Final = ("type", "weight", "rating")
"""Columns of the interactions of which a file of rules may name one."""
_TEXT_KINDS: Final = (pl.String, pl.Categorical, pl.Enum, pl.Null)

WeightBy = Literal["type", "weight", "rating"]


def deciding_values(path: Path, column: pl.Series) -> pl.Series:
    """The values of one of :data:`DECIDING_COLUMNS`.

    Args:
        path: of the file, for messages.
        column: under its name.

    Returns:
        For ``type`` strings; for ``weight`` and ``rating`` float64, null where a value is no number.

    Raises:
        DatasetError: the column holds lists, objects, bytes, dates or times.
    """
    kind, is_type = column.dtype, column.name == "type"
    if not (kind in _TEXT_KINDS or kind.is_numeric() or kind == pl.Boolean):
        rule = "strings" if is_type else "numbers"
        raise DatasetError(f"{path}: column {column.name!r} must hold {rule}, it holds {kind}; write it as such")
    spelled = column.cast(pl.String) if is_type or kind in _TEXT_KINDS else column
    return spelled if is_type else spelled.cast(pl.Float64, strict=False)


@dataclass(frozen=True)
class EventRules:
    """Which events of a data set are positive, and how much each weighs.

    Attributes:
        weight_by: the column of the interactions that decides.
        types: the table of types; for ``type`` the weights are its weights.
        rating_threshold: for ``rating`` the least rating of a positive event; each weighs 1.
    """

    weight_by: WeightBy
    types: EventTypes
    rating_threshold: float = math.nan

    @classmethod
    def read(cls, directory: Path) -> "EventRules | None":
        """The rules of a data set; None if it has no such file.

        Raises:
            DatasetError: the file cannot be read, or a value in it breaks a rule.
        """
        path = directory / EVENTS_FILE
        if not path.exists():
            return None
        try:
            found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise DatasetError(f"{path}: cannot be read ({error}); see docs/events.md") from error
        try:
            return cls._of(found)
        except (ValueError, EventTypesError) as error:
            raise DatasetError(f"{path}: {error}") from error

    @classmethod
    def of_exported_events(cls, directory: Path) -> "EventRules":
        """The rules of a data set, or by the default table of types if it has no such file.

        A service gives the events that it stores their meaning by that table, so an impression is no like in training
        either.

        Raises:
            DatasetError: as for :meth:`read`; or another column than the type decides, which such events lack.
        """
        rules = cls.read(directory) or cls("type", EventTypes.of(None, None))
        if rules.weight_by != "type":
            raise DatasetError(
                f"{directory / EVENTS_FILE}: weight_by must be type for exported events, which have no "
                f"{rules.weight_by}, got {rules.weight_by!r}"
            )
        return rules

    @classmethod
    def _of(cls, found: Mapping[str, Any]) -> "EventRules":
        events = found.get("events", {})
        if not isinstance(events, dict):
            raise EventTypesError(f"events must be a table [events], got {events!r:.80}")
        unknown = [*found.keys() - {"weight_by", "rating_threshold", "events"}]
        unknown += [f"events.{name}" for name in events.keys() - {"default_type", "types", "outcomes"}]
        if unknown:
            raise ValueError(f"{min(unknown)} is not a known key")
        weight_by, threshold = found.get("weight_by"), found.get("rating_threshold")
        if weight_by not in DECIDING_COLUMNS:
            raise ValueError(f"weight_by must be one of {', '.join(DECIDING_COLUMNS)}, got {weight_by!r:.80}")
        is_number = _is_finite(threshold)
        if (weight_by == "rating") != (threshold is not None) or (threshold is not None and not is_number):
            raise ValueError(
                "rating_threshold must be a finite number where weight_by is rating, else missing, "
                f"got {threshold!r:.80}"
            )
        types = EventTypes.of(events.get("types"), events.get("default_type"), events.get("outcomes"))
        return cls(weight_by, types, math.nan if threshold is None else float(threshold))

    def apply(self, path: Path, events: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        """The positive events with their weights.

        Args:
            path: of the file, for messages.
            events: with the column that decides, and the row number ``ROW``.

        Returns:
            The positive rows in order, with ``weight`` (float64, above 0) in place of the column, and how many others
            there are, by their meaning: ``negative``, ``impression``, ``ignore`` or ``below_threshold``.

        Raises:
            DatasetError: the column is missing or of another kind, a value is not finite, or a weight is outside the
                bounds.
        """
        if self.weight_by not in events.columns:
            raise DatasetError(
                f"{path}: column {self.weight_by!r} is missing, which weight_by in {EVENTS_FILE} names; add it"
            )
        column = deciding_values(path, events[self.weight_by])
        if self.weight_by == "type":
            names = column.fill_null("").replace("", self.types.default_type)
            meanings = pl.Series([self.types.meaning(name) for name in names.to_list()], dtype=pl.String)
            weights = pl.Series([self.types.weight(name) for name in names.to_list()], dtype=pl.Float64)
        else:
            values = self._finite(path, events, column)
            least = self.rating_threshold if self.weight_by == "rating" else math.nextafter(0, 1)
            other = "below_threshold" if self.weight_by == "rating" else "negative"
            meanings = pl.Series([other] * len(values)).zip_with(values < least, pl.Series(["positive"] * len(values)))
            weights = pl.ones(len(values), pl.Float64, eager=True) if self.weight_by == "rating" else values
        positive = meanings == "positive"
        others = dict(meanings.filter(~positive).value_counts().sort("").iter_rows()) if not positive.all() else {}
        return events.drop(self.weight_by).with_columns(weights.alias(WEIGHT)).filter(positive), others

    def unknown_types(self, path: Path, events: pl.DataFrame) -> dict[str, int]:
        """How many events have a type that the table lacks, by its name, most frequent first.

        They count as the default type, as in the service. Where another column than the type decides there are none.

        Args:
            path: of the file, for messages.
            events: with the column that decides.

        Raises:
            DatasetError: the column is of another kind.
        """
        if self.weight_by != "type":
            return {}
        names = deciding_values(path, events[self.weight_by])
        others = names.filter(names.is_not_null() & ~names.is_in(["", *self.types.types]))
        return dict(others.value_counts().sort(["count", self.weight_by], descending=[True, False]).iter_rows())

    def _finite(self, path: Path, events: pl.DataFrame, values: pl.Series) -> pl.Series:
        self._refuse(path, events.filter(~values.is_finite().fill_null(value=False)), "must be a finite number")
        if self.weight_by == "weight":
            outside = (values > 0) & ~values.is_between(_LEAST_WEIGHT, _LARGEST_WEIGHT)
            rule = f"must be 0 or less, or from {_LEAST_WEIGHT:g} to {_LARGEST_WEIGHT:g}"
            self._refuse(path, events.filter(outside), rule, "; divide all weights by the same number")
        return values

    def _refuse(self, path: Path, bad: pl.DataFrame, rule: str, remedy: str = "") -> None:
        """Refuse rows that break a rule, if there are any."""
        if bad.height:
            raise DatasetError(
                f"{path}: column {self.weight_by!r} {rule}, got {bad[self.weight_by][0]!r} in "
                f"{rows_named(bad[ROW])}{remedy}"
            )


def _is_finite(value: object) -> bool:
    """Whether a value is a number that a float can hold; a whole number of TOML may be larger."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max
