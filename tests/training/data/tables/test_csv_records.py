"""CSV records: valid ones are read exactly, invalid ones are named by line with a remedy."""

import codecs
import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.table_content import refusal, table
from training.data.tables import csv_records
from training.data.tables.table_files import ROW, read_table
from training.errors import DatasetError


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('1,5" tv,x\n', "line 2: a field without quotes around it has a quote in it"),
        ('0,a,b\n1,5" tv,x\n2,6" tv,y\n', "line 3: a field without quotes around it"),
        ('1,"Best" hat,x\n', "line 2: a quoted field ends and then goes on with ' hat,x'"),
        ('1,"Best" "hat",x\n', "line 2: a quoted field ends and then goes on"),
        ('1,""x"",x\n', "line 2: a quoted field ends and then goes on"),
        ('1,"x \\"y\\" z",x\n', "line 2: a quoted field ends and then goes on"),
        ('1,"x, y" ,x\n', "line 2: a quoted field ends and then goes on"),
        ('1,"x\n2,"y",z\n', "lines 2 to 3: a quoted field ends and then goes on"),
        ('0,a,b\n1,"x,x\n2,b,y\n', "line 3: a quoted field begins here and is never closed"),
        ('0,a,"b', "line 2: a quoted field begins here and is never closed"),
        ("0,a,b\n1,x\n2,b,y\n", "line 3 has 2 fields, the header has 3; complete the row"),
        ("0,a,b\n1\n2,b,y\n", "line 3 has 1 field, the header has 3"),
        ("0,a,b\n   \n2,b,y\n", "line 3 has 1 field, the header has 3"),
        ("0,a,b\n1,x", "line 3 has 2 fields, the header has 3; it is the last line and seems cut"),
        ("0,a,b\n1,x,y,z\n", "line 3 has 4 fields, the header has 3; put a field that has a comma in it in quotes"),
        ("0,a,b\n1,x,\n2,b,y,\n", "line 4 has 4 fields"),
        ('0,"a\n\nb",c\n1,"d,\ne",f\n2,x\n', "line 7 has 2 fields"),
    ],
)
def test_the_first_bad_record_is_named_with_a_remedy(tmp_path: Path, rows: str, words: str) -> None:
    assert words in refusal(tmp_path / "items.csv", "item_id,title,text\n" + rows)
    crlf = ("item_id,title,text\n" + rows).replace("\n", "\r\n")
    assert words.partition(" goes on with")[0] in refusal(tmp_path / "items.csv", crlf)


@pytest.mark.parametrize("rows", ['u,1,1,5" tv\nv,2,2,6" tv\n', "u,1,1\nv,2,2,x\n", 'u,1,1,"Best" hat\nv,2,2,x\n'])
def test_unread_columns_are_checked_by_the_same_rules(tmp_path: Path, rows: str) -> None:
    """Polars reads such a file with one row less, or without a word, if it need not look at the last column."""
    path = tmp_path / "interactions.csv"
    path.write_text("user_id,item_id,timestamp,review\n" + rows)
    names = ("user_id", "item_id", "timestamp")
    with pytest.raises(DatasetError, match=r"line [23]"):
        read_table(path, text=names, required=names, columns=names)


def test_a_bad_record_far_down_is_found_by_its_line(tmp_path: Path) -> None:
    good = "".join(f'{n},"title, {n}","more\nthan one line"\n' for n in range(20_000))
    bad = 'x,5" tv,y\n'
    assert "line 40002: a field without quotes" in refusal(tmp_path / "items.csv", f"item_id,title,text\n{good}{bad}")


