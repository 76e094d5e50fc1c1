"""Checks interactions: ids, timestamps, unknown items, duplicates, history lengths and k-cores."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.items.item_table import ITEM_ID
from training.data.dataset import TIMESTAMP, USER_ID, broken_ids
from training.data.event_weights import EventRules
from training.data.id_forms import likeness
from training.data.time_forms import form_of
from training.data.timestamps import MIXED, MIXED_TIME_RULE, TIME_RULE, Timestamps, read_timestamps
from training.data_check.event_meaning import no_positive_event, positive_events
from training.data_check.k_core import core_of, largest_core
from training.data_check.report import Defect, InteractionFacts, Severity, defect_of

_MICRO = "#microseconds"
_QUANTILES = {"min": 0.0, "10%": 0.1, "25%": 0.25, "median": 0.5, "75%": 0.75, "90%": 0.9, "99%": 0.99, "max": 1.0}
_LEAST_EVENTS = 3
_OLDEST, _LIKELY = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1e6) for year in (1990, 1992))
"""Shops on the web have no events before; ticks of .NET are read as 1990 and 1991."""
_FIRST_DAY = 86_400_000_000
_PUBLISHED_CORE = 5
_NOBODY = ("null", "none", "nan", "nil", "undefined", "<na>", "n/a", "\\n")
"""What programs write for a missing value, in lower case."""


def check_interactions(
    path: Path,
    item_ids: pl.Series | None,
    *,
    rules: EventRules | None = None,
    exclude_seen: bool = True,
    now: datetime | None = None,
) -> tuple[InteractionFacts, list[Defect]]:
    """Check one file of interactions.

    Args:
        path: the file.
        item_ids: ids of the catalogue, or None if it could not be read (then no row is an orphan).
        rules: which events are positive; only these are checked and counted. None: all.
        exclude_seen: whether the service will exclude items of the user's history.
        now: the current time, to find events in the future; the clock by default.

    Raises:
        DatasetError: the file cannot be read, lacks a column, or a weight or rating is not finite.
    """
    frame, left_out, about_meaning = positive_events(path, rules)
    times = read_timestamps(frame[TIMESTAMP])
    frame = frame.with_columns(times.microseconds.alias(_MICRO))
    known = pl.lit(value=True) if item_ids is None else pl.col(ITEM_ID).is_in(item_ids.implode())
    filled = [(pl.col(name).fill_null("") != "") for name in (USER_ID, ITEM_ID)]
    orphans = frame.filter(~known & filled[1])
    usable = frame.filter(known & filled[0] & filled[1] & pl.col(_MICRO).is_not_null())
    defects = [
        *about_meaning,
        *_check_ids(path, frame),
        *_check_times(path, frame, times, now or datetime.now(UTC)),
        *_check_orphans(path, orphans, usable, item_ids),
        *_check_repeats(path, usable),
    ]
    if frame.is_empty():
        defects.append(no_positive_event(path, left_out))
    facts = _facts(path, frame, usable, times, left_out)
    if item_ids is not None:
        defects += _check_coverage(path, facts, len(item_ids.drop_nulls().unique()))
    return facts, [
        *defects,
        *_check_repeated_targets(path, facts, exclude_seen=exclude_seen),
        *_check_lengths(path, facts),
    ]


def _check_ids(path: Path, frame: pl.DataFrame) -> list[Defect]:
    defects = []
    for name, kind in ((USER_ID, "missing user ids"), (ITEM_ID, "missing item ids")):
        empty = frame.filter(pl.col(name).fill_null("") == "")
        defects += defect_of(kind, Severity.ERROR, empty, f"{path.name}: {name} is empty", "fill or remove the rows")
        nobody = frame.filter(pl.col(name).str.strip_chars().str.to_lowercase().is_in(_NOBODY))
        defects += defect_of(
            "ids that mean none", Severity.WARNING, nobody, f"{path.name}: {name} is the word for a missing value",
            "remove the rows; they count as those of one user or item of this name", example=name,
        )  # fmt: skip
    users = frame.filter(broken_ids(frame[USER_ID]) & (frame[USER_ID].fill_null("") != ""))
    return defects + defect_of(
        "bad user ids", Severity.WARNING, users,
        f"{path.name}: user_id has more than 256 bytes or control characters",
        "training takes it, but no request can name such a user", example=USER_ID,
    )  # fmt: skip


def _check_times(path: Path, frame: pl.DataFrame, times: Timestamps, now: datetime) -> list[Defect]:
    mixed = times.unit == MIXED
    return [
        *defect_of(
            "mixed time units" if mixed else "bad timestamps", Severity.ERROR, frame.filter(pl.col(_MICRO).is_null()),
            f"{path.name}: timestamp {MIXED_TIME_RULE if mixed else TIME_RULE}", "correct or remove the rows",
            example=TIMESTAMP,
        ),
        *_check_precision(path, frame[TIMESTAMP]),
        *_check_era(path, frame, times, int((now + timedelta(days=1)).timestamp() * 1e6)),
    ]  # fmt: skip


def _check_precision(path: Path, raw: pl.Series) -> list[Defect]:
    """Find numbers of too few digits: float32 holds present times to 128 seconds."""
    if raw.dtype != pl.Float32:
        return []
    message = (
        f"{path.name}: timestamp holds Float32, which rounds present times to 128 seconds, so the order of events is "
        "lost; write the times as whole numbers or dates"
    )
    return [Defect("coarse timestamps", Severity.WARNING, len(raw), message)]


def _check_era(path: Path, frame: pl.DataFrame, times: Timestamps, tomorrow: int) -> list[Defect]:
    """Find timestamps before 1990 or in the future; if all are, guess the intended format."""
    future = frame.filter(pl.col(_MICRO) > tomorrow)
    read = times.microseconds.drop_nulls()
    first, last = read.min(), read.max()
    if not isinstance(first, int) or not isinstance(last, int):
        return []
    form = form_of(frame[TIMESTAMP]) if last < _LIKELY or first > tomorrow else None
    old = last < _OLDEST or (form is not None and first <= tomorrow)
    if not old and first <= tomorrow:
        return defect_of(
            "timestamps of zero", Severity.WARNING, frame.filter(pl.col(_MICRO) < _FIRST_DAY),
            f"{path.name}: timestamp is 1970-01-01, which often stands for a missing time",
            "correct or remove the rows; they count as the oldest events of their users", example=TIMESTAMP,
        ) + defect_of(
            "timestamps in the future", Severity.WARNING, future,
            f"{path.name}: timestamp lies in the future", "check clock and unit", example=TIMESTAMP,
        )  # fmt: skip
    kind, when = ("timestamps before 1990", "before 1990") if old else ("timestamps in the future", "in the future")
    if form is not None:
        advice = f"they look like {form.name}: {form.remedy}"
    else:
        advice = "check unit and form; of mere counters the order is right, recency and dates are not"
    message = (
        f"{path.name}: every timestamp lies {when} ({_moment(first)} … {_moment(last)}, as {times.unit}, the first row "
        f"has {frame[TIMESTAMP][0]!r}); {advice}"
    )
    return [Defect(kind, Severity.WARNING, len(read), message)]


def _check_orphans(path: Path, orphans: pl.DataFrame, usable: pl.DataFrame, item_ids: pl.Series | None) -> list[Defect]:
    form = None if item_ids is None else likeness(orphans[ITEM_ID], item_ids)
    if usable.is_empty() and orphans.height:
        what = f"{path.name}: no usable interaction names an item of the catalogue"
        remedy = form or "use the same ids in both"
        return defect_of("orphan interactions", Severity.ERROR, orphans, what, remedy, example=ITEM_ID)
    what = f"{path.name}: item_id is not in the catalogue"
    remedy = form or "add the items, or accept that these rows are left out"
    return defect_of("orphan interactions", Severity.WARNING, orphans, what, remedy, example=ITEM_ID)


def _check_repeats(path: Path, usable: pl.DataFrame) -> list[Defect]:
    again = usable.filter(~pl.struct(USER_ID, ITEM_ID, _MICRO).is_first_distinct())
    ties = usable.height - usable.select(pl.struct(USER_ID, _MICRO).n_unique()).item()
    defects = defect_of(
        "duplicate interactions", Severity.WARNING, again,
        f"{path.name}: user, item and timestamp are those of an earlier row", "remove the copies", example=USER_ID,
    )  # fmt: skip
    if ties:
        message = (
            f"{path.name}: {ties:,} of {usable.height:,} rows share their timestamp with another of the same user; "
            "these keep the order of the file, so it must not be sorted by anything that tells the item"
        )
        defects.append(Defect("tied timestamps", Severity.NOTE, ties, message))
    return defects


def _check_coverage(path: Path, facts: InteractionFacts, catalogue: int) -> list[Defect]:
    untouched = catalogue - facts.items
    if not untouched or not facts.usable:
        return []
    message = (
        f"{path.name}: {untouched:,} of {catalogue:,} items were never touched; they are recommended by text and image"
    )
    return [Defect("items never touched", Severity.NOTE, untouched, message)]


def _check_repeated_targets(path: Path, facts: InteractionFacts, *, exclude_seen: bool) -> list[Defect]:
    if not facts.repeats:
        return []
    share = facts.repeats / facts.long_enough
    if exclude_seen:
        advice = (
            "the service leaves such items out (exclude_seen), so `evaluate` counts them as misses; where people buy "
            "the same again, set exclude_seen = false under [encoder] in the configuration"
        )
    else:
        advice = "exclude_seen = false lets the service answer them, and `evaluate` counts them"
    message = (
        f"{path.name}: {facts.repeats:,} of {facts.long_enough:,} users' last events ({share:.0%}) are of an item that "
        f"they had before; {advice}"
    )
    return [Defect("repeated items", Severity.NOTE, facts.repeats, message)]


def _check_lengths(path: Path, facts: InteractionFacts) -> list[Defect]:
    if facts.long_enough or not facts.usable:
        return []
    message = (
        f"{path.name}: no user has {_LEAST_EVENTS} interactions, so none can be held out for validation and test; "
        "add longer histories"
    )
    return [Defect("no user to evaluate", Severity.ERROR, 1, message)]


def _facts(
    path: Path, frame: pl.DataFrame, usable: pl.DataFrame, times: Timestamps, left_out: Mapping[str, int]
) -> InteractionFacts:
    lengths = usable.group_by(USER_ID).len()["len"].to_numpy()
    users, items = _pairs(usable)
    first, last = usable[_MICRO].min(), usable[_MICRO].max()
    return InteractionFacts(
        file=path.name,
        rows=frame.height + sum(left_out.values()),
        left_out=dict(left_out),
        usable=usable.height,
        users=len(lengths),
        items=usable[ITEM_ID].n_unique(),
        time_unit=times.unit,
        first=_moment(first),
        last=_moment(last),
        lengths={name: float(np.quantile(lengths, q)) for name, q in _QUANTILES.items()} if len(lengths) else {},
        long_enough=int((lengths >= _LEAST_EVENTS).sum()),
        repeats=_repeated_targets(usable),
        five_core=core_of(users, items, _PUBLISHED_CORE),
        largest_core=largest_core(users, items),
    )


def _repeated_targets(usable: pl.DataFrame) -> int:
    """Number of test targets (docs/method.md, "Evaluation protocol") that occur in their own history."""
    ordered = usable.select(USER_ID, ITEM_ID, _MICRO).sort(USER_ID, _MICRO, maintain_order=True)
    seen = ordered.select(USER_ID, again=~pl.struct(USER_ID, ITEM_ID).is_first_distinct())
    last = seen.group_by(USER_ID, maintain_order=True).agg(pl.len(), pl.col("again").last())
    return int(last.filter(pl.col("len") >= _LEAST_EVENTS)["again"].to_numpy().sum())


def _pairs(usable: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct pairs of user and item numbers."""
    numbered = usable.select(pl.col(name).rank("dense") - 1 for name in (USER_ID, ITEM_ID)).unique()
    return numbered[USER_ID].to_numpy().astype(np.int64), numbered[ITEM_ID].to_numpy().astype(np.int64)


def _moment(microseconds: object) -> str | None:
    if not isinstance(microseconds, int):
        return None
    return datetime.fromtimestamp(microseconds / 1e6, tz=UTC).isoformat(timespec="seconds")
