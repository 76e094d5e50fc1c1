"""Parses filters over item metadata and compiles them to a mask of allowed rows.

A condition is ``{"must": [clause …], "must_not": [clause …]}``: a row passes when every ``must`` clause matches it and
no ``must_not`` clause does. A clause names a ``field`` and exactly one of ``eq``, ``in``, a range (``gt`` or ``gte``,
``lt`` or ``lte``, one or both sides), ``exists``.

Rules for values:

- A list-valued field matches if any of its elements does.
- Null, and NaN, which files use for null, matches only ``exists: false``.
- Text compares by code point.
- Dates and times are ISO 8601, UTC unless they have an offset, and compare to the microsecond.
- ``true`` is not a number.
- A number is rounded to the precision of a floating-point field; an integer field compares exactly.
"""

import datetime as dt
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.errors import FilterError

MAX_CLAUSES = 32

_RANGE = ("gt", "gte", "lt", "lte")
_KEYS = frozenset({"field", "eq", "in", "exists", *_RANGE})
_COMPARE = {"gt": pc.greater, "gte": pc.greater_equal, "lt": pc.less, "lte": pc.less_equal}
_SHOWN_FIELDS = 20


@dataclass(frozen=True)
class FilterClause:
    """One test of one field.

    Attributes:
        field: name of the metadata column.
        test: which of the four tests it is.
        values: the value of ``eq``, the values of ``in``, (True,) or (False,) for ``exists``; empty for a range.
        bounds: pairs (gt | gte | lt | lte, value) of a range; empty for other tests.
    """

    field: str
    test: Literal["eq", "in", "range", "exists"]
    values: tuple[Any, ...] = ()
    bounds: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "FilterClause":
        """Parse a clause; a key with the value None counts as absent.

        Args:
            raw: a clause as in the module's description.

        Raises:
            FilterError: an unknown key, no field, or not exactly one test.
        """
        field = raw.get("field") if isinstance(raw, Mapping) else None
        if not isinstance(field, str) or not field:
            raise FilterError(f"a filter clause needs a 'field' name, got {_short(raw)}", field="filter")
        given = {key: value for key, value in raw.items() if value is not None}
        unknown = sorted(str(key) for key in given if key not in _KEYS)
        if unknown:
            raise FilterError(
                f"field {field!r}: unknown key {unknown[0][:40]!r}; use eq, in, gt, gte, lt, lte or exists", field=field
            )
        bounds = tuple((key, given[key]) for key in _RANGE if key in given)
        tests = [key for key in ("eq", "in", "exists") if key in given] + (["range"] if bounds else [])
        if len(tests) != 1 or ("gt" in given and "gte" in given) or ("lt" in given and "lte" in given):
            raise FilterError(
                f"field {field!r}: give exactly one of eq | in | (gt or gte, lt or lte) | exists, got "
                f"{', '.join(key for key in given if key != 'field') or 'none'}; null values match only exists: false",
                field=field,
            )
        if bounds:
            return cls(field, "range", bounds=bounds)
        if "eq" in given:
            return cls(field, "eq", (given["eq"],))
        if "in" in given:
            if not isinstance(given["in"], list | tuple):
                raise FilterError(f"field {field!r}: 'in' needs a list, got {_short(given['in'])}", field=field)
            return cls(field, "in", tuple(given["in"]))
        if not isinstance(given["exists"], bool):
            raise FilterError(f"field {field!r}: 'exists' is true or false, got {_short(given['exists'])}", field=field)
        return cls(field, "exists", (given["exists"],))


@dataclass(frozen=True)
class MetadataFilter:
    """A parsed condition, not yet checked against a catalogue.

    Attributes:
        must: clauses that must all match.
        must_not: clauses of which none may match.
    """

    must: tuple[FilterClause, ...]
    must_not: tuple[FilterClause, ...]

    @classmethod
    def parse(cls, condition: Mapping[str, Any]) -> "MetadataFilter":
        """Parse a condition.

        Args:
            condition: as in the module's description; an absent or empty list tests nothing.

        Raises:
            FilterError: the condition breaks the grammar; ``field`` names the field.
        """
        unknown = sorted(str(key) for key in condition if key not in {"must", "must_not"})
        if unknown:
            raise FilterError(f"a filter has 'must' and 'must_not', got {unknown[0][:40]!r}", field="filter")
        must, must_not = (_clauses(condition.get(name), name) for name in ("must", "must_not"))
        if len(must) + len(must_not) > MAX_CLAUSES:
            raise FilterError(
                f"a filter has at most {MAX_CLAUSES} clauses, got {len(must) + len(must_not)}", field="filter"
            )
        return cls(tuple(must), tuple(must_not))

    def rows(self, metadata: pa.Table) -> NDArray[np.bool_]:
        """Compile the filter.

        Args:
            metadata: n rows, one column per field.

        Returns:
            (n,) bool, the allowed rows.

        Raises:
            FilterError: an unknown field, or a comparison of unlike types; ``field`` names the field.
        """
        allowed = np.ones(metadata.num_rows, dtype=np.bool_)
        for clause in self.must:
            allowed &= clause_rows(metadata, clause)
        for clause in self.must_not:
            allowed &= ~clause_rows(metadata, clause)
        return allowed