@pytest.mark.parametrize(
    ("rows", "read"),
    [
        ('1,5" x 6" tv,x\n', ("1", '5" x 6" tv', "x")),
        ('1,"5"" tv, black","a\r\nb"\n', ("1", '5" tv, black', "a\r\nb")),
        ('1,"""",""\n', ("1", '"', "")),
        ("1,a\0b,\n", ("1", "a\0b", None)),
        ("1,a\x1fb,\x1f\n", ("1", "a\x1fb", "\x1f")),
        ("\n1,a,b", ("1", "a", "b")),
        ("1,a\rb,c\n", ("1", "a\rb", "c")),
    ],
)
def test_good_records_are_read_as_they_stand(tmp_path: Path, rows: str, read: tuple[str | None, ...]) -> None:
    assert table(tmp_path / "items.csv", "item_id,title,text\n" + rows).drop(ROW).rows() == [read]


def test_a_table_of_very_many_columns_is_checked_too(tmp_path: Path) -> None:
    names = ",".join(["item_id", *(f"c{n}" for n in range(300))])
    good = ",".join(["1", *('"x"' for _ in range(300))])
    assert table(tmp_path / "items.csv", f"{names}\n{good}\n").height == 1
    assert "line 3 has 300 fields" in refusal(tmp_path / "items.csv", f"{names}\n{good}\n{good[:-4]}\n")


def test_a_line_without_end_takes_a_bounded_amount_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_records, "MAX_LINE_BYTES", 100)
    assert "line 2 has more than" in refusal(tmp_path / "items.csv", 'item_id,title,text\n1,"' + "x" * 200 + "\n")


CELL = st.text(st.sampled_from('a"",,\n\r\t é😀\0\x1f;\'\\ '), max_size=6)
TABLE = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(CELL, min_size=width, max_size=width), min_size=1, max_size=5)
)


def written(rows: list[list[str]], end: str) -> str:
    """A table as the standard library writes it, with an id in front that keeps every row."""
    stream = io.StringIO(newline="")
    bare = end == "\n" and any("\r" in cell for row in rows for cell in row)  # the writer would not quote these
    writer = csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL)
    writer.writerow(["item_id", *(f"c{n}" for n in range(len(rows[0])))])
    writer.writerows([f"i{number}", *row] for number, row in enumerate(rows))
    return stream.getvalue()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLE, end=st.sampled_from(["\n", "\r\n"]), marked=st.booleans())
def test_the_output_of_a_correct_writer_is_read_back(
    tmp_path: Path, rows: list[list[str]], end: str, marked: bool
) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(codecs.BOM_UTF8 * marked + written(rows, end).encode())
    names = ["item_id", *(f"c{n}" for n in range(len(rows[0])))]
    frame = read_table(path, text=names, required=["item_id"])
    assert frame[ROW].to_list() == list(range(1, len(rows) + 1))
    cells = [["" if cell is None else cell for cell in row] for row in frame.select(names).rows()]
    assert cells == [[f"i{number}", *row] for number, row in enumerate(rows)]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=TABLE,
    place=st.integers(0, 2**30),
    byte=st.one_of(st.sampled_from([*b'"",,\n\r\0\xff\xe9a']), st.integers(0, 255)),
    removed=st.booleans(),
)
@example(rows=[["a", 'x"y']], place=17, byte=34, removed=True)
def test_one_wrong_byte_never_gives_another_number_of_fields(
    tmp_path: Path, rows: list[list[str]], place: int, byte: int, removed: bool
) -> None:
    """Refused, or read with as many fields a record as an independent strict reader finds."""
    content = bytearray(written(rows, "\n").encode())
    place %= len(content)
    content[place : place + 1] = b"" if removed else bytes([byte])
    path = tmp_path / "items.csv"
    path.write_bytes(content)
    try:
        frame = read_table(path, text=["item_id"], required=["item_id"])
    except DatasetError:
        return
    text = content.decode("utf-8-sig")
    if "\r" in text:  # outside of quotes the independent reader refuses it
        return
    records = [record for record in csv.reader(io.StringIO(text, newline="\n"), strict=True) if record]
    width = len(records[0])
    assert all(len(record) == width for record in records)
    assert frame.width == 1 + sum(bool(name.replace("\ufeff", "").strip()) for name in records[0])
    assert sum(map(any, records[1:])) <= frame.height < len(records)
