"""FilterCache: compiled filters, so that one asked again costs microseconds instead of a pass over the catalogue."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.filters.filters import Clause, Filter
from index.search.row_mask import RowMask

_Place = tuple[bytes, bool]  # the key of a filter, and whether it is combined with what is available

CACHE_BYTES = 32 << 20  # 28 filters over a million items

_KEY_BYTES = 32  # too many for anybody to find two filters with the same key
_ENTRY_BYTES = 1024  # what an entry costs beside its arrays, so that a tiny catalogue does not collect filters for ever


class FilterCache:
    """Compiled filters, the least recently used dropped first; bounded in bytes, safe for any number of threads.

    Args:
        metadata: n rows, one column per field.
        indexed: (n,) bool, the rows that a query can find.
        capacity: most bytes to keep; a filter larger than that is compiled every time.
    """

    def __init__(self, metadata: pa.Table, indexed: NDArray[np.bool_], capacity: int = CACHE_BYTES) -> None:
        self._metadata = metadata
        self._indexed = indexed
        self._capacity = capacity
        self._kept: OrderedDict[_Place, RowMask] = OrderedDict()
        self._available: NDArray[np.bool_] | None = None
        self._bytes = 0
        self._lock = threading.Lock()

    def allowed(self, condition: Mapping[str, Any] | None, available: NDArray[np.bool_] | None = None) -> RowMask:
        """The rows that a condition allows, see :mod:`index.filters.filters`; all rows for None.

        Args:
            condition: what is asked for.
            available: (n,) bool, what may be answered at the moment, the same for every condition, never written to;
                None for everything. Filters are kept combined with the newest one, which is told by its identity.

        Raises:
            FilterError: the condition breaks the grammar, names an unknown field, or compares unlike types.
            SearchError: ``available`` is of another dtype or length.
        """
        parsed = Filter.parse(condition or {})
        key = _key(parsed)
        if available is not None:
            self._turn_to(available)
            combined = self._found(key, available)
            if combined is not None:
                return combined
        plain = self._found(key, None)
        if plain is None:
            plain = self._kept_as(key, None, self._compiled(parsed))
        return plain if available is None else self._kept_as(key, available, plain & available)

    def keeps(self, condition: Mapping[str, Any], available: NDArray[np.bool_] | None = None) -> bool:
        """Whether :meth:`allowed` would answer without a pass over the catalogue.

        Raises:
            FilterError: the condition breaks the grammar.
        """
        key = _key(Filter.parse(condition))
        return self._found(key, None) is not None or (available is not None and self._found(key, available) is not None)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept, by :attr:`RowMask.nbytes`."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._kept)

    def _compiled(self, parsed: Filter) -> RowMask:
        """Called outside the lock: two threads may compile the same filter at once, but none waits for another's."""
        return RowMask.of(parsed.rows(self._metadata), self._indexed)

    def _turn_to(self, available: NDArray[np.bool_]) -> None:
        """Forget what was combined with another mask."""
        with self._lock:
            if self._available is available:
                return
            self._available = available
            for place in [place for place in self._kept if place[1]]:
                self._bytes -= self._kept.pop(place).nbytes + _ENTRY_BYTES

    def _found(self, key: bytes | None, available: NDArray[np.bool_] | None) -> RowMask | None:
        if key is None:
            return None
        place = (key, available is not None)
        with self._lock:
            if available is not None and self._available is not available:
                return None
            found = self._kept.get(place)
            if found is not None:
                self._kept.move_to_end(place)
            return found

    def _kept_as(self, key: bytes | None, available: NDArray[np.bool_] | None, made: RowMask) -> RowMask:
        size = made.nbytes + _ENTRY_BYTES
        if key is None or size > self._capacity:
            return made
        place = (key, available is not None)
        with self._lock:
            outdated = available is not None and self._available is not available  # it changed in the meantime
            if outdated or place in self._kept:
                return made
            self._kept[place] = made
            self._bytes += size
            while self._bytes > self._capacity:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.nbytes + _ENTRY_BYTES
        return made


def _key(parsed: Filter) -> bytes | None:
    """A canonical form of the filter, hashed, so that its size does not depend on what was sent; None if it has none.

    The order of clauses and of the values of ``in``, and repetitions of either, do not matter; 1, 1.0 and true differ.
    """
    sides = []
    for clauses in (parsed.must, parsed.must_not):
        keys = [_clause_key(clause) for clause in clauses]
        if any(key is None for key in keys):
            return None
        sides.append(_joined(sorted({key for key in keys if key is not None})))
    return blake2b(_joined(sides), digest_size=_KEY_BYTES).digest()


def _clause_key(clause: Clause) -> bytes | None:
    values = [_token(value) for value in clause.values]
    bounds = [_token(value) for _, value in clause.bounds]
    if any(token is None for token in (*values, *bounds)):
        return None
    sides = sorted(
        _joined([side.encode(), token or b""]) for (side, _), token in zip(clause.bounds, bounds, strict=True)
    )
    field = clause.field.encode("utf-8", "surrogatepass")
    return _joined([field, clause.test.encode(), _joined(sorted({token or b"" for token in values})), _joined(sides)])


def _token(value: object) -> bytes | None:
    """Type and value of a scalar; None for anything else, which no filter can compare with."""
    if type(value) is str:
        return b"s" + value.encode("utf-8", "surrogatepass")
    if type(value) is bool:
        return b"b1" if value else b"b0"
    if type(value) is int:
        return b"i" + hex(value).encode()  # no limit on its digits, unlike str
    if type(value) is float:
        return b"f" + value.hex().encode()
    return None


def _joined(parts: Iterable[bytes]) -> bytes:
    """The parts with their lengths before them, so that no two lists of parts look the same."""
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)
