"""Maps external item ids to dense rows and back."""

import re
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.errors import ItemTableError

MAX_ID_BYTES = 256

_FORBIDDEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")  # control characters and lone surrogates
_BLOCK_ROWS = 65_536
_PIECE = 1000
_REMEMBERED = 16_384  # answers of each direction: about 4 MB for short ids; few items are in most histories and answers


def check_item_id(item_id: str) -> None:
    """Check an id: 1 to 256 bytes of UTF-8, no control characters.

    Raises:
        ItemTableError: the id breaks the rule.
    """
    size = len(item_id.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= MAX_ID_BYTES:
        raise ItemTableError(f"an item id must have 1 to {MAX_ID_BYTES} bytes, got {size}: {item_id[:40]!r}")
    if _FORBIDDEN.search(item_id):
        raise ItemTableError(f"an item id must not hold control characters, got {item_id!r}")


class ItemIds:
    """An immutable two-way map between item ids and rows 0 … n − 1.

    The ids stay in one arrow array, which may be mapped from a file; a Python string is made only for a requested id.
    Rows are found through a hash table of 8 to 12 bytes per item. The table is computed on construction, which takes a
    tenth of a second for a million ids, so it always agrees with the ids. It uses Python's own keyed hash, so nobody
    can choose ids that collide. Rows and ids that were asked for lately are kept as Python objects.

    Args:
        ids: texts, or an arrow array of text; a ``large_string`` array is kept without a copy.

    Attributes:
        array: the ids in the order of their rows, ``large_string`` without nulls.

    Raises:
        ItemTableError: an id is repeated or breaks the rule of :func:`check_item_id`.
    """

    def __init__(self, ids: Iterable[str] | pa.Array) -> None:
        self.array = _as_array(ids)
        self._count = len(self.array)
        _, offsets, text = self.array.buffers()
        first = self.array.offset
        self._offsets = memoryview(offsets).cast("B").cast("q")[first : first + self._count + 1]
        self._text = memoryview(text).cast("B")
        # Of a function that does not know `self`: a circle of references would keep a dropped bundle's files mapped.
        self._id_of = lru_cache(_REMEMBERED)(partial(_id_of, self._offsets, self._text))
        self._check_rules()
        # The bucket of a row is the high bits of its hash, so rows sorted by hash are sorted by bucket.
        self._half = 1 << max(self._count.bit_length() - 1, 0)
        self._shift = sys.hash_info.width - self._half.bit_length()
        hashes = _hashes(self.array)
        keys, row_bits = _keys_of(hashes)
        rows = (keys & np.uint64((1 << row_bits) - 1)).astype(np.uint32)
        self._check_unique(hashes, rows, _alike(keys, row_bits))
        keys >>= np.uint64(self._shift)
        counts = np.bincount(keys.view(np.int64), minlength=2 * self._half)
        starts = np.zeros(2 * self._half + 1, dtype=np.uint32)
        starts[1:] = np.cumsum(counts, out=counts)  # several times as fast as a sum that is cast on the way
        table = _HashTable(starts.data, rows.data, self._shift, self._half, self._offsets, self._text)
        self._row_of = lru_cache(_REMEMBERED)(partial(_row_of, table))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, item_id: object) -> bool:
        return isinstance(item_id, str) and self.row(item_id) is not None

    def row(self, item_id: str) -> int | None:
        """The row of an id; None if the id is unknown."""
        return self._row_of(item_id) if len(item_id) <= MAX_ID_BYTES else None

    def id(self, row: int) -> str:
        """The id of a row (0 ≤ row < n).

        Raises:
            ItemTableError: there is no such row.
        """
        if not 0 <= row < self._count:
            raise ItemTableError(f"rows must lie in 0 … {self._count - 1}, got {row}")
        return self._id_of(row)

    def rows(self, ids: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
        """The rows of known ids, and the unknown ids.

        Returns:
            (known,) int64 rows, and the unknown ids; both in the order of ``ids``.
        """
        pairs = [(item_id, self.row(item_id)) for item_id in ids]
        known = np.array([row for _, row in pairs if row is not None], dtype=np.int64)
        return known, [item_id for item_id, row in pairs if row is None]

    def among(self, ids: Iterable[str]) -> NDArray[np.bool_]:
        """Mark the rows of some ids; faster than :meth:`rows` for many ids.

        Most of it runs without the interpreter's lock, which is never held for longer than about a millisecond.

        Args:
            ids: in any order; unknown ids are ignored.

        Returns:
            (n,) bool, True where the row's id is among ``ids``.
        """
        encoded = (item_id.encode("utf-8", "surrogatepass") for item_id in ids)
        chunks = [pa.array([], pa.large_binary())]
        while piece := list(islice(encoded, _PIECE)):
            chunks.append(pa.array(piece, pa.large_binary()))
        mask = pc.is_in(self.array.cast(pa.large_binary()), value_set=pa.concat_arrays(chunks))
        return np.asarray(mask.to_numpy(zero_copy_only=False), dtype=np.bool_)

    def _check_rules(self) -> None:
        """Apply :func:`check_item_id` to every id, vectorised over all bytes."""
        offsets, text = np.frombuffer(self._offsets, np.int64), np.frombuffer(self._text, np.uint8)
        for start in range(0, self._count, _BLOCK_ROWS):
            bounds = offsets[start : start + _BLOCK_ROWS + 1]
            size = np.diff(bounds)
            wrong = np.flatnonzero((size < 1) | (size > MAX_ID_BYTES))
            if not wrong.size:
                block = text[bounds[0] : bounds[-1]]
                control = (block < 0x20) | (block == 0x7F)  # C0 and DEL
                control[:-1] |= (block[:-1] == 0xC2) & (block[1:] >= 0x80) & (block[1:] < 0xA0)  # C1
                positions = bounds[0] + np.flatnonzero(control)
                wrong = np.searchsorted(bounds, positions, side="right") - 1
            for row in wrong:
                check_item_id(self.id(start + int(row)))

    def _check_unique(self, hashes: NDArray[np.int64], rows: NDArray[np.uint32], alike: NDArray[np.bool_]) -> None:
        """Raise ItemTableError for an id that two rows have; only rows with equal hashes are compared.

        Args:
            hashes: (n,) int64 hash of each row.
            rows: (n,) uint32 rows, those with equal hashes beside each other.
            alike: (n,) bool in that order, True for all rows with equal hashes, and few others.
        """
        rows = rows[alike]
        rows = rows[np.argsort(hashes[rows])]
        hashes = hashes[rows]
        for start in np.flatnonzero(hashes[1:] == hashes[:-1]):
            seen = set()
            for row in rows[start : np.searchsorted(hashes, hashes[start], side="right")]:
                item_id = self.id(int(row))
                if item_id in seen:
                    raise ItemTableError(f"item ids must be unique, {item_id!r} is repeated")
                seen.add(item_id)


class _HashTable(NamedTuple):
    """The hash table of some ids.

    Attributes:
        starts: of each bucket in ``rows``, and the end of the last.
        rows: sorted by bucket.
        shift: bits of a hash below those of its bucket.
        half: number of buckets of negative hashes.
        offsets: (n + 1,) int64 of each id in ``text``.
        text: UTF-8 bytes of all ids.
    """

    starts: memoryview
    rows: memoryview
    shift: int
    half: int
    offsets: memoryview
    text: memoryview


def _row_of(table: _HashTable, item_id: str) -> int | None:
    starts, rows, shift, half, offsets, text = table
    bucket = (hash(item_id) >> shift) + half
    first, last = starts[bucket], starts[bucket + 1]
    if first == last:
        return None
    encoded = item_id.encode("utf-8", "surrogatepass")
    for place in range(first, last):
        row: int = rows[place]
        if text[offsets[row] : offsets[row + 1]] == encoded:
            return row
    return None


def _id_of(offsets: memoryview, text: memoryview, row: int) -> str:
    return str(text[offsets[row] : offsets[row + 1]], "utf-8")


def _as_array(ids: Iterable[str] | pa.Array) -> pa.Array:
    """The ids as a valid ``large_string`` array without nulls."""
    try:
        array = ids.cast(pa.large_string()) if isinstance(ids, pa.Array) else pa.array(_texts(ids), pa.large_string())
        array.validate(full=True)
    except (UnicodeError, pa.ArrowException) as error:
        raise ItemTableError(f"item ids must be valid Unicode text ({error})") from error
    if array.null_count:
        raise ItemTableError(f"an item id must not be null, {array.null_count} are")
    return array


def _texts(ids: Iterable[str]) -> list[str]:
    """The ids as a list of ``str``; arrow alone would accept bytes as text and None as null."""
    texts = list(ids)
    for item_id in texts:
        if not isinstance(item_id, str):
            raise ItemTableError(f"an item id must be text, got {item_id!r}")
    return texts


def _hashes(array: pa.Array) -> NDArray[np.int64]:
    """(n,) int64 hash of each id by Python's ``hash``; strings are made one block at a time."""
    hashes = np.empty(len(array), dtype=np.int64)
    for start in range(0, len(array), _BLOCK_ROWS):
        block = array.slice(start, _BLOCK_ROWS).to_pylist()
        hashes[start : start + len(block)] = np.fromiter(map(hash, block), np.int64, len(block))
    return hashes


def _keys_of(hashes: NDArray[np.int64]) -> tuple[NDArray[np.uint64], int]:
    """The high bits of each hash with its row in the low bits, sorted: a third of the time of `numpy.argsort`.

    Returns:
        (n,) uint64 keys, ascending as the signed hashes, and the number of bits of a row.
    """
    row_bits = max(len(hashes) - 1, 0).bit_length()
    keys = hashes.view(np.uint64) ^ np.uint64(1 << 63)
    keys >>= np.uint64(row_bits)
    keys <<= np.uint64(row_bits)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    return keys, row_bits


def _alike(keys: NDArray[np.uint64], row_bits: int) -> NDArray[np.bool_]:
    """(n,) bool, True where a sorted key and one beside it have the same bits of a hash."""
    same = (keys[1:] ^ keys[:-1]) < np.uint64(1 << row_bits)
    found = np.zeros(len(keys), dtype=np.bool_)
    found[1:] = same
    found[:-1] |= same
    return found
