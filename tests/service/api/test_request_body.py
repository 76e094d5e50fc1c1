"""A body becomes a validated value, or a refusal that names field, value and rule."""

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from service.api.requests import request_body
from service.api.requests.request_body import _check_headers, read_json, shown, validate
from service.api.requests.request_models import EventRequest, EventsRequest, RecommendRequest, SimilarRequest
from service.errors import (
    BodiesFull,
    BodyTooLarge,
    EncodedBody,
    MalformedBody,
    RequestLate,
    RuleBroken,
    UnsupportedBody,
)
from service.http.body_budget import BodyBudget
from service.http.request_context import CONTEXT, RequestContext


def read(
    *parts: bytes,
    limit: int = 100,
    disconnects: bool = False,
    budget: BodyBudget | None = None,
    late: bool = False,
    **headers: str,
) -> Any:
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if disconnects:
        messages.append({"type": "http.disconnect"})
    elif messages:
        messages[-1]["more_body"] = False

    async def receive() -> dict[str, Any]:
        if not messages:
            pytest.fail("read on after the end, or after the body was over the limit")
        return messages.pop(0)

    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in sent.items() if value]
    context = RequestContext(0.0, late=late)
    context.bodies = budget or BodyBudget(1000, largest=limit)
    context.bodies.largest = limit
    scope: dict[str, Any] = {"type": "http", "headers": raw, CONTEXT: context}
    return asyncio.run(read_json(Request(scope, receive)))


def test_parts_are_put_together() -> None:
    assert read(b'{"a"', b":", b"[1]}") == {"a": [1]}
    assert read(b'{"a":1}', content_type="Application/JSON; charset=UTF-8") == {"a": 1}
    assert read(b"1", content_type="application/merge-patch+json") == 1


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/json; charset=latin-1",
        "json",
        "text/json+json",
    ],
)
def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(UnsupportedBody, match="content-type must be application/json"):
        read(b"{}", content_type=content_type)


def test_a_declared_length_over_the_limit_is_refused() -> None:
    with pytest.raises(BodyTooLarge, match="at most 100 bytes"):
        read(b"x" * 50, b"x" * 51, limit=100, content_length="101")


@pytest.mark.parametrize("more", [{"content_length": "9" * 5000}, {"content_length": "101", "expect": "100-continue"}])
def test_what_is_not_worth_discarding_is_refused_unread(more: dict[str, str]) -> None:
    with pytest.raises(BodyTooLarge):
        read(limit=100, **more)  # `receive` fails the test if it is called


def test_a_client_that_leaves_while_its_body_is_discarded_is_let_go() -> None:
    with pytest.raises(ClientDisconnect):
        read(b"x" * 101, limit=100, disconnects=True)


def test_discarding_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "_DISCARDED_BYTES", 300)
    with pytest.raises(BodyTooLarge):
        read(*[b"x" * 101] * 4, b"never read", limit=100)
    monkeypatch.setattr(request_body, "_DISCARDED_S", 0.0)
    with pytest.raises(BodyTooLarge):
        read(b"x" * 101, b"x", limit=100)


def test_an_undeclared_length_over_the_limit_is_refused() -> None:
    with pytest.raises(BodyTooLarge):
        read(b"x" * 60, b"x" * 60, b"thrown away", limit=100)
    assert read(b"1" + b" " * 99, limit=100) == 1
    with pytest.raises(BodyTooLarge):
        read(b"1" + b" " * 100, limit=100)


def test_a_client_that_leaves_is_no_malformed_body() -> None:
    with pytest.raises(ClientDisconnect):
        read(b'{"a"', disconnects=True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"k": NaN}',
        b'{"k": Infinity}',
        b'{"k": -Infinity}',
        b'{"k": 1e999}',
        b'{"user_id": "\\ud800"}',
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        b"{'k': 1}",
        b'{"k": 1} x',
        b"[" * 5000,
        b'{"a":' * 5000,
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="the body must be JSON"):
        read(body, limit=100_000)


def test_of_a_repeated_key_the_last_counts() -> None:
    assert read(b'{"k": 1, "k": 2}') == {"k": 2}


VALID: dict[str, Any] = {"user_id": "u"}


