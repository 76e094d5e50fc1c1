"""Hashes the text and picture of every item of a catalogue, so that a later run finds the changed items."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from index.items.item_table import ITEM_ID
from index.machine.cores import available_cores
from training.backbones.prompts import plain_text
from training.data.dataset import IMAGE, Dataset
from training.data.picture_reader import decoding_has_changed
from training.data.tables.row_lookup import RowLookup
from training.errors import EmbeddingsError

TEXT_HASH = "text"
PICTURE_HASH = "picture"
SIZE = "size"
MTIME = "mtime_ns"
NOT_READ = "cannot be read"
"""Replaces the hash of a picture whose bytes the operating system does not return."""
SCHEMA = pl.Schema(
    {
        ITEM_ID: pl.String(),
        TEXT_HASH: pl.String(),
        PICTURE_HASH: pl.String(),
        IMAGE: pl.String(),
        SIZE: pl.Int64(),
        MTIME: pl.Int64(),
    }
)
_STAMP = (PICTURE_HASH, SIZE, MTIME)
_HEX = 32
_DECODING = "decoding 2"
_AHEAD = 512
_BLOCK_ROWS = 8_192
_MOST_THREADS = 16
_Stamp = tuple[str | None, int | None, int | None]

Progress = Callable[[int, int], None]
"""Called with the numbers of finished and of all pieces."""


@dataclass(frozen=True)
class Delta:
    """The difference between a catalogue and an earlier state of it.

    Attributes:
        was: (n,) int64, the earlier row of each item, −1 for a new item.
        same: (n,) bool, text and picture are unchanged.
        deleted: number of earlier items that no longer exist.
    """

    was: NDArray[np.int64]
    same: NDArray[np.bool_]
    deleted: int

    @property
    def new(self) -> int:
        """Number of new items."""
        return int((self.was < 0).sum())

    @property
    def changed(self) -> int:
        """Number of items with another text or picture."""
        return int(((self.was >= 0) & ~self.same).sum())

    @property
    def unchanged(self) -> int:
        """Number of items with the same text and picture."""
        return int(self.same.sum())


@dataclass(frozen=True)
class ContentHashes:
    """Hashes of the items' texts and pictures.

    Attributes:
        frame: one row per item, in the catalogue's order: ``item_id``; ``text``, 32 hex digits of sha256 over the
            tokenizer's input, null without a text; ``picture``, the same over the file's bytes (and over the version of
            the decoder, for kinds of pictures that it reads differently), null without a picture; ``image``, the path
            in the catalogue, with the file's ``size`` in bytes and ``mtime_ns``.

    Raises:
        EmbeddingsError: other columns, or a repeated id.
    """

    frame: pl.DataFrame

    def __post_init__(self) -> None:
        if self.frame.schema != SCHEMA:
            raise EmbeddingsError(f"contents must have the columns {SCHEMA}, got {self.frame.schema}; embed again")
        if not self.frame[ITEM_ID].is_unique().all():
            raise EmbeddingsError("contents must name every item once; embed the catalogue again")

    def __len__(self) -> int:
        """Number of items."""
        return self.frame.height

    def item_ids(self) -> list[str]:
        """Item ids in the catalogue's order."""
        return self.frame[ITEM_ID].to_list()

    def are_of(self, item_ids: Sequence[str] | pl.Series) -> bool:
        """Whether these are the item ids in this order; compared in blocks, as a column of all would take memory."""
        ids = self.frame[ITEM_ID]
        blocks = (slice(start, start + _BLOCK_ROWS) for start in range(0, len(ids), _BLOCK_ROWS))
        return len(ids) == len(item_ids) and all(
            ids[block].equals(pl.Series(ITEM_ID, item_ids[block], dtype=pl.String)) for block in blocks
        )

    def not_found(self) -> NDArray[np.bool_]:
        """(n,) bool: the item names a picture and the file does not exist."""
        named = pl.col(IMAGE).str.strip_chars().fill_null("") != ""
        return self.frame.select(named & pl.col(PICTURE_HASH).is_null()).to_series().to_numpy()

    def digest(self) -> str:
        """16 hex digits over ids and hashes in any order of the items; file names and times do not count."""
        return self._digest(self.frame[ITEM_ID].arg_sort())

    def ordered_digest(self) -> str:
        """Like :meth:`digest`, but the order of the items counts."""
        return self._digest(None)

    def against(self, earlier: "ContentHashes | None") -> Delta:
        """Compare with an earlier state; None counts every item as new."""
        if earlier is None:
            nowhere = np.full(len(self), -1, dtype=np.int64)
            return Delta(nowhere, np.zeros(len(self), dtype=np.bool_), 0)
        lookup = RowLookup(earlier.frame[ITEM_ID])
        was, same = np.empty(len(self), dtype=np.int64), np.zeros(len(self), dtype=np.bool_)
        for start in range(0, len(self), _BLOCK_ROWS):  # a join of all rows would take 130 bytes an item
            part = slice(start, start + _BLOCK_ROWS)
            was[part] = lookup.find(self.frame[ITEM_ID][part])
            there = start + np.flatnonzero(was[part] >= 0)
            same[there] = _are_alike(self.frame, there, earlier.frame, was[there])
        return Delta(was, same, len(earlier) - int((was >= 0).sum()))

    def save(self, path: Path) -> None:
        """Write a Parquet file, under a temporary name first."""
        partial = path.with_name(f"{path.name}.part")
        self.frame.write_parquet(partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "ContentHashes":
        """Read what :meth:`save` wrote.

        Raises:
            EmbeddingsError: the file is missing, unreadable or breaks a rule.
        """
        try:
            return cls(pl.read_parquet(path, glob=False, columns=list(SCHEMA)))
        except (OSError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise EmbeddingsError(f"{path}: contents cannot be read ({error}); embed the catalogue again") from error

    def _digest(self, order: pl.Series | None) -> str:
        """16 hex digits over ids and hashes of the rows in an order; None: as they are."""
        digest, frame = hashlib.sha256(), self.frame.select(ITEM_ID, TEXT_HASH, PICTURE_HASH)
        for start in range(0, frame.height, _BLOCK_ROWS):  # a sorted copy would take 48 bytes an item
            part = slice(start, start + _BLOCK_ROWS)
            for row in (frame[part] if order is None else frame[order[part]]).rows():
                digest.update("\0".join(value or "" for value in row).encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()[:16]


def _are_alike(
    now: pl.DataFrame, rows: NDArray[np.int64], then: pl.DataFrame, was: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether text and picture of rows have the hashes of earlier rows."""
    alike = np.ones(len(rows), dtype=np.bool_)
    for name in (TEXT_HASH, PICTURE_HASH):
        alike &= now[name].gather(rows).eq_missing(then[name].gather(was)).to_numpy()
    return alike


def read_contents(
    dataset: Dataset,
    *,
    trusted: ContentHashes | None = None,
    progress: Progress = lambda _done, _all: None,
    threads: int | None = None,
) -> ContentHashes:
    """Hash every text and picture of a catalogue; a picture shared by several items is read once.

    Args:
        dataset: the catalogue.
        trusted: an earlier state whose hash is reused for a picture of the same path, size and modification time; None
            reads every picture.
        progress: called with the numbers of finished and of all pictures; an error that it raises ends the work.
        threads: number of reading threads; None for four per core, at most 16.
    """
    workers = threads or min(_MOST_THREADS, 4 * available_cores())
    items = dataset.items.select(ITEM_ID, _text_hashes(dataset), IMAGE)
    pictures = _picture_hashes(dataset, _known(items.select(IMAGE), trusted), progress, workers)
    found = items.join(pictures, on=IMAGE, how="left", maintain_order="left").select(list(SCHEMA))
    return ContentHashes(found)


def pictures_not_found(dataset: Dataset, contents: ContentHashes | None) -> NDArray[np.bool_]:
    """Which items name a picture that does not exist.

    Args:
        dataset: the catalogue.
        contents: hashes of its items; None to check the files.

    Returns:
        (n,) bool, rows as the catalogue.
    """
    if contents is not None:
        return contents.not_found()
    names = dataset.items[IMAGE]  # iterating makes strings of some thousand rows at a time
    lost = (bool(name and name.strip()) and dataset.picture(name) is None for name in names)
    return np.fromiter(lost, dtype=np.bool_, count=names.len())


def _text_hashes(dataset: Dataset) -> pl.Series:
    """The hash of each item's text; never a list of all, whose strings are three times as large."""
    texts, blocks = iter(dataset.texts()), [pl.Series(TEXT_HASH, [], pl.String)]
    while block := list(islice(texts, _BLOCK_ROWS)):
        hashes = [None if text is None else text_hash(text) for text in block]
        blocks.append(pl.Series(TEXT_HASH, hashes, pl.String))
    return pl.concat(blocks)


def text_hash(text: str) -> str:
    """32 hex digits over the tokenizer's input for a text."""
    return hashlib.sha256(plain_text(text).encode("utf-8", "surrogatepass")).hexdigest()[:_HEX]


def picture_hash(file: BufferedReader) -> str:
    """32 hex digits over a picture's bytes, and over the version of the decoder where it reads them differently.

    Args:
        file: of the picture, at its start.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.file_digest(file, "sha256").hexdigest()[:_HEX]
    if decoding_has_changed(file):  # so that pictures that decode to other pixels are embedded again
        return hashlib.sha256(f"{digest} {_DECODING}".encode()).hexdigest()[:_HEX]
    return digest


def metadata_digest(table: pa.Table) -> str:
    """16 hex digits over names, types and values of metadata columns, independent of their storage.

    Args:
        table: :meth:`training.data.dataset.Dataset.metadata`.
    """
    digest = hashlib.sha256("\n".join(f"{field.name}\0{field.type}" for field in table.schema).encode())
    frame = pl.from_arrow(table)
    if isinstance(frame, pl.DataFrame):
        for part in frame.iter_slices(65_536):
            digest.update(part.write_ndjson().encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _known(images: pl.DataFrame, trusted: ContentHashes | None) -> pl.DataFrame:
    """The different paths of pictures, ascending, with hash, size and time of an earlier state, null where unknown."""
    named = images.filter(pl.col(IMAGE).str.strip_chars() != "").unique().sort(IMAGE)
    if trusted is None:
        return named.with_columns(pl.lit(None, SCHEMA[name]).alias(name) for name in _STAMP)
    rows = trusted.frame.filter(pl.col(PICTURE_HASH) != NOT_READ).drop_nulls([IMAGE, SIZE, MTIME])
    return named.join(rows.select(IMAGE, *_STAMP).unique(IMAGE), on=IMAGE, how="left", maintain_order="left")


def _picture_hashes(dataset: Dataset, known: pl.DataFrame, progress: Progress, threads: int) -> pl.DataFrame:
    """Hash, size and time of each picture; read in threads, in order, and kept in columns but for some thousand."""
    blocks, done = [pl.DataFrame(schema={name: SCHEMA[name] for name in (IMAGE, *_STAMP)})], 0
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for rows in known.iter_slices(_BLOCK_ROWS):
            stamps: list[_Stamp] = []
            for part in rows.iter_slices(_AHEAD):  # so that few results wait
                for stamp in pool.map(lambda row: _stamp(dataset, *row), part.rows()):
                    stamps.append(stamp)
                    done += 1
                    progress(done, known.height)
            read = pl.DataFrame(stamps, schema={name: SCHEMA[name] for name in _STAMP}, orient="row")
            blocks.append(rows.select(IMAGE).hstack(read))
    return pl.concat(blocks)


def _stamp(dataset: Dataset, name: str, known: str | None, size: int | None, time: int | None) -> _Stamp:
    """Hash, size and time of a picture; the hash is the known one where size and time are."""
    path = dataset.picture(name)
    if path is None:
        return None, None, None
    try:
        status = path.stat()
        if known is not None and (size, time) == (status.st_size, status.st_mtime_ns):
            return known, size, time
        with path.open("rb") as file:
            status = os.fstat(file.fileno()) if isinstance(path, Path) else status
            return picture_hash(file), status.st_size, status.st_mtime_ns
    except OSError:
        return NOT_READ, None, None
