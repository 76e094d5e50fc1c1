"""Reads CSV, JSON Lines and Parquet tables into polars; every error names the file and a remedy."""

import codecs
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from training.data.tables import csv_records, json_lines
from training.data.tables.cell_types import narrowest
from training.data.tables.column_names import is_nameless, names_fault
from training.data.tables.file_kind import encoding_fault, foreign_kind
from training.data.tables.parquet_table import PARQUET, ParquetTable
from training.errors import DatasetError

ROW = "#row"
"""Column of record numbers that :func:`read_table` adds; a CSV header does not count."""

_PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst")
_HEADER_BYTES = 2**20
_NAME_CHARACTERS = 10_000
_FOREIGN = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, csv.Error)


def find_table(directory: Path, stem: str, suffixes: Sequence[str]) -> Path:
    """The one file ``stem.suffix`` of a dataset directory, else its folder ``stem`` of Parquet files.

    A folder ``stem`` beside such a file is no table; it may hold pictures.

    Args:
        directory: the dataset directory.
        stem: ``items`` or ``interactions``.
        suffixes: allowed suffixes without the dot.

    Raises:
        DatasetError: the directory is missing, or holds none or several of the files.
    """
    try:
        if not directory.is_dir():
            raise no_directory(directory)
        found = [path for suffix in suffixes if (path := directory / f"{stem}.{suffix}").exists()]
        found = found or [path for path in [directory / stem] if path.is_dir()]
        other = None if found else _other_name(directory, stem, suffixes)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{directory}: cannot be opened ({error}); check the path and its permissions") from error
    names = " or ".join(f"{stem}.{suffix}" for suffix in suffixes)
    if not found:
        raise DatasetError(
            f"{directory}: a dataset needs {names}, found {other or f'none of them, nor a folder {stem}'}; see "
            "docs/dataset.md"
        )
    if len(found) > 1:
        raise DatasetError(f"{directory}: found {' and '.join(path.name for path in found)}; keep one of them")
    return found[0]


def no_directory(path: Path) -> DatasetError:
    """What is said of a path that is named as a data set and is no directory.

    Args:
        path: as it was named.
    """
    if path.is_file():
        return DatasetError(f"{path}: is a file; a dataset is a directory, so name the one that holds it")
    return DatasetError(f"{path}: a dataset is a directory, but there is none at this path")


def _other_name(directory: Path, stem: str, suffixes: Sequence[str]) -> str | None:
    """A file that is likely meant as the table, with a remedy; None if there is none."""
    for path in sorted(directory.iterdir()):
        name = path.name.lower()
        if name != stem and not name.startswith(f"{stem}."):
            continue
        if name in {f"{stem}.{suffix}" for suffix in suffixes} or path.is_dir():
            if path.is_symlink() and not path.exists():
                return f"{path.name!r}: a link to no file; correct it"
            return f"{path.name!r}: rename it, names are case-sensitive"
        if name.endswith(_PACKED):
            return f"{path.name!r}: unpack it"
        return f"{path.name!r}: convert it to {stem}.{suffixes[0]} or another of these"
    return None


