"""Recognises by their content files whose kind or encoding differs from what their suffix says."""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

_HEAD_BYTES = 4096
_BLOCK_BYTES = 2**20
_PARQUET = b"PAR1"
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ\x00", "xz", "unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "7z x"),
)
_OTHERS = (
    (b"SQLite format 3\x00", "an SQLite database; export the table as CSV"),
    (b"ARROW1", "an Arrow file; write it as Parquet"),
    (b"Obj\x01", "an Avro file; write it as Parquet"),
    (b"ORC", "an ORC file; write it as Parquet"),
    (b"%PDF", "a PDF; export the table as CSV"),
    (b"{\\rtf", "an RTF document; export the table as CSV"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 'an Excel workbook (xls); save the sheet as "CSV UTF-8"'),
    (b"version https://git-lfs", "a Git LFS pointer in place of the file; fetch the file with `git lfs pull`"),
)
_UTF_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_NOT_IN_1252 = frozenset("\udc81\udc8d\udc8f\udc90\udc9d")
_NOT_UTF8 = re.compile("[\udc80-\udcff]+")
_BEYOND_ASCII = re.compile("[^\x00-\x7f\udc80-\udcff]")
_HIGH = re.compile(b"[\x80-\xff]+")
_WORD = 3


def foreign_kind(path: Path) -> str | None:
    """The actual kind of a table or configuration whose suffix says otherwise, with a remedy.

    Args:
        path: of any suffix; ``.csv``, ``.jsonl`` and ``.parquet`` get further checks.

    Returns:
        ``is gzip-compressed; unpack it …``; None if the first bytes do not contradict the suffix.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _not_parquet(path, head)
    if head.startswith(_PARQUET):
        return f"is a Parquet file; name it {path.stem}.parquet"
    return kind_of_start(head) or _other_text(head, suffix, path.stem)


def kind_of_start(head: bytes) -> str | None:
    """The kind of a file by its first bytes, with a remedy, if the file is not UTF-8 text.

    Args:
        head: the first 4 KiB, or all of a shorter file.

    Returns:
        ``is a zip archive; unpack it …``; None if the first bytes may be UTF-8 text.
    """
    return _packed_or_binary(head) or _other_text_encoding(head)


def _not_parquet(path: Path, head: bytes) -> str | None:
    if not head:
        return "is empty; fetch or export it again"
    if head.startswith(b"PARE"):
        return "is an encrypted Parquet file; write it without encryption"
    if head.startswith(_PARQUET):
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - len(_PARQUET)))
            whole = stream.read() == _PARQUET
        return None if whole else "is a Parquet file without its end, it was cut; fetch or export it again"
    found = kind_of_start(head)
    if found is not None:
        return found
    return "is not a readable parquet file: it lacks the mark PAR1; if it is text, give it the suffix .csv or .jsonl"


def _packed_or_binary(head: bytes) -> str | None:
    for magic, name, command in _COMPRESSED:
        if head.startswith(magic):
            return f"is {name}-compressed; unpack it, for example with `{command}`"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        if b"opendocument.spreadsheet" in head:
            return "is an OpenDocument spreadsheet (ods); save the sheet as CSV in UTF-8"
        if b"[Content_Types].xml" in head or b"xl/" in head:
            return 'is an Excel workbook (xlsx); save the sheet as "CSV UTF-8"'
        return "is a zip archive; unpack it, for example with `unzip`"
    return next((f"is {name}" for magic, name in _OTHERS if head.startswith(magic)), None)


def _other_text_encoding(head: bytes) -> str | None:
    name = next((name for mark, name in _UTF_MARKS if head.startswith(mark)), None)
    if name is not None:
        tabs = name == "UTF-16" and "\t" in head[: len(head) // 2 * 2].decode("utf-16", "replace")
        also = '; it has tabs as Excel\'s "Unicode text", so save it as "CSV UTF-8" instead' if tabs else ""
        return f"is {name}, it must be UTF-8; convert it with `iconv -f {name} -t UTF-8`{also}"
    even, odd = head[0:256:2], head[1:256:2]
    if len(odd) > 1 and not any(odd) and all(even):
        return "is UTF-16 without a byte-order mark, it must be UTF-8; convert it with `iconv -f UTF-16LE -t UTF-8`"
    if len(odd) > 1 and not any(even) and all(odd):
        return "is UTF-16 without a byte-order mark, it must be UTF-8; convert it with `iconv -f UTF-16BE -t UTF-8`"
    if head and not any(head):
        return "holds NUL bytes only, it was never written out whole; fetch or export it again"
    return None


def _other_text(head: bytes, suffix: str, stem: str) -> str | None:
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:100].lower()
    if start.startswith((b"<!doctype", b"<html")):
        return "is a web page, likely that of a log-in or an error in place of the download; fetch the file again"
    if start.startswith(b"<?xml"):
        return "is XML; convert it to CSV, JSON lines or Parquet"
    if suffix == ".csv" and start.startswith(b'{"'):
        return f"holds JSON; if it is one object a line, name it {stem}.jsonl"
    if suffix in (".csv", ".jsonl") and start.startswith((b"[{", b"[\n", b"[\r", b"[ ", b"[[")):
        return f"is one JSON array; write one object a line as {stem}.jsonl, for example with `jq -c '.[]'`"
    return None


@dataclass(frozen=True)
class _NotUtf8:
    """The bytes of a file that are not UTF-8.

    Attributes:
        line: of the first such byte.
        end: whether the only fault is a last character that was cut.
        bad: number of such bytes.
        values: distinct values of such bytes.
        characters: number of valid characters beyond ASCII.
        high: number of bytes beyond ASCII, valid or not.
        in_words: bytes beyond ASCII in runs of at least three, as in words of other scripts.
    """

    line: int
    end: bool
    bad: int
    values: set[str]
    characters: int
    high: int
    in_words: int


def encoding_fault(path: Path) -> str | None:
    """The line at which a text file is not UTF-8, its likely encoding, and a remedy.

    The advice never destroys text: Windows-1252, which includes Latin-1, is named only if every byte is valid in it,
    and a file that is mostly UTF-8 is not to be converted.

    Args:
        path: a text file that passes :func:`foreign_kind`.

    Returns:
        One clause beginning with ``must be UTF-8``; None if the file is UTF-8.

    Raises:
        OSError: the file cannot be read.
    """
    found = _find_invalid_bytes(path)
    if found is None:
        return None
    where = f"must be UTF-8, line {found.line} is not"
    if found.end:
        return f"{where}: the file ends within a character, it was cut; fetch or export it again"
    if found.characters >= 2 * found.bad:
        return (
            f"{where} but most of the file is: the line is damaged, or files of two encodings were joined; correct "
            "that line, and do not convert the whole file"
        )
    if found.values & _NOT_IN_1252 or 2 * found.in_words > found.high:
        return (
            f"{where}: it is in another encoding; ask where it comes from and convert it with `iconv -f ENCODING -t "
            "UTF-8` (often WINDOWS-1251, GB18030, SHIFT_JIS, EUC-KR, BIG5), or export it as UTF-8"
        )
    return (
        f"{where}: it is likely Windows-1252, as Excel writes it; convert it with `iconv -f WINDOWS-1252 -t UTF-8` and "
        'look at a few accents and quotes, or save it as "CSV UTF-8"'
    )


def _find_invalid_bytes(path: Path) -> _NotUtf8 | None:
    values: set[str] = set()
    line, lines, bad, characters, high, in_words = 0, 1, 0, 0, 0, 0
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK_BYTES), b""):
            text = decoder.decode(block)
            found = _NOT_UTF8.findall(text)
            if found and not bad:
                line = lines + text.count("\n", 0, text.index(found[0]))
            bad += sum(map(len, found))
            values.update(*found)
            lines += text.count("\n")
            characters += len(_BEYOND_ASCII.findall(text))
            runs = [len(run) for run in _HIGH.findall(block)]
            high += sum(runs)
            in_words += sum(run for run in runs if run >= _WORD)
    rest = decoder.decode(b"", final=True)
    values.update(rest)
    if not bad and not rest:
        return None
    end = not bad and characters > 0  # without such a character another encoding is as likely
    return _NotUtf8(line or lines, end, bad + len(rest), values, characters, high, in_words)