@pytest.mark.parametrize(
    ("change", "field", "received", "rule"),
    [
        ({"k": 0}, "k", "0", "must be at least 1"),
        ({"k": 1001}, "k", "1001", "must be at most 1000"),
        ({"k": "x"}, "k", '"x"', "must be an integer"),
        ({"k": "20"}, "k", '"20"', "must be an integer"),
        ({"k": True}, "k", "true", "must be an integer"),
        ({"k": None}, "k", "null", "must be an integer"),
        ({"k": 1.5}, "k", "1.5", "must be an integer"),
        ({"k": 1e30}, "k", "1e+30", "must be an integer"),
        ({"k": 600, "offset": 401}, "offset + k", "1001", "must be at most 1000"),
        ({"offset": -1}, "offset", "-1", "must be at least 0"),
        ({"user_id": ""}, "user_id", '""', "must have 1 to 256 bytes"),
        ({"user_id": "ä" * 129}, "user_id", '"' + "ä" * 119 + "…", "must have 1 to 256 bytes"),
        ({"user_id": "a\u0000b"}, "user_id", '"a\\u0000b"', "must not hold control characters"),
        ({"user_id": "a\u0085"}, "user_id", '"a\u0085"', "must not hold control characters"),
        ({"user_id": 7}, "user_id", "7", "must be a string"),
        ({"items": ["a", 3]}, "items[1]", "3", "must be an item id, or an object with"),
        ({"items": [None]}, "items[0]", "null", "must be an item id, or an object with"),
        ({"history": None}, "history", "null", "must be use, ignore, or an object with session_minutes"),
        ({"items": [{"item_id": "a", "weight": 11}]}, "items[0].weight", "11", "must be at most 10"),
        ({"items": [{"item_id": "a", "weight": -10.5}]}, "items[0].weight", "-10.5", "must be at least -10"),
        ({"items": [{"item_id": "a", "weight": "x"}]}, "items[0].weight", '"x"', "must be a number"),
        ({"items": [{"weight": 1}]}, "items[0].item_id", "nothing", "is required"),
        ({"items": [{"item_id": "a", "x": 1}]}, "items[0].x", "1", "is not a known field"),
        ({"items": ["a"] * 501}, "items", "a list of 501 members", "must have at most 500 items"),
        ({"exclude": ["a"] * 1001}, "exclude", "a list of 1001 members", "must have at most 1000 items"),
        ({"exclude": ["a", "b\n"]}, "exclude[1]", '"b\\n"', "must not hold control characters"),
        ({"slot_weights": {"text": -1}}, "slot_weights.text", "-1", "must be at least 0"),
        ({"slot_weights": {"text": 10.1}}, "slot_weights.text", "10.1", "must be at most 10"),
        ({"slot_weights": [1]}, "slot_weights", "[1]", "must be an object"),
        ({"diversity": 1.1}, "diversity", "1.1", "must be at most 1"),
        ({"explain": 1}, "explain", "1", "must be true, false or full"),
        ({"explain": "all"}, "explain", '"all"', "must be true, false or full"),
        ({"unknown_items": "drop"}, "unknown_items", '"drop"', "must be 'ignore' or 'error'"),
        ({"history": "no"}, "history", '"no"', "must be 'use' or 'ignore'"),
        ({"deadline_ms": 0}, "deadline_ms", "0", "must be at least 1"),
        ({"fields": "title"}, "fields", '"title"', "must be a list"),
        ({"consent": False}, "consent", "false", "is not a known field"),
        ({"filter": {"should": []}}, "filter.should", "[]", "is not a known field"),
        ({"filter": {"must": [{"field": "a", "eq": None}]}}, "filter.must[0].eq", "null", "must be a string, a number"),
        (
            {"filter": {"must": [{"field": "a", "gt": True}]}},
            "filter.must[0].gt",
            "true",
            "must be a string or a number",
        ),
        ({"filter": {"must": [{"field": "a", "in": []}]}}, "filter.must[0].in", "[]", "must have at least 1 item"),
        ({"filter": {"must": [{"field": "a"}]}}, "filter.must[0]", '{"field":"a"}', "must have exactly one of"),
        (
            {"filter": {"must": [{"field": "a", "gt": 1, "gte": 1}]}},
            "filter.must[0]",
            '{"field":"a","gt":1,"gte":1}',
            "must have exactly one of eq, in, exists, or a range",
        ),
        (
            {"filter": {"must_not": [{"field": "a", "eq": 1}] * 33}},
            "filter.must_not",
            "a list of 33",
            "at most 32 items",
        ),
    ],
)
def test_the_refusal_names_field_value_and_rule(change: dict[str, Any], field: str, received: str, rule: str) -> None:
    with pytest.raises(RuleBroken) as refused:
        validate(RecommendRequest, VALID | change)
    violation = refused.value.violations[0]
    assert violation.field == field
    assert violation.received.startswith(received)
    assert violation.rule.startswith(rule) or rule in violation.rule
    assert len(refused.value.violations) == 1
    assert len(str(refused.value)) < 400


