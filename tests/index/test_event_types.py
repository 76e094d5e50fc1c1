"""The table of event types: defaults, changes of them, and what is refused."""

from typing import Any

import pytest

from index.bundle.event_types import DEFAULT_EVENT_TYPES, EventTypes
from index.errors import EventTypesError


@pytest.mark.parametrize(
    ("name", "meaning", "weight"),
    [
        ("view", "positive", 1.0),
        ("cart", "positive", 3.0),
        ("purchase", "positive", 5.0),
        ("like", "positive", 5.0),
        ("dislike", "negative", -5.0),
        ("return", "negative", -2.0),
        ("impression", "impression", 0.0),
        (None, "positive", 1.0),
        ("of nobody", "positive", 1.0),
    ],
)
def test_the_default_table(name: str | None, meaning: str, weight: float) -> None:
    assert (DEFAULT_EVENT_TYPES.meaning(name), DEFAULT_EVENT_TYPES.weight(name)) == (meaning, weight)


def test_a_table_changes_the_defaults_and_adds_to_them() -> None:
    table = EventTypes.of({"view": 2, "search": "ignore", "shown": "impression"}, "search")
    assert [table.weight(name) for name in ("view", "purchase", "search", "shown")] == [2.0, 5.0, 0.0, 0.0]
    assert [table.meaning(name) for name in ("view", "dislike", "shown", None, "what")] == [
        "positive",
        "negative",
        "impression",
        "ignore",
        "ignore",
    ]


def test_a_table_is_read_back_as_it_was_written() -> None:
    table = EventTypes.of({"view": 0.5, "search": "ignore"}, "cart")
    assert EventTypes.model_validate_json(table.model_dump_json()) == table


@pytest.mark.parametrize(
    ("types", "default_type", "said"),
    [
        ({"view": float("nan")}, None, "view must be a weight of -10 to 10 other than 0"),
        ({"view": float("inf")}, None, "got inf"),
        ({"view": 0}, None, "'impression' or 'ignore', got 0"),
        ({"view": -10.5}, None, "got -10.5"),
        ({"view": True}, None, "got True"),
        ({"view": "positive"}, None, "got 'positive'"),
        ({"view": None}, None, "got None"),
        ({"view": [1]}, None, r"got \[1\]"),
        ({"": 1}, None, "1 to 64 characters"),
        ({"a\nb": 1}, None, "no control characters"),
        ({"a" * 65: 1}, None, "1 to 64 characters"),
        ({str(number): 1 for number in range(58)}, None, "1 to 64 types"),
        (["view"], None, "must be a table"),
        ({}, "bought", "default_type must be one of the types view, cart"),
    ],
)
def test_a_bad_table_is_refused_and_says_why(types: Any, default_type: str | None, said: str) -> None:
    with pytest.raises(EventTypesError, match=said):
        EventTypes.of(types, default_type)
