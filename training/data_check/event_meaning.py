"""Checks what the events of a file mean: their types, weights or ratings by ``events.toml``."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from training.data.dataset import read_any_interactions
from training.data.event_weights import DECIDING_COLUMNS, EVENTS_FILE, EventRules
from training.data_check.report import Defect, Severity, defect_of, examples


def positive_events(path: Path, rules: EventRules | None) -> tuple[pl.DataFrame, Mapping[str, int], list[Defect]]:
    """Read a file of interactions and leave out what is not positive, as training does.

    Args:
        path: the file.
        rules: which events are positive; None: all.

    Returns:
        The unchecked positive rows, how many others there are by their meaning, and defects of the deciding column.

    Raises:
        DatasetError: the file cannot be read, lacks a column, or a weight or rating is not finite.
    """
    if rules is None:
        frame = read_any_interactions(path, DECIDING_COLUMNS)
        return frame, {}, [_unread(path, frame[name]) for name in DECIDING_COLUMNS if name in frame.columns]
    frame = read_any_interactions(path, (rules.weight_by,))
    positive, left_out = rules.apply(path, frame)
    return positive, left_out, _check_types(path, frame, rules)


def no_positive_event(path: Path, left_out: Mapping[str, int]) -> Defect:
    """The defect of a file without a positive event."""
    others = ", ".join(f"{count:,} {meaning}" for meaning, count in left_out.items())
    message = f"{path.name}: needs at least one interaction, got none; add rows"
    if others:
        message = f"{path.name}: needs at least one positive event, got {others}; correct {EVENTS_FILE} or the rows"
    return Defect("no interactions", Severity.ERROR, 1, message)


def _unread(path: Path, column: pl.Series) -> Defect:
    """A column that would decide which events are positive if there were a file of rules."""
    values = examples(column.drop_nulls().unique(maintain_order=True).to_list())
    message = (
        f"{path.name}: column {column.name!r} ({values}) is not read, every row counts as positive; if some are not, "
        f'say so in {EVENTS_FILE} with weight_by = "{column.name}"'
    )
    return Defect("unread event column", Severity.NOTE, 1, message)


def _check_types(path: Path, frame: pl.DataFrame, rules: EventRules) -> list[Defect]:
    """Find types that the table lacks, which count as the default type."""
    if rules.weight_by != "type":
        return []
    name, table = rules.weight_by, rules.types
    others = frame.with_columns(pl.col(name).cast(pl.String)).filter(
        ~pl.col(name).is_in([*table.types]) & (pl.col(name) != "")
    )
    what = f"{path.name}: a type that {EVENTS_FILE} does not know counts as {table.default_type!r}"
    remedy = "add it under [events.types], or spell it as there (capitals count)"
    return defect_of("unknown event types", Severity.WARNING, others, what, remedy, example=name)