def test_clauses_of_both_lists_count_together() -> None:
    clauses = [{"field": "a", "exists": True}] * 17
    with pytest.raises(RuleBroken, match="filter must have at most 32 clauses in all, not 34"):
        validate(RecommendRequest, VALID | {"filter": {"must": clauses, "must_not": clauses}})


@pytest.mark.parametrize(
    "clause",
    [
        {"eq": "x"},
        {"eq": False},
        {"in": ["a", 1, True]},
        {"gt": 1, "lte": 2},
        {"gte": "2026-01-01"},
        {"exists": False},
    ],
)
def test_a_clause_reaches_the_index_as_it_was_sent(clause: dict[str, Any]) -> None:
    sent = {"field": "f", **clause}
    parsed = validate(RecommendRequest, VALID | {"filter": {"must_not": [sent]}})
    assert parsed.filter is not None
    assert parsed.filter.clauses() == {"must": [], "must_not": [sent]}


@pytest.mark.parametrize("body", [{}, {"k": 1}, {"user_id": None}, {"user_id": None, "items": None}])
def test_somebody_must_ask(body: dict[str, Any]) -> None:
    with pytest.raises(RuleBroken, match="body must have user_id, session_id or items; received"):
        validate(RecommendRequest, body)


@pytest.mark.parametrize("body", [[], "x", 1, None, True])
def test_a_body_must_be_an_object(body: Any) -> None:
    with pytest.raises(RuleBroken, match="body must be an object; received"):
        validate(RecommendRequest, body)


@pytest.mark.parametrize("body", [{}, {"item_id": "a", "items": ["b"]}, {"items": None}])
def test_similar_needs_exactly_one_kind_of_item(body: dict[str, Any]) -> None:
    with pytest.raises(RuleBroken, match="body must have exactly one of item_id and items"):
        validate(SimilarRequest, body)


def test_an_event_of_nobody_names_both_ways_to_say_whose_it_is() -> None:
    rule = r"events\[0\].user_id is required where there is no session_id; received nothing"
    with pytest.raises(RuleBroken, match=rule):
        validate(EventsRequest, {"events": [{"item_id": "i"}]})


def test_a_bad_event_is_named_by_its_index() -> None:
    good = {"user_id": "u", "item_id": "i"}
    with pytest.raises(
        RuleBroken, match=r"events\[2\].timestamp must be at most 253402300799; received 1790000000000.0"
    ):
        validate(EventsRequest, {"events": [good, good, good | {"timestamp": 1.79e12}]})


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("type", "a\nb", "must not hold control characters"),
        ("request_id", "ü", r"must match \^\[\\x20-\\x7e\]\+\$"),
    ],
)
def test_a_text_that_does_not_match_names_its_rule(field: str, value: str, rule: str) -> None:
    with pytest.raises(RuleBroken, match=f"^{field} {rule}; received"):
        validate(EventRequest, {"user_id": "u", "item_id": "i", field: value})


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_must_be_finite_however_they_came_in(number: float) -> None:
    with pytest.raises(RuleBroken, match=r"items\[0\].weight must be a finite number"):
        validate(RecommendRequest, {"items": [{"item_id": "a", "weight": number}]})


def test_all_broken_rules_are_counted() -> None:
    with pytest.raises(RuleBroken, match=r"k must be at least 1; received 0 \(and 1 more\)") as refused:
        validate(RecommendRequest, {"user_id": "u", "k": 0, "colour": 1})
    assert [violation.field for violation in refused.value.violations] == ["k", "colour"]


def test_a_hundred_thousand_bad_members_make_one_violation() -> None:
    with pytest.raises(RuleBroken) as refused:
        validate(RecommendRequest, {"items": [3] * 100_000})
    assert len(refused.value.violations) == 1


