"""Table files: damaged or mislabelled ones are refused with line and remedy."""

import codecs
import gzip
import io
import json
import zipfile
from pathlib import Path

import polars as pl
import pytest

from tests.support.table_content import refusal, table
from training.data.tables.table_files import ROW

ROWS = "item_id,title,text\n1,a,x\n2,b,y\n3,c,z\n"


@pytest.mark.parametrize(
    ("header", "name", "meant"),
    [
        ("item_id,Title,Text", "Title", "title"),
        ("item_id,title, text", " text", "text"),
        ("item_id,title ,text", "title ", "title"),
        ("item_id,title,TEXT", "TEXT", "text"),
        ("Item_ID,title,text", "Item_ID", "item_id"),
        ("Item Id,title,text", "Item Id", "item_id"),
        ("itemId,title,text", "itemId", "item_id"),
        ("item_id,'title',text", "'title'", "title"),
        ("item_id,\xa0title,text", "\xa0title", "title"),
        ("item_id,title\u200b,text", "title\u200b", "title"),
        ("\ufeff\ufeffitem_id,title,text", "\ufeffitem_id", "item_id"),
    ],
)
def test_a_column_that_looks_like_a_missing_one_is_named(tmp_path: Path, header: str, name: str, meant: str) -> None:
    message = refusal(tmp_path / "items.csv", f"{header}\n1,a,b\n")
    assert f"column {name!r} looks like {meant!r}" in message
    names = header.removeprefix("\ufeff").split(",")
    line = json.dumps(dict(zip(names, ["1", "a", "b"], strict=True)))
    assert f"column {name!r} looks like" in refusal(tmp_path / "items.jsonl", line)


def test_a_look_alike_beside_the_column_itself_is_metadata(tmp_path: Path) -> None:
    assert table(tmp_path / "items.csv", "item_id,title,Title\n1,a,b\n").columns == [ROW, "item_id", "title", "Title"]


@pytest.mark.parametrize("header", [",item_id,title", "item_id,title,", "item_id,title, ,", "item_id,,title,,"])
def test_columns_without_a_name_are_left_out(tmp_path: Path, header: str) -> None:
    row = ",".join({"item_id": "1", "title": "a"}.get(name, "x") for name in header.split(","))
    frame = table(tmp_path / "items.csv", f"{header}\n{row}\n")
    assert frame.drop(ROW).to_dicts() == [{"item_id": "1", "title": "a"}]


def test_a_name_of_signs_alone_is_a_name(tmp_path: Path) -> None:
    assert table(tmp_path / "items.csv", "item_id,_,-\n1,a,b\n").columns == [ROW, "item_id", "_", "-"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the file is empty"),
        ("\ufeff", "the file is empty"),
        ("\nitem_id,title\n1,a\n", "the first line is blank"),
        ("item_id,title,title\n1,a,b\n", "'title' appears more than once"),
        ("item_id\ttitle\n1\ta\n", "this one has tabs"),
        ("item_id;title\n1;a\n", "this one has semicolons"),
        ("item_id::title\n1::a\n", "this one has double colons"),
        ("item_id,title\r1,a\r", "line 1 has carriage returns in it"),
        ('item_id,"title\n1,a\n', "line 1: a quoted field begins here and is never closed"),
        ('item_id,"ti"tle\n1,a\n', "line 1: a quoted field ends and then goes on"),
        ("item_id," + "x" * 2**20 + "\n", "the first line has more than"),
        ("item_id," + "x" * 2**18 + "\n", "the header cannot be read"),
        ("item_id," + "x" * 2**15 + "\n", "a name has more than 10,000 characters"),
    ],
)
def test_a_bad_header_is_refused_with_a_remedy(tmp_path: Path, content: str, words: str) -> None:
    assert words in refusal(tmp_path / "items.csv", content)


