"""Translates a filter into an expression of Milvus that every allowed row meets.

A clause that has no exact translation is left out. So an expression may allow more rows than the filter, never fewer,
and the rows that a search returns are checked against the mask of allowed rows.
"""

import math
from collections.abc import Callable, Mapping
from typing import Final, TypeGuard

import numpy as np

from index.filters.filters import FilterClause, MetadataFilter
from index.search.row_mask import RowRule
from service.retrieval.milvus.scalar_fields import FieldKind

IS_NEW: Final = "is_new"
"""Field that is true for an item without a training event."""
ROW: Final = "row"
"""Primary key: the row in the bundle."""
MOST_VALUES: Final = 1000
"""Most values of one clause."""
_OPERATORS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_INT64: Final = np.iinfo(np.int64)


def expression_of(rule: RowRule | None, columns: Mapping[str, str], kinds: Mapping[str, FieldKind]) -> str:
    """The expression for a rule.

    Args:
        rule: that every allowed row meets; None: none is known.
        columns: field of the collection for each field of the metadata that it holds.
        kinds: kind of each of these fields.

    Returns:
        An expression; empty where every row may meet the rule.
    """
    if rule is None:
        return ""
    parts = [f"{IS_NEW} == true"] if rule.only_new else []
    if rule.condition:
        parsed = MetadataFilter.parse(rule.condition)
        for clauses, negated in ((parsed.must, False), (parsed.must_not, True)):
            for clause in clauses:
                if clause.field in columns and clause.field in kinds:
                    part = _clause(clause, columns[clause.field], kinds[clause.field], negated=negated)
                    parts += [] if part is None else [part]
    return " and ".join(parts)


def _clause(clause: FilterClause, column: str, kind: FieldKind, *, negated: bool) -> str | None:
    """The expression of one clause; None if it has no exact translation."""
    if clause.test == "exists":
        if kind == "texts":
            return None  # an empty list is present and a null is not, but both are stored as empty
        return f"{column} is not null" if clause.values[0] is not negated else f"{column} is null"
    test = _range(clause, column, kind) if clause.test == "range" else _among(clause, column, kind)
    if test is None:
        return None
    if not negated:
        return f"({test})"
    return f"(not ({test}))" if kind == "texts" else f"({column} is null or not ({test}))"


def _among(clause: FilterClause, column: str, kind: FieldKind) -> str | None:
    if not 0 < len(clause.values) <= MOST_VALUES:
        return None
    literals = [_LITERALS[kind](value) for value in clause.values]
    if any(literal is None for literal in literals):
        return None
    joined = ", ".join(literal for literal in literals if literal is not None)
    if kind == "texts":
        return f"array_contains_any({column}, [{joined}])"
    return f"{column} == {joined}" if len(literals) == 1 else f"{column} in [{joined}]"


def _range(clause: FilterClause, column: str, kind: FieldKind) -> str | None:
    if kind not in {"integer", "single", "double"}:
        return None
    tests = []
    for side, value in clause.bounds:
        if not _is_number(value):
            return None
        bound = value
        if kind == "integer":  # rounded to the adjacent integer, so that an integer compares exactly
            bound = math.ceil(value) if side in {"lt", "gte"} else math.floor(value)
        literal = _LITERALS[kind](bound)
        if literal is None:
            return None
        tests.append(f"{column} {_OPERATORS[side]} {literal}")
    return " and ".join(tests)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> str | None:
    if not isinstance(value, str) or any(ord(letter) < 32 or 0x7F <= ord(letter) < 0xA0 for letter in value):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:
        return None
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _bool(value: object) -> str | None:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else None


def _integer(value: object) -> str | None:
    if not _is_number(value) or value != math.floor(value):
        return None
    return str(int(value)) if _INT64.min < value <= _INT64.max else None


def _single(value: object) -> str | None:
    """The number in the precision of the column, as a filter compares it."""
    if not _is_number(value):
        return None
    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    return repr(rounded) if math.isfinite(rounded) else None


def _double(value: object) -> str | None:
    return repr(float(value)) if _is_number(value) else None


_LITERALS: Final[Mapping[FieldKind, Callable[[object], str | None]]] = {
    "text": _text,
    "texts": _text,
    "bool": _bool,
    "integer": _integer,
    "single": _single,
    "double": _double,
}