def test_what_is_shown_is_short() -> None:
    assert shown("x" * 10_000) == '"' + "x" * 119 + "…"
    assert shown({str(key): key for key in range(9)}) == "an object of 9 keys"
    assert shown([["x" * 100] * 8] * 8).endswith("…")
    assert shown({"a": "\ud800"}) == "{'a': '\\ud800'}"


def test_bodies_that_come_in_parts_share_a_budget() -> None:
    budget = BodyBudget(100, largest=100)
    with budget.holding() as elsewhere:
        elsewhere.grow(50)
        assert read(b'"' + b"x" * 58 + b'"', budget=budget) == "x" * 58  # in one piece: not counted
        assert read(b'"' + b"x" * 20, b"x" * 20 + b'"', budget=budget) == "x" * 40
        with pytest.raises(BodiesFull, match="bodies of 100 bytes in all are waited for already"):
            read(b'"' + b"x" * 30, b"x" * 30 + b'"', budget=budget)
        with pytest.raises(ClientDisconnect):
            read(b"x" * 40, disconnects=True, budget=budget)
        with pytest.raises(BodyTooLarge):
            read(b"x" * 30, b"x" * 30, limit=50, budget=budget)
        elsewhere.grow(50)  # all that was taken in between is back
    assert read(b'"' + b"x" * 49, b"x" * 49 + b'"', budget=budget) == "x" * 98


def test_only_so_many_bodies_are_discarded_at_once() -> None:
    budget = BodyBudget(1000, largest=100, discarding=1)
    with budget.discarding(), pytest.raises(BodyTooLarge):
        read(limit=100, content_length="101", budget=budget)  # unread: `receive` fails the test if it is called
    with pytest.raises(ClientDisconnect):  # read on until the client leaves
        read(b"x" * 101, limit=100, content_length="200", disconnects=True, budget=budget)


@pytest.mark.parametrize("parts", [(b"1",), (b"1", b"2"), (b"",)])
def test_a_body_cut_short_by_the_time_limit_is_not_complete(parts: tuple[bytes, ...]) -> None:
    came = sum(map(len, parts))
    with pytest.raises(RequestLate, match=f"the body must arrive sooner; of 50 bytes {came} came in time"):
        read(*parts, late=True, content_length="50")


PLAIN = [(b"content-type", b"application/json"), (b"content-length", b"2")]


@pytest.mark.parametrize(
    ("headers", "declared"),
    [
        (PLAIN, "2"),
        ([PLAIN[0]], ""),
        ([*PLAIN, (b"content-encoding", b"identity")], "2"),
        ([(b"content-type", b"application/json; charset=utf-8"), PLAIN[1]], "2"),
        ([PLAIN[0], (b"content-type", b"text/plain")], ""),
        ([*PLAIN, (b"content-length", b"3")], "2"),
        ([(b"content-type", b"text/plain"), PLAIN[0]], None),
        ([*PLAIN, (b"content-encoding", b"gzip")], None),
        ([PLAIN[1]], None),
    ],
)
def test_one_look_at_the_headers_finds_what_all_checks_find(
    headers: list[tuple[bytes, bytes]], declared: str | None
) -> None:
    """The first of repeated headers counts; None: the request is refused."""
    request = Request({"type": "http", "headers": headers})
    if declared is not None:
        assert _check_headers(request) == declared
        return
    with pytest.raises((UnsupportedBody, EncodedBody)):
        _check_headers(request)


@pytest.mark.parametrize("field", ["user_id", "session_id", "item_id", "event_id"])
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("a" * 256, None),
        ("ä" * 128, None),
        ("a b", None),
        ("a" * 257, "must have 1 to 256 bytes"),
        ("ä" * 128 + "a", "must have 1 to 256 bytes"),
        ("", "must have 1 to 256 bytes"),
        ("a\n", "must not hold control characters"),
        ("a\x7f", "must not hold control characters"),
        (["a"], "must be a string"),
        ({"\x1f": 1}, "must be a string"),
    ],
)
def test_an_id_of_an_event_is_checked_alike_in_ascii_and_beyond(field: str, value: Any, rule: str | None) -> None:
    event = {"user_id": "u", "item_id": "i"} | {field: value}
    if rule is None:
        assert getattr(validate(EventRequest, event), field) == value
        return
    with pytest.raises(RuleBroken) as refused:
        validate(EventsRequest, {"events": [event]})
    (violation,) = refused.value.violations
    assert (violation.field, violation.rule) == (f"events[0].{field}", rule)
