"""Finds the source files of an import by name and reads them, gzip too, in blocks of whole lines."""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from training.data.tables.file_kind import kind_of_start
from training.errors import DatasetError

BLOCK_BYTES = 4 << 20
LONGEST_RECORD_BYTES = 16 << 20
_GZIP_FREE_BYTES = 64 << 20
_GZIP_RATIO = 200
_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_BYTES = 4096
_UNREADABLE_KINDS = {  # kinds of file that another command or file name would accept
    _GZIP_MAGIC: "is compressed with gzip; give its name the ending .gz",
    b"PAR1": "is a Parquet file; this format is read as text, so export it again as the recipe says",
}

Progress = Callable[[str, float], None]
"""Called with the name of a step and the share of it that is done, 0 … 1."""


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of a file.

    Attributes:
        first_line: number of the first line, from 1.
        content: the lines with their ends.
    """

    first_line: int
    content: bytes


@dataclass(frozen=True)
class Source:
    """The files that an import reads.

    Attributes:
        root: a directory, or one file.
        progress: called with the name of a file and the share of it that was read.
    """

    root: Path
    progress: Progress = lambda _step, _share: None

    def check(self) -> None:
        """Check that the source exists.

        Raises:
            DatasetError: no such file or directory.
        """
        if not self.root.exists():
            raise DatasetError(f"{self.root}: no such file or directory; give the path of the files to import")

    def find(self, *names: str) -> list[Path]:
        """Files of the directory that match one of the patterns, or the root itself if it is a file.

        Args:
            names: glob patterns without a folder; the same names with ``.gz`` count too.

        Returns:
            Paths in order of their names; empty if there are none.
        """
        if self.root.is_file():
            return [self.root]
        found = {path for name in names for end in ("", ".gz") for path in self.root.glob(name + end)}
        return sorted(path for path in found if path.is_file())

    def one(self, what: str, *names: str) -> Path:
        """The only file that matches one of the patterns.

        Args:
            what: the content of the file, for the message.
            names: patterns, see :meth:`find`.

        Raises:
            DatasetError: no file matches, or several do.
        """
        found = self.find(*names)
        spelled = " or ".join(names)
        if not found:
            raise DatasetError(f"{self.root}: no file with {what}, looked for {spelled}; see docs/recipes.md")
        if len(found) > 1:
            both = " and ".join(path.name for path in found[:3])
            raise DatasetError(f"{self.root}: found {both} for {what}; keep one of them in the directory")
        return found[0]

    def blocks(self, path: Path) -> Iterator[LineBlock]:
        """A file in blocks of whole lines, from the start; see :func:`read_blocks`."""
        yield from read_blocks(path, lambda share: self.progress(path.name, share))

    def chunks(self, path: Path) -> Iterator[bytes]:
        """The bytes of a file; see :func:`read_chunks`."""
        yield from read_chunks(path, lambda share: self.progress(path.name, share))


def read_blocks(path: Path, progress: Callable[[float], None]) -> Iterator[LineBlock]:
    """Read a file, gzip if its name ends in ``.gz``, in blocks of about 4 MiB that end with a line; no byte-order mark.

    Args:
        path: the file.
        progress: called with the share of the bytes that was read, 0 … 1.

    Raises:
        DatasetError: the file cannot be read, is of another kind, is a damaged or unreasonably compressed gzip file, or
            a line is longer than 16 MiB.
    """
    line = 1
    carry = b""
    for chunk in read_chunks(path, progress):
        end = chunk.rfind(b"\n") + 1
        if end:
            content = carry + chunk[:end]
            yield LineBlock(line, content)
            line += content.count(b"\n")
            carry = chunk[end:]
        else:
            carry += chunk
        if len(carry) > LONGEST_RECORD_BYTES:
            raise DatasetError(
                f"{path}: line {line:,} is longer than {LONGEST_RECORD_BYTES >> 20} MiB; check that this is the file "
                "that the recipe names"
            )
    if carry:
        yield LineBlock(line, carry)


def read_chunks(path: Path, progress: Callable[[float], None]) -> Iterator[bytes]:
    """Bytes of a file, gzip if its name ends in ``.gz``, without a byte-order mark, 4 MiB at a time.

    Args:
        path: the file.
        progress: called with the share of the bytes that was read, 0 … 1.

    Raises:
        DatasetError: the file cannot be read, is of another kind, or is a damaged or unreasonably compressed gzip file.
    """
    try:
        with path.open("rb") as raw:
            first = True
            for chunk in _unpacked(path, raw, progress):
                yield _without_mark(path, chunk) if first else chunk
                first = False
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        reason = f"the gzip file is damaged or cut short ({error}); copy or download it again"
        raise DatasetError(f"{path}: {reason}") from error
    except OSError as error:
        problem = error.strerror or error
        raise DatasetError(f"{path}: cannot be read ({problem}); check the path and its permissions") from error


def _unpacked(path: Path, raw: IO[bytes], progress: Callable[[float], None]) -> Iterator[bytes]:
    size = max(1, path.stat().st_size)
    packed = path.suffix.lower() == ".gz"
    if packed and raw.read(2) != _GZIP_MAGIC:
        raise DatasetError(f"{path}: is not compressed with gzip, though its name ends in .gz; rename or pack it")
    raw.seek(0)
    stream: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if packed else raw
    unpacked = 0
    while chunk := stream.read(BLOCK_BYTES):
        unpacked += len(chunk)
        if packed and unpacked > max(_GZIP_FREE_BYTES, _GZIP_RATIO * size):
            raise DatasetError(
                f"{path}: unpacks to more than {_GZIP_RATIO} times its size, which no table does; check its "
                "origin, and unpack it yourself if it is right"
            )
        progress(min(1.0, raw.tell() / size))
        yield chunk
    progress(1.0)


def _without_mark(path: Path, chunk: bytes) -> bytes:
    kinds = (kind for magic, kind in _UNREADABLE_KINDS.items() if chunk.startswith(magic))
    kind = next(kinds, None) or kind_of_start(chunk[:_HEAD_BYTES])
    if kind is not None:
        raise DatasetError(f"{path}: {kind}")
    return chunk.removeprefix(codecs.BOM_UTF8)


def decode(path: Path, block: LineBlock, encoding: str = "utf-8") -> str:
    """Text of a block.

    Args:
        path: the file, for the message.
        block: lines of the file.
        encoding: ``utf-8``, or ``latin-1``, which takes any bytes.

    Raises:
        DatasetError: a line is not UTF-8, or holds a NUL character.
    """
    try:
        text = block.content.decode(encoding)
    except UnicodeDecodeError as error:
        line = block.first_line + block.content.count(b"\n", 0, error.start)
        raise DatasetError(
            f"{path}: must be UTF-8, line {line:,} is not; export it again as UTF-8, or convert it from the encoding "
            "that it is in, often `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from error
    if "\0" in text:
        line = block.first_line + text.count("\n", 0, text.index("\0"))
        raise DatasetError(f"{path}: line {line:,} holds a NUL character, so it is no text table; export it again")
    return text


def lines_of(text: str) -> list[str]:
    """Lines of a text without their line ends; only LF and CRLF end a line."""
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def is_utf8(path: Path, source: Source) -> bool:
    """Whether a whole file is UTF-8."""
    for block in source.blocks(path):
        try:
            block.content.decode("utf-8")
        except UnicodeDecodeError:
            return False
    return True


def require_columns(path: Path, found: Sequence[str], required: Sequence[str]) -> None:
    """Check that a header names the required columns.

    Raises:
        DatasetError: a column is missing or appears twice.
    """
    missing = [name for name in required if name not in found]
    if missing:
        shown = ", ".join(repr(name[:40]) for name in found[:12])
        more = f" and {len(found) - 12} more" if len(found) > 12 else ""
        raise DatasetError(
            f"{path}: line 1: column {missing[0]!r} is missing, found {shown}{more}; check that this is the file that "
            "the recipe names"
        )
    repeated = next((name for name in found if found.count(name) > 1), None)
    if repeated is not None:
        raise DatasetError(f"{path}: line 1: column {repeated!r} appears more than once; rename or drop one")