def compile_filter(metadata: pa.Table, condition: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Parse and compile a condition; :class:`index.filters.filter_cache.FilterCache` caches the result.

    Args:
        metadata: n rows, one column per field.
        condition: as in the module's description; an absent or empty list tests nothing.

    Returns:
        (n,) bool, the allowed rows.

    Raises:
        FilterError: the condition breaks the grammar, names an unknown field, or compares unlike types; ``field`` names
            the field.
    """
    return MetadataFilter.parse(condition).rows(metadata)


def clause_rows(metadata: pa.Table, clause: FilterClause) -> NDArray[np.bool_]:
    """The rows that one clause matches, (n,) bool.

    Raises:
        FilterError: an unknown field, or a comparison of unlike types.
    """
    if clause.field not in metadata.column_names:
        known = ", ".join(metadata.column_names[:_SHOWN_FIELDS]) or "none"
        raise FilterError(f"unknown field {clause.field[:80]!r}; the fields are {known}", field=clause.field)
    column = metadata.column(clause.field)
    if clause.test == "exists":
        present = _present(column)
        return present if clause.values[0] else ~present
    try:
        return _any_element(column, clause) if _is_list(column.type) else _matches(column, clause)
    except pa.ArrowException as error:
        raise FilterError(
            f"field {clause.field!r} of type {column.type} cannot be compared ({error}); use 'exists'",
            field=clause.field,
        ) from error


def _clauses(raw: Any, name: str) -> list[FilterClause]:  # noqa: ANN401 - any value of a request
    if raw is None:
        return []
    if not isinstance(raw, list | tuple):
        raise FilterError(f"{name!r} needs a list of clauses, got {_short(raw)}", field="filter")
    return [FilterClause.parse(clause) for clause in raw]


def _present(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    return ~_to_bool(pc.is_null(column, nan_is_null=pa.types.is_floating(column.type)))


def _any_element(column: pa.ChunkedArray, clause: FilterClause) -> NDArray[np.bool_]:
    matched = np.zeros(len(column), dtype=np.bool_)
    elements = pc.list_flatten(column)
    owners = pc.list_parent_indices(column)
    matched[owners.to_numpy()[_matches(_chunked(elements), clause)]] = True
    return matched


def _matches(column: pa.ChunkedArray, clause: FilterClause) -> NDArray[np.bool_]:
    """Rows of a column of single values that satisfy ``eq``, ``in`` or a range."""
    comparable = _Comparable.of(column, clause.field)
    if clause.test == "range":
        tests = (comparable.compare(operator, value) for operator, value in clause.bounds)
        return reduce(np.logical_and, tests)
    return comparable.among(clause.values)


@dataclass(frozen=True)
class _Comparable:
    """A column converted to one of the comparable kinds: text, bool, integer, real or time."""

    column: pa.ChunkedArray
    kind: Literal["text", "bool", "integer", "real", "time", "null"]
    field: str

    @classmethod
    def of(cls, column: pa.ChunkedArray, field: str) -> "_Comparable":
        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return cls(column.cast(pa.large_string()), "text", field)
        if pa.types.is_boolean(kind):
            return cls(column, "bool", field)
        if pa.types.is_integer(kind):
            return cls(column, "integer", field)
        if pa.types.is_floating(kind):
            return cls(column.cast(pa.float32()) if kind == pa.float16() else column, "real", field)
        if pa.types.is_decimal(kind):
            return cls(column.cast(pa.float64()), "real", field)
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            column = _as_timestamp(column)
            return cls(column if column.type.tz else pc.assume_timezone(column, "UTC"), "time", field)
        if pa.types.is_null(kind):
            return cls(column, "null", field)
        raise FilterError(f"field {field!r} holds {kind}, which only 'exists' can test", field=field)

    def compare(self, operator: str, value: Any) -> NDArray[np.bool_]:  # noqa: ANN401 - checked below
        """(n,) bool, the rows on one side of a bound."""
        if self.kind == "bool":
            raise FilterError(f"field {self.field!r} is true or false and has no order; use eq", field=self.field)
        if self.kind == "null":
            self._check_scalar(value)
            return np.zeros(len(self.column), dtype=np.bool_)
        if self.kind == "integer":
            return self._compare_integer(operator, self._number(value))
        # Comparing with NaN is false, so NaN in the column never matches.
        return _to_bool(_COMPARE[operator](self.column, self._scalar(value)))

    def among(self, values: Iterable[Any]) -> NDArray[np.bool_]:
        """(n,) bool, the rows equal to any of the values."""
        if self.kind == "null":
            for value in values:
                self._check_scalar(value)
            return np.zeros(len(self.column), dtype=np.bool_)
        scalars = [scalar for scalar in map(self._scalar, values) if scalar is not None]
        if not scalars:
            return np.zeros(len(self.column), dtype=np.bool_)
        if len(scalars) == 1:  # several times as fast as hashing the column, on a million rows of text
            return _to_bool(pc.equal(self.column, scalars[0]))
        wanted = [scalar.as_py() for scalar in scalars]
        if self.kind == "real" and 0.0 in wanted:  # hashing distinguishes 0.0 and -0.0
            wanted += [0.0, -0.0]
        return _to_bool(pc.is_in(self.column, value_set=pa.array(wanted, self.column.type)))

    def _compare_integer(self, operator: str, value: float) -> NDArray[np.bool_]:
        """Compare integers with any number exactly: the bound is rounded to the adjacent integer."""
        upper = operator in {"lt", "lte"}
        bound = math.ceil(value) if operator in {"lt", "gte"} else math.floor(value)
        low, high = _limits(self.column.type)
        if bound < low or bound > high:
            matches_all = (bound > high) == upper
            return _to_bool(pc.is_valid(self.column)) & matches_all
        return _to_bool(_COMPARE[operator](self.column, pa.scalar(bound, self.column.type)))

    def _scalar(self, value: Any) -> pa.Scalar | None:  # noqa: ANN401 - checked by kind
        """The value in the column's type; None if no value of that type equals it."""
        kind = self.column.type
        if self.kind == "text":
            if not isinstance(value, str):
                raise self._mismatch("text", value)
            try:
                return pa.scalar(value, kind)
            except UnicodeError as error:
                raise self._mismatch("valid Unicode text", value) from error
        if self.kind == "bool":
            if not isinstance(value, bool):
                raise self._mismatch("true or false", value)
            return pa.scalar(value, kind)
        if self.kind == "time":
            return pa.scalar(self._time(value), kind)
        number = self._number(value)
        if self.kind == "real":
            return pa.scalar(self._real(number), kind)
        low, high = _limits(kind)
        exact = number == math.floor(number) and low <= number <= high
        return pa.scalar(int(number), kind) if exact else None

    def _number(self, value: Any) -> float:  # noqa: ANN401 - checked here
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._mismatch("a number", value)
        if isinstance(value, float) and not math.isfinite(value):
            raise FilterError(f"field {self.field!r}: numbers must be finite, got {value}", field=self.field)
        return value

    def _real(self, number: float) -> float:
        try:
            real = float(number)
        except OverflowError as error:
            raise FilterError(f"field {self.field!r}: the number is too large", field=self.field) from error
        with np.errstate(over="ignore"):
            return float(np.float32(real)) if self.column.type == pa.float32() else real

    def _time(self, value: Any) -> dt.datetime:  # noqa: ANN401 - checked here
        if not isinstance(value, str):
            raise self._mismatch("an ISO 8601 date or time", value)
        try:
            moment = dt.datetime.fromisoformat(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=dt.UTC)
            return moment.astimezone(dt.UTC)
        except (ValueError, OverflowError) as error:
            raise self._mismatch("an ISO 8601 date or time", value) from error

    def _check_scalar(self, value: Any) -> None:  # noqa: ANN401 - checked here
        if not isinstance(value, str | bool | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise self._mismatch("a text, number or truth value", value)

    def _mismatch(self, wanted: str, value: Any) -> FilterError:  # noqa: ANN401 - only shown
        return FilterError(
            f"field {self.field!r} compares with {wanted}, got {_short(value)} ({type(value).__name__})",
            field=self.field,
        )


def _as_timestamp(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dates and times in UTC microseconds; a time without a zone is read as UTC. Raises ArrowInvalid out of range."""
    if pa.types.is_timestamp(column.type):
        finer = column.type.unit == "ns"  # nanoseconds are truncated; every other unit must convert exactly
        column = column.cast(pa.timestamp("us", column.type.tz), safe=not finer)
        return column if column.type.tz is None else column.cast(pa.timestamp("us", "UTC"))
    return column.cast(pa.timestamp("us"))


def _limits(kind: pa.DataType) -> tuple[int, int]:
    limits = np.iinfo(kind.to_pandas_dtype())
    return int(limits.min), int(limits.max)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _chunked(array: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _to_bool(mask: pa.ChunkedArray) -> NDArray[np.bool_]:
    """(n,) bool of an arrow mask; null is False."""
    filled: NDArray[np.bool_] = pc.fill_null(mask, False).to_numpy(zero_copy_only=False).astype(np.bool_)
    return filled


def _short(value: object) -> str:
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits; lists a thousand deep
        return f"something too large to show of type {type(value).__name__}"