def archive(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name in names:
            packed.writestr(zipfile.ZipInfo(name), ROWS)
    return stream.getvalue()


def parquet() -> bytes:
    stream = io.BytesIO()
    pl.DataFrame({"item_id": ["1", "2"]}).write_parquet(stream)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (ROWS.encode("utf-16"), "is UTF-16, it must be UTF-8; convert it with `iconv -f UTF-16 -t UTF-8`"),
        (codecs.BOM_UTF16_BE + ROWS.encode("utf-16-be"), "`iconv -f UTF-16 -t UTF-8`"),
        (ROWS.replace(",", "\t").encode("utf-16"), 'it has tabs as Excel\'s "Unicode text"'),
        (ROWS.encode("utf-16-le"), "`iconv -f UTF-16LE -t UTF-8`"),
        (ROWS.encode("utf-16-be"), "`iconv -f UTF-16BE -t UTF-8`"),
        (ROWS.encode("utf-32"), "`iconv -f UTF-32 -t UTF-8`"),
        (gzip.compress(ROWS.encode(), mtime=0), "is gzip-compressed; unpack it, for example with `gunzip`"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "is zstd-compressed"),
        (archive("items.csv"), "is a zip archive; unpack it"),
        (archive("[Content_Types].xml", "xl/workbook.xml"), "is an Excel workbook (xlsx)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "is an Excel workbook (xls)"),
        (b"SQLite format 3\x00" + bytes(84), "is an SQLite database"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        (parquet()[:-4], "Parquet file"),
    ],
)
def test_another_kind_of_file_is_named_with_a_remedy(tmp_path: Path, suffix: str, content: bytes, words: str) -> None:
    assert words in refusal(tmp_path / f"items.{suffix}", content)


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        ("csv", parquet(), "is a Parquet file; name it items.parquet"),
        ("jsonl", parquet(), "is a Parquet file; name it items.parquet"),
        ("csv", b'{"item_id": "1"}\n', "if it is one object a line, name it items.jsonl"),
        ("csv", b'[{"item_id": "1"}]', "is one JSON array"),
        ("jsonl", b'[{"item_id": "1"},\n{"item_id": "2"}]', "is one JSON array"),
        ("jsonl", ROWS.encode(), "it looks like the header of a CSV file"),
        ("csv", b"<!DOCTYPE html><html>", "is a web page"),
        ("csv", b"<?xml version='1.0'?><items/>", "is XML"),
        ("csv", bytes(4096), "holds NUL bytes only"),
        ("parquet", ROWS.encode(), "it lacks the mark PAR1"),
        ("parquet", b"", "is empty"),
        ("parquet", parquet()[:-4], "is a Parquet file without its end, it was cut"),
    ],
)
def test_a_wrong_suffix_is_reported(tmp_path: Path, suffix: str, content: bytes, words: str) -> None:
    assert words in refusal(tmp_path / f"items.{suffix}", content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("item_id,title\n1,“Best” hat € 5\n2,b\n".encode("cp1252"), "line 2 is not: it is likely Windows-1252"),
        ("item_id,title\n1,a\n2,café\n".encode("latin-1"), "line 3 is not: it is likely Windows-1252"),
        ("item_id,title\n1,caf\xe9".encode("latin-1"), "line 2 is not: it is likely Windows-1252"),
        ("item_id,title\n1,Синяя кружка\n".encode("cp1251"), "it is in another encoding"),
        ("item_id,title\n1,青いマグカップ\n".encode("shift_jis"), "it is in another encoding"),
        ("item_id,title\n1,蓝色的杯子\n".encode("gb18030"), "it is in another encoding"),
        ("item_id,title\n1,éàüö\n2,".encode() + b"\xe9\n", "line 3 is not but most of the file is"),
        ("item_id,title\n1,éàü\n2,caf".encode() + "é".encode()[:1], "line 3 is not: the file ends within a character"),
    ],
)
def test_text_that_is_not_utf8_is_never_called_latin_1(tmp_path: Path, content: bytes, words: str) -> None:
    message = refusal(tmp_path / "items.csv", content)
    assert "must be UTF-8" in message
    assert words in message
    assert "LATIN1" not in message
    lines = content.replace(b",", b'","').replace(b"\n", b'"}\n')
    assert "must be UTF-8" in refusal(tmp_path / "items.jsonl", lines)


def test_a_bad_byte_beyond_the_first_block_has_the_right_line(tmp_path: Path) -> None:
    rows = "".join(f"{n},{'é' * 40},x\n" for n in range(30_000))
    content = ("item_id,title,text\n" + rows).encode() + b"x,\xff,y\n"
    assert "line 30002 is not but most of the file is" in refusal(tmp_path / "items.csv", content)
