"""Checks the items file: ids, texts and metadata columns."""

from pathlib import Path

import polars as pl

from index.items.item_ids import MAX_ID_BYTES
from index.items.item_table import ITEM_ID, POPULARITY
from training.data.dataset import CALENDAR_REMEDY, CALENDAR_RULE, IMAGE, TEXT, TITLE, broken_ids, metadata_type
from training.data.item_texts import HAS_WORD, NOT_BLANK
from training.data.tables.column_names import look_alikes
from training.data.tables.table_files import ROW, nameless_columns, read_table
from training.data.timestamps import beyond_calendar
from training.data_check.report import Column, Defect, ItemFacts, Severity, defect_of

_MOSTLY = 0.8
_NAMED = 5
_SLICE_ROWS = 16_384
_BAD_CHARACTERS = (
    (
        "control characters of Latin-1",
        "[\u0080-\u009f]",
        "a Windows-1252 file was likely read as Latin-1: convert the original with `iconv -f WINDOWS-1252 -t UTF-8`",
    ),
    (
        "control characters",
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]",
        "remove them, they are shown as boxes or not at all",
    ),
    (
        "characters that were lost",
        "\ufffd",
        "export the texts again as UTF-8; U+FFFD stands for what could not be read",
    ),
)


def read_any_items(path: Path) -> pl.DataFrame:
    """The unchecked items file with :data:`ROW`; missing columns ``title``, ``text`` and ``image`` are null.

    Raises:
        DatasetError: the file cannot be read, or has no ``item_id``.
    """
    frame = read_table(path, text=(ITEM_ID, TITLE, TEXT, IMAGE), required=[ITEM_ID])
    missing = [pl.lit(None, pl.String).alias(name) for name in (TITLE, TEXT, IMAGE) if name not in frame.columns]
    return frame.with_columns(missing)


def check_items(path: Path, items: pl.DataFrame) -> tuple[ItemFacts, list[Defect]]:
    """Check the items that :func:`read_any_items` returned.

    Args:
        path: the items file.
        items: its rows.
    """
    columns, column_defects = _check_metadata(path, items)
    filled = [pl.col(name).str.contains(HAS_WORD).fill_null(value=False) for name in (TITLE, TEXT)]
    without_text = items.filter(~filled[0] & ~filled[1])
    facts = ItemFacts(path.name, items.height, items.height - without_text.height, columns)
    return facts, [
        *_check_size(path, items),
        *_check_ids(path, items),
        *_check_names(path, items),
        *column_defects,
        *_check_texts(path, items, without_text),
        *_check_characters(path, items),
    ]


def _check_names(path: Path, items: pl.DataFrame) -> list[Defect]:
    """Find metadata columns whose name resembles a known column, and columns without a name."""
    defects = []
    for name, meant in look_alikes(items.columns, (ITEM_ID, TITLE, TEXT, IMAGE)).items():
        message = (
            f"{path.name}: column {name!r} looks like {meant!r}, which is there too, and is taken for metadata; drop "
            "or rename one of them"
        )
        defects.append(Defect("look-alike column", Severity.WARNING, 1, message))
    places = nameless_columns(path)
    if places:
        named = f"column{'s' * (len(places) > 1)} {', '.join(map(str, places[:_NAMED]))}"
        more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        message = (
            f"{path.name}: the header has no name for {named}{more}, left out; name or drop what you export (pandas "
            "writes its row numbers there without index=False)"
        )
        defects.append(Defect("column without a name", Severity.WARNING, len(places), message))
    return defects


def _check_characters(path: Path, items: pl.DataFrame) -> list[Defect]:
    """Find texts with control characters, often of a wrong conversion, and with replacement characters."""
    defects = []
    for name, dtype in items.schema.items():
        if dtype not in (pl.String, pl.List(pl.String)) or name in (ITEM_ID, IMAGE):
            continue
        cell = pl.col(name) if dtype == pl.String else pl.col(name).list.join("", ignore_nulls=True)
        for kind, pattern, remedy in _BAD_CHARACTERS:
            rows = items.filter(cell.str.contains(pattern))
            what = f"{path.name}: column {name!r} has {kind}"
            defects += defect_of(kind, Severity.WARNING, rows, what, remedy, example=name)
    return defects


def _check_size(path: Path, items: pl.DataFrame) -> list[Defect]:
    if items.height > 1:
        return []
    severity = Severity.WARNING if items.height else Severity.ERROR
    message = f"{path.name}: a catalogue needs at least 2 items to recommend one, got {items.height}; add items"
    return [Defect("too few items", severity, 1, message)]


