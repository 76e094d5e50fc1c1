"""Reads a data set: the catalogue with texts and pictures, and the interactions.

A directory or a prefix of an object store holds ``items.{csv,jsonl,parquet}``, ``interactions.{csv,parquet}``, either
also as a folder of Parquet files, and the pictures at the paths that the ``image`` column names, relative to it.
Reading is strict; ``vlm2rec data check`` lists every defect at once.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from index.bundle.event_types import EventTypes
from index.items.item_ids import MAX_ID_BYTES
from index.items.item_table import ITEM_ID, POPULARITY
from training.data.data_place import TABLES, AnyPlace, DataPlace, confined_file
from training.data.event_weights import EVENTS_FILE, WEIGHT, EventRules
from training.data.id_forms import likeness
from training.data.item_texts import ItemTexts
from training.data.stored.stored_pictures import PictureFile
from training.data.tables.mapped_table import LARGE_BYTES, MappedTable
from training.data.tables.table_files import ROW, find_table, read_table, rows_named, suffix_of
from training.data.timestamps import MIXED, MIXED_TIME_RULE, TIME_RULE, beyond_calendar, read_timestamps
from training.errors import DatasetError

ITEMS = "items"
INTERACTIONS = "interactions"
ITEM_SUFFIXES = TABLES[ITEMS]
INTERACTION_SUFFIXES = TABLES[INTERACTIONS]
USER_ID = "user_id"
TIMESTAMP = "timestamp"
TITLE = "title"
TEXT = "text"
IMAGE = "image"
_CONTROL = "[\u0001-\u001f\u007f-\u009f\\x00]"
_SLICE_ROWS = 16_384
CALENDAR_RULE = "must hold dates of the years 1 to 9999"
CALENDAR_REMEDY = "write another date, or leave the cell empty (databases write infinity as such a date)"
_MOST_UNKNOWN_TYPES = 20
_SEE_ALL = "`vlm2rec data check` lists every such row"


class WeighedInteractions(NamedTuple):
    """The positive events of a file.

    Attributes:
        events: ``user_id``, ``item_id``, ``timestamp`` (int64 seconds), and ``weight`` if they do not weigh the same.
        left_out: how many others there are, by their meaning.
        unknown_types: how many events have a type that the table lacks, by its name.
    """

    events: pl.DataFrame
    left_out: Mapping[str, int]
    unknown_types: Mapping[str, int]


@dataclass(frozen=True)
class Dataset:
    """A catalogue and its interactions.

    Attributes:
        directory: of the tables, and of the pictures, which are confined to it, unless ``place`` says otherwise.
        items: one row an item in file order: ``item_id`` (string, unique), ``title``, ``text``, ``image`` (string or
            null; the picture's path relative to ``directory``), then every further column as metadata.
        interactions: ``user_id``, ``item_id`` (strings) and ``timestamp`` (int64, seconds since 1970 UTC), only rows
            whose item exists. Users in order of first appearance; a user's rows from oldest to newest, ties in file
            order.
        orphans: interactions left out because the catalogue lacks their item.
        rules: what ``events.toml`` says of the events; None: all are positive and weigh the same. Otherwise
            ``interactions`` has ``weight`` too (float64, above 0), unless all weigh the same.
        left_out: interactions left out because they are not positive, by their meaning.
        unknown_types: events whose type the table of ``rules`` lacks, which count as the default type, by its name,
            most frequent first.
        source: the file of the interactions.
        place: where the data set lies; None: in ``directory``.
    """

    directory: Path
    items: pl.DataFrame
    interactions: pl.DataFrame
    orphans: int = 0
    rules: EventRules | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    unknown_types: Mapping[str, int] = field(default_factory=dict)
    source: Path | None = None
    place: DataPlace | None = None

    def __len__(self) -> int:
        """Number of items."""
        return self.items.height

    @property
    def event_types(self) -> EventTypes | None:
        """The table of types that weighed the interactions; None: types had no part in it."""
        return self.rules.types if self.rules is not None and self.rules.weight_by == "type" else None

    def most_frequent_unknown_types(self) -> dict[str, int]:
        """The first of ``unknown_types``, at most twenty: clients choose the names, so there may be any number."""
        return dict(islice(self.unknown_types.items(), _MOST_UNKNOWN_TYPES))

    def item_ids(self) -> list[str]:
        """Item ids in file order."""
        return self.items[ITEM_ID].to_list()

    def texts(self) -> ItemTexts:
        """The text of each item: ``text``, else ``title``; None where both are missing or only white space."""
        return ItemTexts(self.items.select(TEXT, TITLE))

    def image_path(self, row: int) -> PictureFile | None:
        """The picture of an item, see :meth:`picture`."""
        return self.picture(self.items[IMAGE][row])

    def picture(self, name: str | None) -> PictureFile | None:
        """The picture at a path.

        Returns:
            A file inside ``directory``, or an object of the object store; None if no path is given, there is no such
            file, or the path leads out of the data set (absolute, through ``..`` or through a symbolic link).

        Raises:
            DatasetError: the object store does not answer, or refuses.
        """
        return confined_file(self.directory, name) if self.place is None else self.place.picture(name)

    def pictures_not_found(self) -> int:
        """Number of items that name a picture which does not exist or lies outside the data set.

        Raises:
            DatasetError: the object store does not answer, or refuses.
        """
        named = self.items[IMAGE].drop_nulls()
        return sum(self.picture(name) is None for name in named if name.strip())

    def copies(self) -> int:
        """Number of interactions with the user, the item and the second of an earlier one."""
        return self.interactions.height - self.interactions.select(USER_ID, ITEM_ID, TIMESTAMP).unique().height

    def name(self) -> str:
        """Absolute path or URL of the data set."""
        return str(self.directory.resolve()) if self.place is None else self.place.absolute()

    def naming(self) -> AbstractContextManager[None]:
        """Errors of the block name the object store in place of the copy, see :meth:`DataPlace.naming`."""
        return nullcontext() if self.place is None else self.place.naming()

    def metadata(self) -> pa.Table:
        """``title``, ``text``, ``image`` and every further column, one row an item; never ``item_id``."""
        columns = self.items.drop(ITEM_ID)
        schema = columns.head(0).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
        plain = pa.schema([pa.field(field.name, _plain_type(field.type)) for field in schema])
        if columns.estimated_size() > LARGE_BYTES:
            return MappedTable.write(columns.iter_slices(_SLICE_ROWS), plain=plain).table
        return columns.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(plain)


def load_dataset(data: AnyPlace, *, interactions: Path | None = None, rules: EventRules | None = None) -> Dataset:
    """Read a data set.

    Args:
        data: its directory, or ``s3://bucket/prefix``.
        interactions: interactions to use in place of the directory's own.
        rules: which events are positive, and how much each weighs; None: what ``events.toml`` says.

    Raises:
        DatasetError: a file or column is missing or unreadable, an item id is repeated or breaks the rule of
            :func:`index.items.item_ids.check_item_id`, a user id or a timestamp is missing or bad, or no interaction
            names an item of the catalogue; or the object store does not answer.
    """
    place = DataPlace.open(data)
    with place.naming():
        return _load(place, interactions, rules)


def _load(place: DataPlace, interactions: Path | None, rules: EventRules | None) -> Dataset:
    directory = place.directory
    items = read_items(find_table(directory, ITEMS, ITEM_SUFFIXES))
    path = interactions or find_table(directory, INTERACTIONS, INTERACTION_SUFFIXES)
    rules = EventRules.read(directory) if rules is None else rules
    events, left_out, unknown_types = read_weighed_interactions(path, rules)
    known = events.filter(pl.col(ITEM_ID).is_in(items[ITEM_ID].implode()))
    if known.is_empty():
        remedy = likeness(events[ITEM_ID], items[ITEM_ID]) or "use one set of ids"
        raise DatasetError(
            f"{path}: none of {events.height:,} interactions names an item of the catalogue "
            f"(the first names {events[ITEM_ID][0]!r}, the first item is {items[ITEM_ID][0]!r}); {remedy}"
        )
    orphans = events.height - known.height
    return Dataset(directory, items, known, orphans, rules, left_out, unknown_types, path, place)


def read_items(path: Path) -> pl.DataFrame:
    """Read and check the items file; see :attr:`Dataset.items`.

    Raises:
        DatasetError: the file cannot be read, breaks a rule, or holds a date outside the years 1 to 9999.
    """
    frame = read_table(path, text=(ITEM_ID, TITLE, TEXT, IMAGE), required=[ITEM_ID])
    if frame.is_empty():
        raise DatasetError(f"{path}: a catalogue needs at least one item, got none; add rows")
    if POPULARITY in frame.columns:
        raise DatasetError(f"{path}: column {POPULARITY!r} is reserved for the training counts; rename it")
    _check_item_ids(path, frame)
    for name in frame.columns:
        _check_dates(path, frame, name)
    frame = frame.drop(ROW)
    missing = [pl.lit(None, pl.String).alias(name) for name in (TITLE, TEXT, IMAGE) if name not in frame.columns]
    frame = frame.with_columns(missing).with_columns(_metadata_casts(path, frame))
    return frame.select(ITEM_ID, TITLE, TEXT, IMAGE, pl.exclude(ITEM_ID, TITLE, TEXT, IMAGE))


def read_interactions(path: Path) -> pl.DataFrame:
    """Read one file of interactions, in which every event is positive; its items need not be in a catalogue.

    Args:
        path: a ``.csv`` or ``.parquet`` file with ``user_id``, ``item_id`` and ``timestamp`` (see
            :mod:`training.data.timestamps`); further columns are not read.

    Returns:
        ``user_id``, ``item_id``, ``timestamp`` (int64 seconds) in the order of :attr:`Dataset.interactions`; fractions
        of a second count for the order.

    Raises:
        DatasetError: the file cannot be read, has no rows, or a value breaks a rule.
    """
    return read_weighed_interactions(path, None).events


def read_weighed_interactions(path: Path, rules: EventRules | None) -> WeighedInteractions:
    """Read the positive events of a file of interactions, see :func:`read_interactions`.

    Args:
        path: a ``.csv`` or ``.parquet`` file.
        rules: which events are positive, and how much each weighs; None: all, and the same.

    Raises:
        DatasetError: the file cannot be read, has no positive event, or a value breaks a rule.
    """
    frame = read_any_interactions(path, () if rules is None else (rules.weight_by,))
    left_out, unknown_types = dict[str, int](), dict[str, int]()
    if rules is not None:
        unknown_types = rules.unknown_types(path, frame)
        frame, left_out = rules.apply(path, frame)
        if frame[WEIGHT].n_unique() <= 1:
            frame = frame.drop(WEIGHT)
    if frame.is_empty():
        others = "".join(f", {count:,} {meaning}" for meaning, count in left_out.items())
        if others:
            raise DatasetError(
                f"{path}: needs at least one positive event, got none{others}; correct {EVENTS_FILE} or the rows"
            )
        raise DatasetError(f"{path}: needs at least one interaction, got none; add rows")
    for name in (USER_ID, ITEM_ID):
        empty = frame.filter(pl.col(name).is_null() | (pl.col(name) == ""))
        if empty.height:
            raise DatasetError(f"{path}: column {name!r} must not be empty, {rows_named(empty[ROW])}; {_SEE_ALL}")
    read = read_timestamps(frame[TIMESTAMP])
    bad = frame.filter(read.microseconds.is_null())
    if bad.height:
        rule = MIXED_TIME_RULE if read.unit == MIXED else TIME_RULE
        raise DatasetError(
            f"{path}: column 'timestamp' {rule}, got {bad[TIMESTAMP][0]!r} in {rows_named(bad[ROW])}; {_SEE_ALL}"
        )
    ordered = in_order(frame.drop(ROW).with_columns(read.microseconds.alias(TIMESTAMP)))
    return WeighedInteractions(ordered.with_columns(pl.col(TIMESTAMP) // 1_000_000), left_out, unknown_types)


def read_any_interactions(path: Path, more: Sequence[str] = ()) -> pl.DataFrame:
    """Unchecked ``user_id``, ``item_id`` and ``timestamp`` of a file, with the row number ``ROW``.

    Args:
        path: a ``.csv`` or ``.parquet`` file.
        more: columns to read besides, those that the file lacks are left out.

    Raises:
        DatasetError: the file cannot be read, lacks a column, or has a date outside the years 1 to 9999.
    """
    if suffix_of(path).lstrip(".") not in INTERACTION_SUFFIXES:
        raise DatasetError(f"{path}: interactions are a .csv or .parquet file, got the suffix {path.suffix!r}")
    names = (USER_ID, ITEM_ID, TIMESTAMP)
    text = names if path.suffix.lower() == ".csv" else (USER_ID, ITEM_ID)
    frame = read_table(path, text=text, required=names, columns=(*names, *more))
    _check_dates(path, frame, TIMESTAMP)
    return frame


def _check_dates(path: Path, frame: pl.DataFrame, name: str) -> None:
    """Refuse dates that no answer can name: Parquet holds them, Python and ISO 8601 do not.

    Raises:
        DatasetError: a date lies outside the years 1 to 9999.
    """
    beyond = frame[ROW].filter(beyond_calendar(frame[name]))
    if len(beyond):
        raise DatasetError(f"{path}: column {name!r} {CALENDAR_RULE}, {rows_named(beyond)}; {CALENDAR_REMEDY}")


def in_order(interactions: pl.DataFrame) -> pl.DataFrame:
    """Users in order of first appearance, a user's rows by timestamp, ties in the order given (a stable sort)."""
    place, first = "__place", "__first"  # a frame with these columns would be refused by polars
    ranked = interactions.with_row_index(place).with_columns(pl.col(place).min().over(USER_ID).alias(first))
    return ranked.sort(first, TIMESTAMP, maintain_order=True).drop(place, first)


def _check_item_ids(path: Path, frame: pl.DataFrame) -> None:
    ids = frame[ITEM_ID]
    broken = broken_ids(ids)
    if broken.any():
        raise DatasetError(
            f"{path}: an item id must have 1 to {MAX_ID_BYTES} bytes and no control characters, got "
            f"{str(ids.filter(broken)[0])[:40]!r} in {rows_named(frame[ROW].filter(broken))}; {_SEE_ALL}"
        )
    repeated = ~ids.is_first_distinct()
    if repeated.any():
        raise DatasetError(
            f"{path}: item ids must be unique, {ids.filter(repeated)[0]!r} is repeated in "
            f"{rows_named(frame[ROW].filter(repeated))}; keep one row an item"
        )


def broken_ids(ids: pl.Series) -> pl.Series:
    """Which ids are missing or break the rule of :func:`index.items.item_ids.check_item_id`."""
    size = ids.str.len_bytes()
    return ((size < 1) | (size > MAX_ID_BYTES) | ids.str.contains(_CONTROL)).fill_null(value=True)


def _metadata_casts(path: Path, frame: pl.DataFrame) -> list[pl.Expr]:
    """Casts of the metadata columns to strings, bools, numbers, dates and lists of these."""
    casts = []
    for name, dtype in frame.schema.items():
        target = metadata_type(dtype)
        if target is None:
            raise DatasetError(
                f"{path}: column {name!r} holds {dtype}, metadata must be strings, numbers, bools, dates or lists of "
                "these; flatten or drop it"
            )
        casts.append(pl.col(name).cast(target))
    return casts


def metadata_type(dtype: object) -> pl.DataType | None:
    """The type in which a metadata column of this type is stored; None if it cannot be stored."""
    if isinstance(dtype, pl.List | pl.Array):
        inner = None if isinstance(dtype.inner, pl.List | pl.Array) else metadata_type(dtype.inner)
        return None if inner is None else pl.List(inner)
    if isinstance(dtype, pl.Categorical | pl.Enum | pl.Null):
        return pl.String()
    if isinstance(dtype, pl.Decimal | pl.Int128):
        return pl.Float64()
    if isinstance(dtype, pl.Datetime):  # Python has no nanoseconds, and answers show none
        return pl.Datetime("us" if dtype.time_unit == "ns" else dtype.time_unit, dtype.time_zone)
    if isinstance(dtype, pl.String | pl.Boolean | pl.Date):
        return dtype
    if isinstance(dtype, pl.DataType) and dtype.is_numeric():
        return dtype
    return None


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return pa.string() if pa.types.is_large_string(kind) else kind


def row_numbers(item_ids: Sequence[str] | pl.Series, column: pl.Series) -> pl.Series:
    """Item rows of a column of ids.

    Args:
        item_ids: the catalogue's ids in order, unique.
        column: ids, each in ``item_ids``.

    Returns:
        int64 rows, null for an id that the catalogue lacks.
    """
    ids = pl.Series(item_ids, dtype=pl.String)
    is_named = ids.is_in(column.unique().implode())  # a table of all ids would take 200 bytes an item
    rows = is_named.arg_true().cast(pl.Int64)
    return column.replace_strict(ids.filter(is_named), rows, default=None, return_dtype=pl.Int64)
