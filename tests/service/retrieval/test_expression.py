"""Filters as expressions of Milvus: exact where they are translated, left out where they are not."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.search.row_mask import RowRule
from service.retrieval.milvus.expression import MOST_VALUES, expression_of
from service.retrieval.milvus.scalar_fields import LONGEST_TEXT, MOST_TEXTS, FieldKind, kinds_of, scalar_fields

KINDS: dict[str, FieldKind] = {
    "name": "text",
    "sale": "bool",
    "stock": "integer",
    "weight": "single",
    "price": "double",
    "tags": "texts",
}
COLUMNS = {name: f"f{number}" for number, name in enumerate(KINDS)}


def must(**clause: Any) -> str:
    return expression_of(RowRule({"must": [clause]}), COLUMNS, KINDS)


def must_not(**clause: Any) -> str:
    return expression_of(RowRule({"must_not": [clause]}), COLUMNS, KINDS)


@pytest.mark.parametrize(
    ("clause", "expression"),
    [
        ({"field": "name", "eq": "a"}, '(f0 == "a")'),
        ({"field": "name", "eq": 'a"\\ é'}, '(f0 == "a\\"\\\\ é")'),
        ({"field": "name", "in": ["a", "b"]}, '(f0 in ["a", "b"])'),
        ({"field": "name", "exists": True}, "f0 is not null"),
        ({"field": "name", "exists": False}, "f0 is null"),
        ({"field": "sale", "eq": False}, "(f1 == false)"),
        ({"field": "stock", "eq": 3.0}, "(f2 == 3)"),
        ({"field": "stock", "gt": 3.5}, "(f2 > 3)"),
        ({"field": "stock", "gte": 3.5, "lt": 7.1}, "(f2 >= 4 and f2 < 8)"),
        ({"field": "stock", "lte": -3.5}, "(f2 <= -4)"),
        ({"field": "weight", "lt": 0.1}, "(f3 < 0.10000000149011612)"),
        ({"field": "price", "lt": 0.1}, "(f4 < 0.1)"),
        ({"field": "price", "in": [1, 2.5]}, "(f4 in [1.0, 2.5])"),
        ({"field": "tags", "eq": "red"}, '(array_contains_any(f5, ["red"]))'),
        ({"field": "tags", "in": ["red", "blue"]}, '(array_contains_any(f5, ["red", "blue"]))'),
    ],
)
def test_clauses(clause: dict[str, Any], expression: str) -> None:
    assert must(**clause) == expression


def test_a_null_passes_what_must_not_match() -> None:
    assert must_not(field="name", eq="a") == '(f0 is null or not (f0 == "a"))'
    assert must_not(field="tags", eq="a") == '(not (array_contains_any(f5, ["a"])))'
    assert must_not(field="price", exists=True) == "f4 is null"
    assert must_not(field="price", exists=False) == "f4 is not null"


@pytest.mark.parametrize(
    "clause",
    [
        {"field": "other", "eq": "a"},
        {"field": "name", "eq": "line\nbreak"},
        {"field": "name", "eq": "\ud800"},
        {"field": "name", "gt": "a"},
        {"field": "name", "in": []},
        {"field": "name", "in": ["x"] * (MOST_VALUES + 1)},
        {"field": "tags", "exists": True},
        {"field": "stock", "in": [1, 2.5]},
        {"field": "stock", "lt": 10**30},
        {"field": "weight", "lt": 1e300},
    ],
    ids=lambda clause: str(clause)[:40],
)
def test_what_has_no_exact_expression_is_left_out(clause: dict[str, Any]) -> None:
    assert must(**clause) == ""
    assert must_not(**clause) == ""


def test_parts_are_joined() -> None:
    condition = {"must": [{"field": "sale", "eq": True}, {"field": "other", "eq": 1}], "must_not": []}
    assert expression_of(RowRule(condition, only_new=True), COLUMNS, KINDS) == "is_new == true and (f1 == true)"
    assert expression_of(RowRule(None, only_new=True), COLUMNS, KINDS) == "is_new == true"
    assert expression_of(RowRule(condition), {}, {}) == ""
    assert expression_of(None, COLUMNS, KINDS) == ""


def test_fields_that_a_collection_can_hold() -> None:
    metadata = pa.table(
        {
            "text": pa.array(["a", None, "b"]).dictionary_encode(),
            "long": ["a" * (LONGEST_TEXT + 1), None, "b"],
            "many": [["a"] * (MOST_TEXTS + 1), [], None],
            "tags": [["a", None], [], None],
            "large": pa.array([1, 2, 2**63], pa.uint64()),
            "fits": pa.array([1, 2, 2**63 - 1], pa.uint64()),
            "half": pa.array(np.array([1, 2, 3], np.float16)),
            "price": pa.array([1.5, float("nan"), None], pa.float32()),
            "day": pa.array([1, 2, 3], pa.date32()),
            "nothing": pa.nulls(3),
        }
    )
    fields = {field.name: field for field in scalar_fields(metadata)}
    assert {name: field.kind for name, field in fields.items()} == {
        "text": "text",
        "tags": "texts",
        "fits": "integer",
        "price": "single",
    }
    assert [field.column for field in fields.values()] == ["f0", "f1", "f2", "f3"]
    assert fields["text"].of(1, 3) == [None, "b"]
    assert fields["tags"].of(0, 3) == [["a"], [], []]
    assert fields["price"].of(0, 3) == [1.5, None, None]
    assert kinds_of(metadata, {"text": "f0", "price": "f3", "gone": "f9"}) == {"text": "text", "price": "single"}
