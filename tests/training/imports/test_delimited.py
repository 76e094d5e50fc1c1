"""CSV and lines: exact line numbers across blocks, no padding, clear errors; compared with the csv module."""

import csv
import io
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.errors import DatasetError
from training.imports import source_files
from training.imports.delimited import LINE, CsvFile, read_lines
from training.imports.source_files import Source


@pytest.fixture
def read_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pl.DataFrame]:
    def read(content: str | bytes, block_bytes: int = 1 << 20) -> pl.DataFrame:
        monkeypatch.setattr(source_files, "BLOCK_BYTES", block_bytes)
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return pl.concat(CsvFile(Source(tmp_path), path).batches())

    return read


FIELDS = st.text(alphabet='ab", \n;ü', max_size=6)
ROWS = st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), FIELDS, FIELDS), max_size=12)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=ROWS, block_bytes=st.sampled_from([1, 7, 60]), end=st.sampled_from(["\n", "\r\n"]))
def test_the_output_of_the_csv_module_is_read_in_blocks_of_any_size(
    read_csv: Callable[..., pl.DataFrame], rows: list[tuple[str, ...]], block_bytes: int, end: str
) -> None:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator=end)
    writer.writerow(["key", "one", "two"])
    starts = []
    for row in rows:
        starts.append(written.getvalue().count("\n") + 1)
        writer.writerow(row)
    read = read_csv(written.getvalue(), block_bytes)
    assert read[LINE].to_list() == starts
    assert read.select("key", "one", "two").rows() == [tuple(field or None for field in row) for row in rows]


@pytest.mark.parametrize("quoted", [False, True])
def test_a_row_with_a_field_too_few_or_too_many_is_an_error(
    read_csv: Callable[..., pl.DataFrame], quoted: bool
) -> None:
    start = 'a,b\n"x",1\n' if quoted else "a,b\nx,1\n"
    for row, count in (("y", 1), ("y,2,3", 3)):
        with pytest.raises(DatasetError, match=rf"table\.csv: line 3 has {count} fields between ',', it must have 2"):
            read_csv(start + row + "\nz,3\n")
        with pytest.raises(DatasetError, match=rf"table\.csv: line 3 has {count} fields"):
            read_csv(start + row + "\nz,3\n", block_bytes=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty|the first line must name the columns"),
        (b"\n", "the first line must name the columns, it is empty"),
        (b"a,a\n1,2\n", "column 'a' appears more than once"),
        (b'a,b\n1,"open\n2,3\n', "line 2: a quoted field is opened and not closed"),
        (b'a,b\n1,2\n3,"x"y\n', "line 3 is no CSV line .*double a quote inside a quoted field"),
        (b"a,b\n1,caf\xe9\n", "must be UTF-8, line 2 is not; export it again as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16, it must be UTF-8; convert it with `iconv -f UTF-16"),
        ("a,b\n1,2\n".encode("utf-16-le"), "is UTF-16 without a byte-order mark"),
        (b"PK\x03\x04....", "is a zip archive"),
        (b"PK\x03\x04....xl/workbook.xml", r"is an Excel workbook \(xlsx\)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1....", r"is an Excel workbook \(xls\)"),
        (b"\xfd7zXZ\x00....", "is xz-compressed; unpack it"),
        (b"PAR1....", "is a Parquet file; this format is read as text, so export it again as the recipe says"),
        (b"SQLite format 3\x00....", "is an SQLite database"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer in place of the file"),
        (b"\x1f\x8b....", "is compressed with gzip; give its name the ending .gz"),
        (b"a,b\n1,\x00\n", "line 2 holds a NUL character"),
    ],
)
def test_every_fault_is_named(read_csv: Callable[..., pl.DataFrame], content: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_csv(content)


def test_a_quote_that_is_never_closed_needs_no_more_than_a_record_of_memory(
    read_csv: Callable[..., pl.DataFrame],
) -> None:
    with pytest.raises(DatasetError, match="line 2: a quoted field is opened and not closed"):
        read_csv('a,b\n1,"open\n' + ("x" * 99 + "\n") * 200_000, block_bytes=4 << 20)


def test_a_line_without_end(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_bytes(b"short\n" + b"x" * (17 << 20))
    with pytest.raises(DatasetError, match=r"long\.txt: line 2 is longer than 16 MiB"):
        list(read_lines(Source(tmp_path), tmp_path / "long.txt"))


def test_only_line_feeds_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("a\u2028b\x85c\vd\r\n\ne".encode())
    read = pl.concat(read_lines(Source(tmp_path), path))
    assert read.rows() == [(1, "a\u2028b\x85c\vd"), (3, "e")]


def test_progress_is_reported_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "BLOCK_BYTES", 10)
    path = tmp_path / "lines.txt"
    path.write_bytes(b"12345\n" * 10)
    reported: list[tuple[str, float]] = []
    list(read_lines(Source(tmp_path, lambda step, share: reported.append((step, share))), path))
    shares = [share for _, share in reported]
    assert shares == sorted(shares)
    assert len(shares) > 5
    assert reported[-1] == ("lines.txt", 1.0)