def _check_ids(path: Path, items: pl.DataFrame) -> list[Defect]:
    ids = items[ITEM_ID]
    broken = broken_ids(ids)
    trimmed = (ids.str.strip_chars() != ids).fill_null(value=False)
    return [
        *defect_of(
            "bad item ids", Severity.ERROR, items.filter(broken),
            f"{path.name}: item_id must have 1 to {MAX_ID_BYTES} bytes and no control characters",
            "correct or remove the rows", example=ITEM_ID,
        ),
        *defect_of(
            "duplicate item ids", Severity.ERROR, items.filter(~ids.is_first_distinct() & ~broken),
            f"{path.name}: item_id is repeated", "keep one row an item", example=ITEM_ID,
        ),
        *defect_of(
            "item ids with outer spaces", Severity.WARNING, items.filter(trimmed & ~broken),
            f"{path.name}: item_id begins or ends with white space, which is part of the id",
            "trim it here and in the interactions if it is not meant", example=ITEM_ID,
        ),
    ]  # fmt: skip


def _check_texts(path: Path, items: pl.DataFrame, without_text: pl.DataFrame) -> list[Defect]:
    empty = without_text.filter(pl.col(IMAGE).str.strip_chars().fill_null("") == "")
    rest = without_text.filter(pl.col(IMAGE).str.strip_chars().fill_null("") != "")
    blank = [~pl.col(name).str.contains(NOT_BLANK).fill_null(value=False) for name in (TITLE, TEXT)]
    if rest.height and items.select((blank[0] & blank[1]).all()).item():
        message = f"{path.name}: no item has a title or text; only pictures can be trained on"
        texts = [Defect("items without text", Severity.NOTE, rest.height, message)]
    else:
        texts = defect_of(
            "items without text", Severity.WARNING, rest,
            f"{path.name}: neither title nor text has a letter or digit in it",
            "write one; these items are recommended by their picture", example=ITEM_ID,
        )  # fmt: skip
    return texts + defect_of(
        "items without text and image", Severity.WARNING, empty,
        f"{path.name}: neither image nor a title or text with a letter or digit in it",
        "give them one; only behaviour can recommend them", example=ITEM_ID,
    )  # fmt: skip


def _check_metadata(path: Path, items: pl.DataFrame) -> tuple[list[Column], list[Defect]]:
    columns, defects = [], []
    for name in items.columns:
        if name in (ROW, ITEM_ID, TITLE, TEXT, IMAGE):
            continue
        values = items[name]
        columns.append(Column(name, _spelled(values.dtype), values.null_count()))
        if name == POPULARITY:
            message = f"{path.name}: column {name!r} is reserved for the training counts; rename it"
            defects.append(Defect("reserved column", Severity.ERROR, 1, message))
        elif metadata_type(values.dtype) is None:
            message = (
                f"{path.name}: column {name!r} holds {values.dtype}, metadata must be strings, numbers, bools, dates "
                "or lists of these; flatten or drop it"
            )
            defects.append(Defect("unusable column", Severity.ERROR, 1, message))
        elif (beyond := items.filter(beyond_calendar(values))).height:
            what = f"{path.name}: column {name!r} {CALENDAR_RULE}"
            defects += defect_of("unusable dates", Severity.ERROR, beyond, what, CALENDAR_REMEDY)
        elif values.dtype == pl.String:
            defects += _check_almost_numbers(path, items, name)
    return columns, defects


def _check_almost_numbers(path: Path, items: pl.DataFrame, name: str) -> list[Defect]:
    """Find a column that is read as text because a few of its values are no numbers."""
    filled = items.filter(pl.col(name).str.contains(NOT_BLANK).fill_null(value=False))
    is_odd = [  # in slices, since stripping copies the texts
        part[name].str.strip_chars().cast(pl.Float64, strict=False).is_null()
        for part in filled.iter_slices(_SLICE_ROWS)
    ]
    odd = filled.filter(pl.concat(is_odd)) if is_odd else filled
    if not 0 < odd.height <= (1 - _MOSTLY) * filled.height:
        return []
    what = f"{path.name}: column {name!r} is read as text because {odd.height:,} of {filled.height:,} are no numbers"
    remedy = "correct or empty them to filter by range"
    return defect_of("almost numbers", Severity.WARNING, odd, what, remedy, example=name)


def _spelled(dtype: pl.DataType) -> str:
    """A column type in everyday words."""
    if isinstance(dtype, pl.List | pl.Array):
        return f"list of {_spelled(metadata_type(dtype.inner) or pl.String())}"
    if dtype == pl.Boolean:
        return "bool"
    if dtype.is_integer():
        return "integer"
    if dtype.is_numeric():
        return "number"
    if dtype.is_temporal():
        return "date"
    return "string" if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null) else str(dtype)
