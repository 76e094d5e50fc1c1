"""Filters against a plain-Python evaluator that follows the grammar word by word."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import FilterError
from index.filters.filters import MAX_CLAUSES, compile_filter

COMPARE = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}


def matches(value, clause):
    """One row, one clause, as http-api words it."""
    missing = value is None or (isinstance(value, float) and value != value)
    if "exists" in clause:
        return clause["exists"] != missing
    if missing:
        return False
    if isinstance(value, list):
        return any(matches(element, clause) for element in value)
    if "eq" in clause:
        return value == clause["eq"]
    if "in" in clause:
        return any(value == wanted for wanted in clause["in"])
    return all(COMPARE[key](value, bound) for key, bound in clause.items() if key in COMPARE)


def by_hand(columns, condition):
    count = len(next(iter(columns.values())))
    return np.array(
        [
            all(matches(columns[clause["field"]][row], clause) for clause in condition.get("must", []))
            and not any(matches(columns[clause["field"]][row], clause) for clause in condition.get("must_not", []))
            for row in range(count)
        ],
        dtype=bool,
    )


small_text = st.text(alphabet="abé日😀", max_size=2)
small_int = st.integers(-3, 3)
edge_int = st.sampled_from([-(2**63), 2**63 - 1, 2**53 + 1, 2**53, 0, 1])
half = st.one_of(st.integers(-6, 6).map(lambda number: number / 2), st.just(-0.0))
FIELDS = {
    "name": (pa.string(), small_text),
    "wide": (pa.large_string(), small_text),
    "word": (pa.dictionary(pa.int8(), pa.string()), small_text),
    "size": (pa.int8(), small_int),
    "count": (pa.int64(), st.one_of(small_int, edge_int)),
    "plus": (pa.uint16(), st.integers(0, 4)),
    "price": (pa.float64(), st.one_of(half, st.just(float("nan")))),
    "share": (pa.float32(), half),
    "open": (pa.bool_(), st.booleans()),
    "tags": (pa.list_(pa.string()), st.lists(st.one_of(st.none(), small_text), max_size=3)),
    "sizes": (pa.large_list(pa.int32()), st.lists(small_int, max_size=3)),
    "pair": (pa.list_(pa.float64(), 2), st.lists(half, min_size=2, max_size=2)),
    "none": (pa.null(), st.none()),
}
ASKED = {
    "size": st.one_of(small_int, half, st.sampled_from([1000, -1000, 1e30, -(10**30)])),
    "count": st.one_of(small_int, edge_int, half, st.sampled_from([2**63, -(2**63) - 1, 1e19])),
    "plus": st.one_of(small_int, half),
    "sizes": st.one_of(small_int, half),
    "tags": small_text,
    "price": st.one_of(half, small_int),
    "share": st.one_of(half, small_int),
    "pair": st.one_of(half, small_int),
    "none": st.one_of(small_text, small_int),
}


@st.composite
def clauses(draw, field=None):
    field = field or draw(st.sampled_from(sorted(FIELDS)))
    value = ASKED.get(field, FIELDS[field][1])
    forms = ["eq", "in", "exists"] + ([] if field == "open" else ["range"])
    form = draw(st.sampled_from(forms))
    if form == "eq":
        return {"field": field, "eq": draw(value)}
    if form == "in":
        return {"field": field, "in": draw(st.lists(value, max_size=3))}
    if form == "exists":
        return {"field": field, "exists": draw(st.booleans())}
    sides = [draw(st.sampled_from(["gt", "gte", None])), draw(st.sampled_from(["lt", "lte"]))]
    return {"field": field} | {side: draw(value) for side in sides if side}


@pytest.mark.parametrize("field", sorted(FIELDS))
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_one_clause_equals_the_plain_evaluator(field, data):
    kind, value = FIELDS[field]
    column = data.draw(st.lists(st.one_of(value, value, st.none()), min_size=1, max_size=6))
    clause = data.draw(clauses(field))
    matched = compile_filter(pa.table({field: pa.array(column, kind)}), {"must": [clause]})
    assert matched.tolist() == [matches(entry, clause) for entry in column]


@pytest.mark.no_cover
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_conditions_equal_the_plain_evaluator(data):
    rows = data.draw(st.integers(0, 8))
    columns = {
        name: data.draw(st.lists(st.one_of(st.none(), value), min_size=rows, max_size=rows))
        for name, (_, value) in FIELDS.items()
    }
    table = pa.table({name: pa.array(columns[name], kind) for name, (kind, _) in FIELDS.items()})
    if rows > 2:  # in several chunks, one of them empty
        table = pa.concat_tables([table.slice(0, 1), table.slice(1, 0), table.slice(1)])
    condition = {
        "must": data.draw(st.lists(clauses(), max_size=3)),
        "must_not": data.draw(st.lists(clauses(), max_size=2)),
    }
    np.testing.assert_array_equal(compile_filter(table, condition), by_hand(columns, condition))


TABLE = pa.table(
    {
        "title": ["a", None, "c"],
        "price": pa.array([1.5, None, 3.0], pa.float32()),
        "stock": [0, 5, 10],
        "open": [True, None, False],
        "when": pa.array([dt.date(2026, 1, 2), dt.date(2026, 3, 4), None], pa.date32()),
        "at": pa.array([1_767_322_800, None, 1_778_025_600], pa.timestamp("s")),
        "zone": pa.array([1_767_322_800 * 10**9 + 7, None, None], pa.timestamp("ns", "Europe/Paris")),
        "cost": pa.array([Decimal("1.25"), Decimal("2.50"), None], pa.decimal128(6, 2)),
        "half": pa.array([np.float16(0.5), np.float16(1.5), None], pa.float16()),
        "blob": pa.array([b"x", b"y", None], pa.binary()),
        "parts": pa.array([[{"a": 1}], None, []], pa.list_(pa.struct({"a": pa.int64()}))),
    }
)


@pytest.mark.parametrize(
    ("clause", "rows"),
    [
        ({"field": "when", "gte": "2026-01-02", "lt": "2026-03-04"}, [0]),
        ({"field": "when", "eq": "2026-03-04T00:00:00Z"}, [1]),
        ({"field": "at", "gt": "2026-01-02T02:59:59"}, [0, 2]),
        ({"field": "at", "in": ["2026-01-02T05:00:00+02:00"]}, [0]),
        ({"field": "zone", "eq": "2026-01-02T04:00:00+01:00"}, [0]),
        ({"field": "cost", "gte": 2.5}, [1]),
        ({"field": "half", "lt": 1}, [0]),
        ({"field": "price", "eq": 1.5}, [0]),
        ({"field": "blob", "exists": True}, [0, 1]),
        ({"field": "parts", "exists": True}, [0, 2]),
        ({"field": "stock", "gt": 0, "lt": None}, [1, 2]),
        ({"field": "title", "in": ()}, []),
    ],
)
def test_single_clauses_by_hand(clause, rows):
    assert np.flatnonzero(compile_filter(TABLE, {"must": [clause]})).tolist() == rows


def test_a_number_is_rounded_to_the_fields_precision():
    table = pa.table({"price": pa.array([0.1, 19.99], pa.float32())})
    assert compile_filter(table, {"must": [{"field": "price", "eq": 0.1}]}).tolist() == [True, False]
    assert compile_filter(table, {"must": [{"field": "price", "lt": 19.99}]}).tolist() == [True, False]
    assert compile_filter(table, {"must": [{"field": "price", "lte": 1e300}]}).all()


def test_empty_conditions_allow_everything():
    for condition in ({}, {"must": []}, {"must": None, "must_not": ()}):
        assert compile_filter(TABLE, condition).all()


@pytest.mark.parametrize(
    ("clause", "field", "rule"),
    [
        ("title", "filter", "needs a 'field' name"),
        ({}, "filter", "needs a 'field' name"),
        ({"field": 3, "eq": 1}, "filter", "needs a 'field' name"),
        ({"field": "colour", "eq": 1}, "colour", "unknown field 'colour'; the fields are title, price"),
        ({"field": "title", "equals": "a"}, "title", "unknown key 'equals'"),
        ({"field": "title"}, "title", r"exactly one of eq \| in"),
        ({"field": "title", "eq": None}, "title", "null values match only exists: false"),
        ({"field": "title", "eq": "a", "in": ["b"]}, "title", "exactly one of"),
        ({"field": "stock", "eq": 1, "gt": 0}, "stock", "exactly one of"),
        ({"field": "stock", "gt": 1, "gte": 1}, "stock", "exactly one of"),
        ({"field": "stock", "lt": 1, "lte": 1}, "stock", "exactly one of"),
        ({"field": "title", "in": "abc"}, "title", "'in' needs a list"),
        ({"field": "title", "exists": 1}, "title", "'exists' is true or false, got 1"),
        ({"field": "title", "eq": 3}, "title", r"compares with text, got 3 \(int\)"),
        ({"field": "title", "eq": "\udc80"}, "title", "valid Unicode"),
        ({"field": "title", "in": ["a", None]}, "title", "compares with text, got None"),
        ({"field": "stock", "eq": True}, "stock", r"compares with a number, got True \(bool\)"),
        ({"field": "stock", "eq": "5"}, "stock", "compares with a number"),
        ({"field": "stock", "gt": float("nan")}, "stock", "numbers must be finite, got nan"),
        ({"field": "price", "in": [float("inf")]}, "price", "numbers must be finite, got inf"),
        ({"field": "price", "gt": 10**400}, "price", "the number is too large"),
        ({"field": "open", "eq": 1}, "open", "compares with true or false, got 1"),
        ({"field": "open", "gt": False}, "open", "has no order"),
        ({"field": "when", "eq": 20260102}, "when", "compares with an ISO 8601 date"),
        ({"field": "when", "eq": "tomorrow"}, "when", "ISO 8601"),
        ({"field": "when", "eq": "0001-01-01T00:00:00+14:00"}, "when", "ISO 8601"),
        ({"field": "blob", "eq": "x"}, "blob", "holds binary, which only 'exists' can test"),
        ({"field": "parts", "eq": "x"}, "parts", "only 'exists' can test"),
        ({"field": "title", "eq": ["a"]}, "title", "compares with text"),
    ],
)
def test_refuses_clauses(clause, field, rule):
    with pytest.raises(FilterError, match=rule) as caught:
        compile_filter(TABLE, {"must": [clause]})
    assert caught.value.field == field


@pytest.mark.parametrize("value", [[], {}, float("nan")])
def test_an_all_null_field_still_checks_its_value(value):
    table = pa.table({"empty": pa.nulls(2)})
    for clause in ({"field": "empty", "eq": value}, {"field": "empty", "gt": value}):
        with pytest.raises(FilterError, match="compares with"):
            compile_filter(table, {"must": [clause]})


@pytest.mark.parametrize(
    ("condition", "rule"),
    [
        ({"should": []}, "'must' and 'must_not', got 'should'"),
        ({"must": {"field": "title", "eq": "a"}}, "'must' needs a list of clauses"),
        ({"must": [{"field": "title", "exists": True}] * (MAX_CLAUSES + 1)}, "at most 32 clauses, got 33"),
    ],
)
def test_refuses_conditions(condition, rule):
    with pytest.raises(FilterError, match=rule) as caught:
        compile_filter(TABLE, condition)
    assert caught.value.field == "filter"


def test_times_out_of_range_are_refused_not_crashed():
    table = pa.table({"at": pa.array([2**62], pa.int64()).cast(pa.timestamp("s"))})
    with pytest.raises(FilterError, match="cannot be compared") as caught:
        compile_filter(table, {"must": [{"field": "at", "gt": "2026-01-01"}]})
    assert caught.value.field == "at"
