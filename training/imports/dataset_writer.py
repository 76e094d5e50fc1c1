"""Writes the tables of a data set from the batches of an import and checks every row."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from index.items.item_ids import MAX_ID_BYTES
from index.items.item_table import ITEM_ID
from training.data.dataset import IMAGE, INTERACTIONS, ITEMS, TEXT, TIMESTAMP, TITLE, USER_ID, broken_ids
from training.data.event_weights import DECIDING_COLUMNS, deciding_values
from training.errors import DatasetError
from training.imports.delimited import LINE
from training.imports.import_record import ImportRecord
from training.imports.item_pictures import ItemPictures
from training.imports.source_format import IMAGE_URL, SOURCE_IMAGE, TIME, Batch

_ROWS = 1 << 17
_YEAR_5000 = 95_617_584_000_000_000  # microseconds; later ones overflow where dates are shown
_COLUMNS = (ITEM_ID, TITLE, TEXT, IMAGE, IMAGE_URL)


class _TableFile:
    """A CSV or Parquet file that is written in parts of at least 131,072 rows, which bounds the memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[pl.DataFrame] = []
        self._rows = 0
        self._parquet: pq.ParquetWriter | None = None
        self._started = False

    def write(self, rows: pl.DataFrame) -> None:
        self._waiting.append(rows)
        self._rows += rows.height
        if self._rows >= _ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self._parquet is not None:
            self._parquet.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = pl.concat(self._waiting)
        self._waiting, self._rows = [], 0
        if self._path.suffix == ".csv":
            with self._path.open("ab") as file:
                rows.write_csv(file, include_header=not self._started)
            self._started = True
            return
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        if self._parquet is None:
            self._parquet = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._parquet.write_table(table)


def write_items(
    batches: Iterable[Batch], directory: Path, suffix: str, pictures: ItemPictures, record: ImportRecord
) -> set[str]:
    """Write ``items.<suffix>``.

    Args:
        batches: of the catalogue.
        directory: of the data set.
        suffix: ``csv`` or ``parquet``.
        pictures: puts the pictures of the source into the data set.
        record: counts skipped rows.

    Returns:
        The ids of the catalogue.

    Raises:
        DatasetError: no item is left.
        OSError: a file cannot be written.
    """
    table = _TableFile(directory / f"{ITEMS}.{suffix}")
    seen: set[str] = set()
    for batch in batches:
        rows = batch.rows.with_columns(pl.col(ITEM_ID).str.strip_chars())
        broken = broken_ids(rows[ITEM_ID])
        rule = f"item id must have 1 to {MAX_ID_BYTES} bytes and no control characters"
        record.leave_out(batch.file, rule, rows.filter(broken)[LINE].to_list())
        rows = _first_of_each(rows.filter(~broken), seen, batch.file, record)
        if SOURCE_IMAGE in rows.columns:
            paths = pictures.take(rows[SOURCE_IMAGE].to_list(), rows[LINE].to_list(), batch.file)
            rows = rows.drop(SOURCE_IMAGE).with_columns(pl.Series(IMAGE, paths, dtype=pl.String))
        missing = [pl.lit(None, pl.String).alias(name) for name in (TITLE, TEXT, IMAGE) if name not in rows.columns]
        rows = rows.drop(LINE).with_columns(missing)
        first = [name for name in _COLUMNS if name in rows.columns]
        table.write(rows.select(*first, pl.exclude(first)))
        record.items += rows.height
    if not record.items:
        raise DatasetError(_nothing_left("item", record))
    table.close()
    return seen


def _first_of_each(rows: pl.DataFrame, seen: set[str], file: str, record: ImportRecord) -> pl.DataFrame:
    """The rows whose id was not seen before; adds their ids to ``seen``."""
    new = []
    for item_id in rows[ITEM_ID].to_list():
        new.append(item_id not in seen)
        seen.add(item_id)
    mask = pl.Series(new, dtype=pl.Boolean)
    again = rows.filter(~mask)[LINE].to_list()
    record.leave_out(file, "the item id is repeated; its first row was kept", again)
    return rows.filter(mask)


def write_interactions(
    batches: Iterable[Batch], directory: Path, item_ids: set[str], time_rule: str, record: ImportRecord
) -> None:
    """Write ``interactions.parquet`` with times as UTC datetimes, and the columns that may decide what events mean.

    Args:
        batches: of the events; all have the same columns.
        directory: of the data set.
        item_ids: of the catalogue.
        time_rule: the rule for times, for the record.
        record: counts skipped rows, and weights and ratings that are no numbers.

    Raises:
        DatasetError: no event is left, or ``type``, ``weight`` or ``rating`` is a column of another kind.
        OSError: the file cannot be written.
    """
    table = _TableFile(directory / f"{INTERACTIONS}.parquet")
    record.interactions = 0
    for batch in batches:
        rows = batch.rows.with_columns(pl.col(USER_ID, ITEM_ID).str.strip_chars())
        empty = [(pl.col(name).fill_null("") == "", f"the {name} is empty") for name in (USER_ID, ITEM_ID)]
        rules = [
            *empty,
            (pl.col(TIME).is_null(), f"the time is missing or bad, it {time_rule}"),
            (pl.col(TIME) < 0, "the time is before 1970"),
            (pl.col(TIME) >= _YEAR_5000, "the time is after the year 5000"),
        ]
        for broken, reason in rules:
            record.leave_out(batch.file, reason, rows.filter(broken)[LINE].to_list())
            rows = rows.filter(~broken)
        known = pl.Series([item_id in item_ids for item_id in rows[ITEM_ID].to_list()], dtype=pl.Boolean)
        unknown = rows.filter(~known)[LINE].to_list()
        record.leave_out(batch.file, "the item is not in the catalogue", unknown)
        moment = pl.from_epoch(TIME, time_unit="us").dt.replace_time_zone("UTC").alias(TIMESTAMP)
        rows = rows.filter(known)
        deciding = _deciding(rows, batch.file, record)
        rows = rows.select(USER_ID, ITEM_ID, moment).with_columns(deciding)
        table.write(rows)
        record.interactions += rows.height
    if not record.interactions:
        raise DatasetError(_nothing_left("interaction", record))
    table.close()


def _deciding(rows: pl.DataFrame, file: str, record: ImportRecord) -> list[pl.Series]:
    """The columns of a batch of events that ``events.toml`` may name."""
    columns = []
    for name in (name for name in DECIDING_COLUMNS if name in rows.columns):
        values = deciding_values(Path(file), rows[name])
        no_number = rows.filter(values.is_null() & rows[name].is_not_null())
        record.leave_empty(file, f"the {name} must be a number; left empty", no_number[LINE].to_list())
        columns.append(values)
    return columns


def _nothing_left(what: str, record: ImportRecord) -> str:
    reasons = [f"{entry.file}: {entry.count:,} rows: {entry.reason}" for entry in record.rows_left_out]
    why = "; ".join(reasons) or "the source has no rows"
    return f"no {what} is left ({why}); check that the files are what the recipe names"