def read_table(
    path: Path, *, text: Sequence[str], required: Sequence[str], columns: Sequence[str] | None = None
) -> pl.DataFrame:
    """Read one table file in file order.

    Args:
        path: a ``.csv`` (UTF-8, a byte-order mark is accepted, RFC 4180 quoting), ``.jsonl`` or ``.parquet`` file, or a
            folder of Parquet files, see :meth:`training.data.tables.parquet_table.ParquetTable.open`.
        text: columns that are always read as strings, so that ``007`` stays ``007``.
        required: columns that the file must have.
        columns: columns to read, those that the file lacks are left out; None reads all.

    Returns:
        The file's columns and :data:`ROW` (uint32, the first record is row 1). The other columns of a CSV file become
        bools (``true``, ``false``), integers or floats if every value is one and loses nothing by it (``007`` is none),
        else strings; an empty cell is null. Blank lines of a CSV file are left out.

    Raises:
        DatasetError: the file is missing, a directory, empty, not readable as its suffix says, not UTF-8, or lacks a
            required column.
    """
    try:
        if not path.is_file() and suffix_of(path) != PARQUET:
            raise DatasetError(f"{path}: {'must be a file, not a directory' if path.is_dir() else 'no such file'}")
        kind = foreign_kind(path) if path.is_file() else None
        if kind is not None:
            raise DatasetError(f"{path}: {kind}")
        scan = _scan(path)
        present = (scan.schema if isinstance(scan, ParquetTable) else scan.collect_schema()).names()
        _check_names(path, present, list(dict.fromkeys([*required, *text])), required)
        names = present if columns is None else [name for name in columns if name in present]
        frame = scan.read(names) if isinstance(scan, ParquetTable) else scan.select(names).collect(engine="streaming")
        frame = _text_columns(path, frame, text).with_row_index(ROW, offset=1)
    except _FOREIGN as error:
        raise DatasetError(f"{path}: {_reason(path, error)}") from error
    if path.suffix.lower() != ".csv":
        return frame
    frame = frame.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))
    return frame.with_columns([narrowest(frame[name]) for name in frame.columns if name not in (*text, ROW)])


def _check_names(path: Path, present: Sequence[str], wanted: Sequence[str], required: Sequence[str]) -> None:
    fault = names_fault(present, wanted, required)
    if fault is not None:
        raise DatasetError(f"{path}: {fault}")
    if ROW in present:
        raise DatasetError(f"{path}: a column must not be called {ROW!r}; rename it")


def rows_named(rows: pl.Series, *, limit: int = 3) -> str:
    """Row numbers for a message: ``row 4`` or ``rows 4, 9, 12 and 5 more``.

    Args:
        rows: numbers from :data:`ROW`, at least one.
        limit: how many to name.
    """
    named = ", ".join(str(row) for row in rows.head(limit).to_list())
    more = f" and {len(rows) - limit:,} more" if len(rows) > limit else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {named}{more}"


def nameless_columns(path: Path) -> list[int]:
    """Positions, from 1, of the columns of a CSV file whose header cell is blank; none for other files.

    Raises:
        DatasetError: the file has no header.
        OSError: the file cannot be read.
    """
    if path.suffix.lower() != ".csv":
        return []
    return [place for place, name in enumerate(csv_header(path), start=1) if is_nameless(name)]


def suffix_of(path: Path) -> str:
    """The suffix that says how a table is read; a folder ``items`` is one of Parquet files."""
    return PARQUET if path.is_dir() and not path.suffix else path.suffix.lower()


def _scan(path: Path) -> pl.LazyFrame | ParquetTable:
    suffix = suffix_of(path)
    if suffix == ".csv":
        return _scan_csv(path)
    if suffix == ".jsonl":
        return _scan_jsonl(path)
    if suffix == PARQUET:
        return ParquetTable.open(path)
    raise DatasetError(f"{path}: a table is a .csv, .jsonl or .parquet file, got the suffix {path.suffix!r}")


def _scan_csv(path: Path) -> pl.LazyFrame:
    names = csv_header(path)
    named = [name for name in names if not is_nameless(name)]
    repeated = next((name for name in named if named.count(name) > 1), None)
    if repeated is not None:
        raise DatasetError(f"{path}: column {repeated!r} appears more than once in the header; rename or drop one")
    csv_records.check_records(path, len(names))
    scan = pl.scan_csv(path, infer_schema=False, glob=False)
    if len(named) == len(names):
        return scan
    given = scan.collect_schema().names()  # polars makes blank names unique
    return scan.select(own for own, name in zip(given, names, strict=True) if not is_nameless(name))


