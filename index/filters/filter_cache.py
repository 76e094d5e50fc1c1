"""Caches compiled filters, so that a repeated filter takes microseconds instead of a pass over the catalogue."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.filters.filters import FilterClause, MetadataFilter
from index.search.row_mask import RowMask, RowRule

_CacheKey = tuple[bytes, bool]  # the key of a filter, and whether it is combined with the available rows

CACHE_BYTES = 32 << 20  # 28 filters over a million items

_KEY_BYTES = 32  # long enough that nobody can find two filters with the same key
_RULE_BYTES = 16_384  # of the values of a filter that is kept with its mask
_OBJECT_BYTES = 64
_ENTRY_BYTES = 1024  # bytes of an entry beside its arrays, so that the cache of a tiny catalogue is bounded as well


class FilterCache:
    """LRU cache of compiled filters, bounded in bytes; any number of threads may use it.

    Args:
        metadata: n rows, one column per field.
        indexed: (n,) bool, the rows in the index.
        capacity: most bytes to keep; a larger filter is compiled at every call.
    """

    def __init__(self, metadata: pa.Table, indexed: NDArray[np.bool_], capacity: int = CACHE_BYTES) -> None:
        self._metadata = metadata
        self._indexed = indexed
        self._capacity = capacity
        self._entries: OrderedDict[_CacheKey, RowMask] = OrderedDict()
        self._available: NDArray[np.bool_] | None = None
        self._bytes = 0
        self._lock = threading.Lock()

    def allowed(self, condition: Mapping[str, Any] | None, available: NDArray[np.bool_] | None = None) -> RowMask:
        """The rows that a condition allows.

        Args:
            condition: see :mod:`index.filters.filters`; None allows every row.
            available: (n,) bool, the rows that may be returned under any condition; None for all. It must not be
                modified. Combined masks are cached for the newest array only, which is recognised by identity.

        Raises:
            FilterError: the condition breaks the grammar, names an unknown field, or compares unlike types.
            SearchError: ``available`` is of another dtype or length.
        """
        parsed = MetadataFilter.parse(condition or {})
        key = _key(parsed)
        if available is not None:
            self._set_available(available)
            combined = self._get(key, available)
            if combined is not None:
                return combined
        plain = self._get(key, None)
        if plain is None:
            plain = self._store(key, None, replace(self._compile(parsed), rule=_rule(parsed, condition)))
        return plain if available is None else self._store(key, available, plain & available)

    def contains(self, condition: Mapping[str, Any], available: NDArray[np.bool_] | None = None) -> bool:
        """Whether :meth:`allowed` would return this filter without a pass over the catalogue.

        Raises:
            FilterError: the condition breaks the grammar.
        """
        key = _key(MetadataFilter.parse(condition))
        return self._get(key, None) is not None or (available is not None and self._get(key, available) is not None)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, by :attr:`RowMask.nbytes` and a constant per entry."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def _compile(self, parsed: MetadataFilter) -> RowMask:
        """Compile a filter outside the lock: two threads may compile the same one, but no thread waits for another."""
        return RowMask.of(parsed.rows(self._metadata), self._indexed)

    def _set_available(self, available: NDArray[np.bool_]) -> None:
        """Drop the entries combined with another mask."""
        with self._lock:
            if self._available is available:
                return
            self._available = available
            for entry_key in [entry_key for entry_key in self._entries if entry_key[1]]:
                self._bytes -= self._entries.pop(entry_key).nbytes + _ENTRY_BYTES

    def _get(self, key: bytes | None, available: NDArray[np.bool_] | None) -> RowMask | None:
        if key is None:
            return None
        entry_key = (key, available is not None)
        with self._lock:
            if available is not None and self._available is not available:
                return None
            found = self._entries.get(entry_key)
            if found is not None:
                self._entries.move_to_end(entry_key)
            return found

    def _store(self, key: bytes | None, available: NDArray[np.bool_] | None, mask: RowMask) -> RowMask:
        size = mask.nbytes + _ENTRY_BYTES
        if key is None or size > self._capacity:
            return mask
        entry_key = (key, available is not None)
        with self._lock:
            outdated = available is not None and self._available is not available  # another thread replaced it
            if outdated or entry_key in self._entries:
                return mask
            self._entries[entry_key] = mask
            self._bytes += size
            while self._bytes > self._capacity:
                _, dropped = self._entries.popitem(last=False)
                self._bytes -= dropped.nbytes + _ENTRY_BYTES
        return mask


def _rule(parsed: MetadataFilter, condition: Mapping[str, Any] | None) -> RowRule | None:
    """The rule of a compiled filter; None if there is no condition, or too large a one to be kept with each mask."""
    clauses = (*parsed.must, *parsed.must_not)
    values = [value for clause in clauses for value in (*clause.values, *(bound for _, bound in clause.bounds))]
    size = sum(_value_bytes(value) for value in values)
    return RowRule(condition, nbytes=size) if condition and clauses and size <= _RULE_BYTES else None


def _value_bytes(value: object) -> int:
    if isinstance(value, str):
        return _OBJECT_BYTES + 4 * len(value)
    return _OBJECT_BYTES + (value.bit_length() // 8 if isinstance(value, int) else 0)


def _key(parsed: MetadataFilter) -> bytes | None:
    """Hash of the filter's canonical form, of constant size; None if a value has no canonical form.

    The order and repetition of clauses and of the values of ``in`` do not matter; 1, 1.0 and true differ.
    """
    sides = []
    for clauses in (parsed.must, parsed.must_not):
        keys = [_clause_key(clause) for clause in clauses]
        if any(key is None for key in keys):
            return None
        sides.append(_joined(sorted({key for key in keys if key is not None})))
    return blake2b(_joined(sides), digest_size=_KEY_BYTES).digest()


def _clause_key(clause: FilterClause) -> bytes | None:
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
    """Type and value of a scalar as bytes; None for any other type, which no filter accepts."""
    if type(value) is str:
        return b"s" + value.encode("utf-8", "surrogatepass")
    if type(value) is bool:
        return b"b1" if value else b"b0"
    if type(value) is int:
        return b"i" + hex(value).encode()  # unlike str, without a limit on the number of digits
    if type(value) is float:
        return b"f" + value.hex().encode()
    return None


def _joined(parts: Iterable[bytes]) -> bytes:
    """Concatenate length-prefixed parts, so that different lists of parts give different bytes."""
    return b"".join(b"%d:%b" % (len(part), part) for part in parts)
