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


@pytest.mark.parametrize("outcomes", [None, {"cart": "click", "view": "none"}])
def test_a_table_is_read_back_as_it_was_written(outcomes: dict[str, str] | None) -> None:
    table = EventTypes.of({"view": 0.5, "search": "ignore"}, "cart", outcomes)
    assert EventTypes.model_validate_json(table.model_dump_json()) == table


def test_a_table_without_outcomes_is_written_as_by_versions_that_know_none() -> None:
    assert DEFAULT_EVENT_TYPES.model_dump(mode="json").keys() == {"types", "default_type"}
    of_old_bundle = {"types": {"view": 1.0, "buy": 2.0}, "default_type": "view"}
    assert EventTypes.model_validate(of_old_bundle).outcome("buy") == "click"


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        *((name, "click") for name in ("view", "click", None)),
        ("purchase", "conversion"),
        ("impression", "impression"),
        *((name, None) for name in ("cart", "like", "dislike", "return", "of nobody")),
    ],
)
def test_the_outcomes_of_the_default_table(name: str | None, outcome: str | None) -> None:
    assert DEFAULT_EVENT_TYPES.outcome(name) == outcome


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("rent", "conversion"),  # as it says
        ("read", "click"),  # positive
        (None, "click"),  # as read, the default type
        ("skipped", None),  # negative
        ("search", None),  # ignored
        ("shown", "impression"),
        ("view", "impression"),  # its meaning here
        ("click", "click"),  # by its name, though the history does not get it
        ("impression", "impression"),  # by its name, too
        ("purchase", None),  # as it says
        ("cart", "click"),  # as it says
        ("of nobody", None),
    ],
)
def test_outcomes_go_by_what_the_table_says_then_by_the_meaning(name: str | None, outcome: str | None) -> None:
    table = EventTypes.of(
        {
            "rent": 4,
            "read": 1,
            "skipped": -1,
            "search": "ignore",
            "shown": "impression",
            "view": "impression",
            "click": "ignore",
            "impression": "ignore",
        },
        "read",
        {"rent": "conversion", "purchase": "none", "cart": "click"},
    )
    assert table.outcome(name) == outcome


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        ({"view": "sale"}, "the outcome of view must be 'impression', 'click', 'conversion' or 'none', got 'sale'"),
        ({"view": 1.0}, "the outcome of view must be .*, got 1.0"),
        ({"view": ["click"]}, "the outcome of view must be"),
        ({"rent": "click"}, "outcomes must name types among view, cart, .*, got 'rent'"),
        ("click", "outcomes must be a table, got click"),
    ],
)
def test_a_bad_outcome_is_refused_and_says_why(outcomes: Any, said: str) -> None:
    with pytest.raises(EventTypesError, match=said):
        EventTypes.of({}, None, outcomes)


def test_an_event_is_among_types_by_its_name_or_as_the_default_type() -> None:
    names = {"view", "of nobody"}
    among = {name: DEFAULT_EVENT_TYPES.is_among(name, names) for name in ("view", None, "of nobody", "what", "cart")}
    assert among == {"view": True, None: True, "of nobody": True, "what": True, "cart": False}
    assert not DEFAULT_EVENT_TYPES.is_among(None, {"of nobody"})


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
