"""The interactions of one retraining: those of the data set, then the exported events, split by time.

They are frozen in files, so that a job that was killed goes on with what it began with.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from index.errors import EventExportError
from index.event_export.directory import ExportDirectory
from index.event_export.object_path import ExportPath, export_path
from index.items.item_table import ITEM_ID
from index.machine.text_files import replace_text
from training.data.data_place import AnyPlace, DataPlace
from training.data.dataset import INTERACTION_SUFFIXES, INTERACTIONS, TIMESTAMP, USER_ID, read_interactions
from training.data.tables.table_files import find_table, read_table, suffix_of
from training.data.timestamps import EARLIEST_S, read_timestamps
from training.errors import DatasetError
from training.events.catalogue_state import catalogue_state
from training.events.export_reader import TYPE, ExportedEvents, read_export

_INPUTS_FILE: Final = "inputs.json"
_FORMAT_VERSION: Final = 2
_CATALOGUE: Final = "catalogue"
_DAY_S: Final = 86_400
_COLUMNS: Final = (USER_ID, ITEM_ID, TIMESTAMP, TYPE)


@dataclass(frozen=True)
class RetrainingInputs:
    """Frozen interactions of a job.

    Attributes:
        directory: of the job; whatever the job makes is in it, until it ends.
        record: what ``inputs.json`` says: ``cutoff`` (seconds since 1970 UTC), ``exported`` (`ExportCounts` as JSON),
            ``from_data_set``, ``replaced``, ``until``, ``served_recipe`` and ``catalogue`` (its state).
        resumed: whether an earlier job froze them.
        outdated: whether the catalogue has changed since the earlier job.
    """

    directory: Path
    record: dict[str, Any]
    resumed: bool
    outdated: bool = False

    @property
    def everything(self) -> Path:
        """Interactions file with every event."""
        return self.directory / "everything.parquet"

    @property
    def before(self) -> Path:
        """Interactions file with the events before the cut-off."""
        return self.directory / "before.parquet"

    @property
    def cutoff(self) -> int:
        """Seconds since 1970 UTC; events from here on measure."""
        return int(self.record["cutoff"])

    def end(self) -> None:
        """Delete all files of the job, which hold events of users; the next job begins anew."""
        _delete(self.directory)


def freeze_inputs(
    directory: Path,
    data: AnyPlace,
    events: str | ExportPath,
    *,
    days: float,
    mark: str,
    served_recipe: Mapping[str, Any] | None = None,
    drop_outdated: Callable[[], None] = lambda: None,
) -> RetrainingInputs:
    """Freeze the interactions of a job, or find those of a killed job with the same mark.

    Interactions of the data set count up to the arrival of the first exported event: later ones are taken to be in the
    export, and so are those of the same user, item and second. Inputs are frozen anew if a user was erased since. If
    only the catalogue has changed since, they stay, and what was made of the earlier catalogue is deleted.

    Args:
        directory: of the job.
        data: the data set: its directory, or ``s3://bucket/prefix``.
        events: the export: its directory, or ``s3://bucket/prefix``.
        days: the events of these last days measure.
        mark: of the configuration; a killed job with another one begins anew.
        served_recipe: of the served bundle, for the record.
        drop_outdated: deletes what a killed job made of an earlier catalogue; called before the new state is recorded.

    Raises:
        DatasetError: a file cannot be read, there are no events, or none before the cut-off; or the items file breaks a
            rule.
        OSError: the directory cannot be written.
    """
    place, shop = export_path(events), DataPlace.open(data)
    inputs = {
        "format": _FORMAT_VERSION,
        "mark": mark,
        "data": shop.absolute(),
        "events": str(place.resolve() if isinstance(place, Path) else place),
        "erased": _erasures(place),
    }
    catalogue = catalogue_state(shop)
    if (found := _read(directory / _INPUTS_FILE)) and {name: found.get(name) for name in inputs} == inputs:
        return _resumed(directory, found, catalogue, drop_outdated)
    _delete(directory)
    directory.mkdir(parents=True)
    exported = read_export(place)
    frame, own, replaced = _joined(_own(shop), exported)
    if frame.is_empty():
        raise DatasetError(f"{events}: neither the export nor {shop.name} has an interaction; export events first")
    cutoff, before = _before_last_days(frame, days, events)
    record = inputs | {
        _CATALOGUE: catalogue,
        "cutoff": cutoff,
        "served_recipe": None if served_recipe is None else dict(served_recipe),
        "until": exported.until,
        "exported": exported.counts.as_json(),
        "from_data_set": own,
        "replaced": replaced,
        "interactions": frame.height,
        "before": before.height,
    }
    return _frozen(directory, record, frame, before)


def _resumed(
    directory: Path, found: dict[str, Any], catalogue: str, drop_outdated: Callable[[], None]
) -> RetrainingInputs:
    """The inputs of a killed job, whose record then names the catalogue of today."""
    outdated = found.get(_CATALOGUE) != catalogue
    if outdated:
        drop_outdated()
        _record(directory, found | {_CATALOGUE: catalogue})
    return RetrainingInputs(directory, found | {_CATALOGUE: catalogue}, resumed=True, outdated=outdated)


def _frozen(directory: Path, record: dict[str, Any], frame: pl.DataFrame, before: pl.DataFrame) -> RetrainingInputs:
    """Write the inputs of a new job, the record last: a job killed before it begins anew."""
    frozen = RetrainingInputs(directory, record, resumed=False)
    frame.write_parquet(frozen.everything)
    before.write_parquet(frozen.before)
    _record(directory, record)
    return frozen


def _record(directory: Path, record: dict[str, Any]) -> None:
    replace_text(directory / _INPUTS_FILE, json.dumps(record, indent=1))


def _before_last_days(frame: pl.DataFrame, days: float, events: str | ExportPath) -> tuple[int, pl.DataFrame]:
    """The cut-off in seconds since 1970 UTC, and the interactions before it.

    Raises:
        DatasetError: there are none.
    """
    newest = float(frame[TIMESTAMP].max())  # type: ignore[arg-type]  # a number
    # Whole seconds, as a data set has them; any number of days may be given.
    cutoff = math.floor(max(newest - days * _DAY_S, EARLIEST_S))
    before = frame.filter(pl.col(TIMESTAMP) < cutoff)
    if before.is_empty():
        raise DatasetError(
            f"{events}: all {frame.height:,} interactions are of the last {days:g} days, so none is left to learn from "
            "before them; give fewer --measure-days"
        )
    return cutoff, before


def _own(shop: DataPlace) -> pl.DataFrame:
    """The interactions of the data set, with their types where it names some; none if it has no such file."""
    names = (USER_ID, ITEM_ID, TIMESTAMP, TYPE)
    names_of_table = (INTERACTIONS, *(f"{INTERACTIONS}.{suffix}" for suffix in INTERACTION_SUFFIXES))
    if not any((shop.directory / name).exists() for name in names_of_table):
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String) | {TIMESTAMP: pl.Int64})
    with shop.naming():
        return _typed(find_table(shop.directory, INTERACTIONS, INTERACTION_SUFFIXES), names)


def _typed(path: Path, names: Sequence[str]) -> pl.DataFrame:
    """The checked interactions of a file with their types, null where it names none."""
    checked = read_interactions(path)
    text = names if suffix_of(path) == ".csv" else (USER_ID, ITEM_ID)
    frame = read_table(path, text=[name for name in text if name != TYPE], required=names[:3], columns=names)
    if TYPE not in frame.columns:
        return checked.with_columns(pl.lit(None, pl.String).alias(TYPE))
    times = read_timestamps(frame[TIMESTAMP]).microseconds
    ordered = frame.with_columns(times.alias(TIMESTAMP), pl.col(TYPE).cast(pl.String)).sort(
        TIMESTAMP, maintain_order=True
    )  # by fractions of a second too, which whole seconds no longer tell apart
    return ordered.with_columns(pl.col(TIMESTAMP) // 1_000_000).select(names)


def _joined(own: pl.DataFrame, exported: ExportedEvents) -> tuple[pl.DataFrame, int, int]:
    """All interactions by time, and how many of the data set count and are replaced."""
    events = exported.interactions.select(_COLUMNS)
    sent = events.select(USER_ID, ITEM_ID, pl.col(TIMESTAMP).floor().cast(pl.Int64))
    kept = own.filter(pl.col(TIMESTAMP) < exported.since).join(sent, on=sent.columns, how="anti", maintain_order="left")
    timed = kept.with_columns(pl.col(TIMESTAMP).cast(pl.Float64)).select(_COLUMNS)
    return pl.concat([timed, events]).sort(TIMESTAMP, maintain_order=True), kept.height, own.height - kept.height


def _erasures(events: str | ExportPath) -> str:
    """What changes with every erasure."""
    try:
        erasures = ExportDirectory(events).erasures()
    except EventExportError as error:
        raise DatasetError(str(error)) from error
    return erasures.state


def _read(path: Path) -> dict[str, Any] | None:
    """The record of an earlier job; None if there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _delete(directory: Path) -> None:
    """Delete a job, its record first: what is left after a kill is no job to go on with."""
    if directory.exists():
        (directory / _INPUTS_FILE).unlink(missing_ok=True)
        shutil.rmtree(directory)