def csv_header(path: Path) -> list[str]:
    """The names in the first record of a CSV file, also blank ones; at most :data:`_HEADER_BYTES` are read.

    Raises:
        DatasetError: the file has no header.
        UnicodeDecodeError: it is not UTF-8.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    if not head.removeprefix(codecs.BOM_UTF8):
        raise DatasetError(f"{path}: the file is empty; the first line must name the columns")
    text = codecs.getincrementaldecoder("utf-8-sig")().decode(head, final=len(head) < _HEADER_BYTES)
    if len(head) == _HEADER_BYTES and "\n" not in text:
        raise DatasetError(f"{path}: the first line has more than {_HEADER_BYTES:,} bytes; it must name the columns")
    try:
        names = next(csv.reader(io.StringIO(text, newline="\n"), strict=True), [])
    except csv.Error as error:
        raise DatasetError(f"{path}: {_header_fault(path, text, error)}") from error
    if not names:
        raise DatasetError(f"{path}: the first line is blank; it must name the columns")
    # The limit of the csv module is global to the process, and imports raise it.
    if max(map(len, names)) > _NAME_CHARACTERS:
        too_long = f"a name has more than {_NAME_CHARACTERS:,} characters"
        raise DatasetError(f"{path}: the header cannot be read ({too_long}); the first line must name the columns")
    return names


def _header_fault(path: Path, text: str, error: csv.Error) -> str:
    fault = csv_records.first_fault(path, 1)
    if fault is not None and fault.startswith(("line 1:", "lines 1 ")):
        return fault
    if "\r" in text.partition("\n")[0].rstrip("\r"):
        return "line 1 has carriage returns in it; end every line with a line feed, not with a carriage return alone"
    return f"the header cannot be read ({error})"


def _scan_jsonl(path: Path) -> pl.LazyFrame:
    with path.open("rb") as stream:
        marked = stream.read(3) == codecs.BOM_UTF8
    if path.stat().st_size == 3 * marked:
        raise DatasetError(f"{path}: the file is empty; each line must be one JSON object")
    with path.open("rb") as stream:
        stream.seek(3 if marked else 0)
        frame = pl.read_ndjson(stream, infer_schema_length=None)
    if _has_nul(frame):
        fault = json_lines.first_half_character(path)
        if fault is not None:
            raise DatasetError(f"{path}: {fault}")
    return frame.lazy()


def _has_nul(frame: pl.DataFrame) -> bool:
    """Whether a name or text of a table may hold a NUL, also in lists and objects."""
    found = []
    for place, (name, dtype) in enumerate(frame.schema.items()):
        nul = pl.element() if dtype == pl.List(pl.String) else pl.col(name)
        nul = nul.str.contains("\0", literal=True)
        if "\0" in name or (dtype.is_nested() and dtype != pl.List(pl.String)):
            return True  # an object, or lists in lists: only a scan of the file can tell
        if dtype == pl.List(pl.String):
            found.append(pl.col(name).list.eval(nul).list.any().any().alias(str(place)))
        elif dtype == pl.String:
            found.append(nul.any().alias(str(place)))
    return any(frame.select(found).row(0)) if found and frame.height else False


def _text_columns(path: Path, frame: pl.DataFrame, text: Sequence[str]) -> pl.DataFrame:
    """Cast the text columns to strings; only integers and categories have one spelling, so other types are refused."""
    casts = []
    for name in text:
        dtype = frame.schema.get(name)
        if dtype is None or dtype == pl.String:
            continue
        if not (dtype.is_integer() or dtype in (pl.Categorical, pl.Enum, pl.Null)):
            raise DatasetError(
                f"{path}: column {name!r} must hold strings or whole numbers, it holds {dtype}; write it as such"
            )
        casts.append(pl.col(name).cast(pl.String))
    return frame.with_columns(casts)


def _reason(path: Path, error: BaseException) -> str:
    """Explain why a file could not be read."""
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error}); check the path and its permissions"
    suffix = suffix_of(path)
    try:
        fault = encoding_fault(path) if suffix in (".csv", ".jsonl") else None
        if fault is None and suffix == ".jsonl":
            fault = json_lines.first_fault(path)
    except OSError as failure:
        return f"cannot be read ({failure.strerror or failure}); check the path and its permissions"
    if fault is not None:
        return fault
    detail = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # Each line of JSON is readable by itself, so the types of two lines differ.
    remedy = "let all values of a column be of one kind" if suffix == ".jsonl" else "fetch or export it again"
    return f"is not a readable {suffix[1:]} file ({detail}); {remedy}"
