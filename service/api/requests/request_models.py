"""Defines the JSON of all requests and validates it.

Requests are strict (a string is no number), refuse unknown keys, and stop at the first bad member of a list.
"""

import re
from itertools import combinations, product
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SkipValidation,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.api.requests.ids import Id, PlainIdsFirst
from service.stores.protocols import session_owner

MAX_WINDOW = 1000
MAX_ITEMS = 500
MAX_EXCLUDED = 1000
MAX_CLAUSES = 32
MAX_VALUES = 1000
MAX_FIELDS = 64
MAX_VALUE_CHARACTERS = 1024
MAX_EVENTS = 1000
MAX_BATCH = 256
BUNDLE_ID = r"^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}$"
MAX_VALUE = 1e9
MAX_TIMESTAMP = 253_402_300_799  # the end of the year 9999
_TYPE_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]+$"
_TYPE = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,64}")


def broken_rule(field: str, received: Any, rule: str) -> PydanticCustomError:  # noqa: ANN401 - any JSON value
    """An error of a rule that spans fields; `request_body` takes field and value from its context."""
    return PydanticCustomError("rule", "{rule}", {"field": field, "received": received, "rule": rule})


def _check_scalar(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if not isinstance(value, str | int | float):
        raise PydanticCustomError("scalar", "must be a string, a number or a boolean")
    if isinstance(value, str) and len(value) > MAX_VALUE_CHARACTERS:
        raise PydanticCustomError("scalar_length", f"must have at most {MAX_VALUE_CHARACTERS} characters")
    return value


def _check_bound(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, bool):
        raise PydanticCustomError("bound", "must be a string or a number")
    return _check_scalar(value)


def _check_exclude_seen(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if value is None or isinstance(value, bool) or value == "positive":
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) and _TYPE.fullmatch(name) for name in value):
        raise PydanticCustomError("exclude_seen", "must be true, false, positive or a list of types of events")
    if len(value) > MAX_FIELDS:
        raise PydanticCustomError("exclude_seen", f"must name at most {MAX_FIELDS} types of events")
    return value


def _check_explain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if not isinstance(value, bool) and value != "full":
        raise PydanticCustomError("explain", "must be true, false or full")
    return value


ShortText = Annotated[str, Field(min_length=1, max_length=64, pattern=_TYPE_PATTERN)]
RequestId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]+$")]
SearchText = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
ItemWeight = Annotated[float, Field(ge=-10, le=10)]
SlotWeight = Annotated[float, Field(ge=0, le=10)]
Scalar = Annotated[Any, AfterValidator(_check_scalar), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Explain = Annotated[
    Any,
    AfterValidator(_check_explain),
    # No enum: client generators leave out every operation that has an enum of several types.
    WithJsonSchema({"type": ["boolean", "string"]}),
]
ExcludeSeen = Annotated[
    Any,
    AfterValidator(_check_exclude_seen),
    WithJsonSchema({"type": ["boolean", "string", "array", "null"], "items": {"type": "string"}}),
]
Bound = Annotated[Any, AfterValidator(_check_bound), WithJsonSchema({"type": ["string", "number"]})]


# The JSON schemas express rules that span several fields by `not` alone: client generators make a model of every branch
# of `anyOf` and `oneOf`, with its few properties, and lose all others.


def _missing(*names: str) -> dict[str, Any]:
    """JSON schema of an object in which each of these properties is missing or null."""
    return {"properties": {name: {"type": "null"} for name in names}}


def _present(*kinds: tuple[str, str]) -> dict[str, Any]:
    """JSON schema of an object in which each of these properties, with its type, is there and not null."""
    return {"required": [name for name, _ in kinds], "properties": {name: {"type": kind} for name, kind in kinds}}


class Received(BaseModel):
    """Base of all requests and their parts."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class WeightedItem(Received):
    """An item that counts more, less, or against."""

    item_id: Id
    weight: ItemWeight = Field(1.0, description="Negative pushes away, 0 only excludes.")


def _kind(value: Any) -> str | None:  # noqa: ANN401 - any JSON value
    return "text" if isinstance(value, str) else "object" if isinstance(value, dict | BaseModel) else None


def _text_or_object(rule: str) -> Discriminator:
    """Chooses between a text and an object; another value breaks the rule, which names both."""
    return Discriminator(_kind, custom_error_type="kind", custom_error_message=rule)


Item = Annotated[
    Annotated[Id, Tag("text")] | Annotated[WeightedItem, Tag("object")],
    _text_or_object("must be an item id, or an object with item_id and weight"),
]
Items = Annotated[list[Item], Field(fail_fast=True, max_length=MAX_ITEMS)]


_RANGE = ("gt", "gte", "lt", "lte")
_NOT_TOGETHER = (
    *combinations(("eq", "in", "exists"), 2),
    *product(("eq", "in", "exists"), _RANGE),
    ("gt", "gte"),
    ("lt", "lte"),
)


class Clause(Received):
    """One condition on one metadata field: eq, in, exists, or a range of gt or gte and lt or lte."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 2,
            "maxProperties": 3,
            "not": {"anyOf": [{"required": [one, other]} for one, other in _NOT_TOGETHER]},
        }
    )

    field: Annotated[str, Field(min_length=1, max_length=256)]
    eq: Scalar = Field(default_factory=lambda: None)
    in_: Annotated[list[Scalar], Field(fail_fast=True, min_length=1, max_length=MAX_VALUES)] = Field(
        alias="in", default_factory=list
    )
    gt: Bound = Field(default_factory=lambda: None)
    gte: Bound = Field(default_factory=lambda: None)
    lt: Bound = Field(default_factory=lambda: None)
    lte: Bound = Field(default_factory=lambda: None)
    exists: bool = Field(default_factory=bool)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = {"in" if name == "in_" else name for name in self.model_fields_set} - {"field"}
        is_range = bool(given) and given <= set(_RANGE)
        if not (given in ({"eq"}, {"in"}, {"exists"}) or is_range) or {"gt", "gte"} <= given or {"lt", "lte"} <= given:
            rule = "must have exactly one of eq, in, exists, or a range of gt or gte and lt or lte"
            raise PydanticCustomError("clause", "{rule}", {"rule": rule})
        return self

    def given(self) -> dict[str, Any]:
        """The clause as it was sent."""
        return {"in" if name == "in_" else name: getattr(self, name) for name in self.model_fields_set}


Clauses = Annotated[list[Clause], Field(fail_fast=True, max_length=MAX_CLAUSES)]


class Filter(Received):
    """Only items for which every clause of ``must`` and no clause of ``must_not`` holds."""

    must: Clauses = Field(default_factory=list)
    must_not: Clauses = Field(default_factory=list)

    @model_validator(mode="after")
    def _few_clauses(self) -> Self:
        if len(self.must) + len(self.must_not) > MAX_CLAUSES:
            count = len(self.must) + len(self.must_not)
            raise PydanticCustomError("clauses", f"must have at most {MAX_CLAUSES} clauses in all, not {count}")
        values = sum(len(clause.in_) for clause in (*self.must, *self.must_not))
        if values > MAX_VALUES:
            raise PydanticCustomError("values", f"must have at most {MAX_VALUES} values of `in` in all, not {values}")
        return self

    def clauses(self) -> dict[str, list[dict[str, Any]]]:
        """The filter as `index.filters.filters` takes it."""
        return {"must": [clause.given() for clause in self.must], "must_not": [c.given() for c in self.must_not]}


class RetrievalRequest(Received):
    """Fields that `/recommend` and `/similar` have in common."""

    k: int = Field(20, ge=1, le=MAX_WINDOW, description="Items wanted.")
    offset: int = Field(0, ge=0, le=MAX_WINDOW, description="Items skipped; offset + k is at most 1000.")
    filter: Filter | None = None
    exclude: Annotated[list[Id], Field(fail_fast=True, max_length=MAX_EXCLUDED)] = Field(default_factory=list)
    slot_weights: dict[str, SlotWeight] | None = Field(
        None, description="Weight per slot in the score; a slot that is not named weighs 1."
    )
    diversity: float = Field(0.0, ge=0, le=1, description="0: by score alone; 1: as unlike each other as can be.")
    fresh_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the places kept for new items, which have no training event; null: as the bundle's "
        "manifest says for /recommend, 0 for /similar.",
    )
    explain: Explain = Field(
        False,
        description="Add contributions per slot and the nearest item of the history; full: those of every "
        "item-to-item list as well.",
    )
    fields: Annotated[list[str], Field(fail_fast=True, max_length=MAX_FIELDS)] | None = Field(
        None, description="Metadata fields to add to every item."
    )
    unknown_items: Literal["ignore", "error"] = "ignore"
    deadline_ms: float | None = Field(
        None, ge=1, le=60_000, description="Milliseconds after which popular items are answered instead."
    )

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.offset + self.k > MAX_WINDOW:
            raise broken_rule("offset + k", self.offset + self.k, f"must be at most {MAX_WINDOW}")
        if self.slot_weights is not None and len(self.slot_weights) > MAX_FIELDS:
            raise broken_rule("slot_weights", len(self.slot_weights), f"must name at most {MAX_FIELDS} slots")
        return self


class HistoryWindowRequest(Received):
    """How much older events of the stored history count."""

    session_minutes: float = Field(gt=0, le=525_600, description="Events at most this old count in full.")
    long_term: float = Field(0.0, ge=0, le=1, description="Factor of the weights of older events; 0: not at all.")


History = Annotated[
    Annotated[Literal["use", "ignore"], Tag("text")] | Annotated[HistoryWindowRequest, Tag("object")],
    _text_or_object("must be use, ignore, or an object with session_minutes"),
]


class RecommendRequest(RetrievalRequest):
    """Who asks (``user_id``, ``session_id``, ``items`` oldest first, or several) and what is wanted."""

    model_config = ConfigDict(json_schema_extra={"not": _missing("user_id", "session_id", "items")})

    user_id: Id | None = None
    session_id: Id | None = Field(
        None,
        description="An anonymous session, whose stored history follows that of the user. Without user_id one that was "
        "merged into a user gets the answer of that user.",
    )
    items: Items | None = Field(None, description="Oldest first; they come after the user's stored history.")
    history: History = Field(
        "use", description="ignore: the stored history is not even read. An object: older events count less."
    )
    exclude_seen: ExcludeSeen = Field(
        None,
        description="Leave out the stored history and the items given; null: as the bundle's manifest says, which is "
        "true unless the shop chose false because people buy the same again. positive: only those that attract. A "
        "list: only stored items with an event of these types.",
    )

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if self.user_id is None and self.items is None and self.session_id is None:
            raise PydanticCustomError("nobody", "must have user_id, session_id or items")
        return self

    @property
    def owner(self) -> str | None:
        """The user who asks, else the session as its owner; None: neither is named."""
        return self.user_id if self.user_id or self.session_id is None else session_owner(self.session_id)


class BatchRequest(Received):
    """Several requests of `/recommend`; each is validated by itself, so a bad one does not fail the others."""

    requests: Annotated[list[SkipValidation[RecommendRequest] | Any], Field(min_length=1, max_length=MAX_BATCH)]


class SimilarRequest(RetrievalRequest):
    """One item, or several with weights, whose neighbours are wanted."""

    model_config = ConfigDict(
        json_schema_extra={
            "not": {"anyOf": [_missing("item_id", "items"), _present(("item_id", "string"), ("items", "array"))]}
        }
    )

    item_id: Id | None = None
    items: Annotated[Items, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.item_id is None) == (self.items is None):
            raise PydanticCustomError("one_of", "must have exactly one of item_id and items")
        return self


def _check_somebody(value: str | None, info: ValidationInfo) -> str | None:
    if value is None and info.data.get("session_id") is None:
        raise PydanticCustomError("missing", "is required where there is no session_id")
    return value


class EventRequest(Received):
    """A user, or an anonymous session, did something with an item."""

    model_config = ConfigDict(json_schema_extra={"not": _missing("user_id", "session_id")})

    session_id: Id | None = Field(
        None, description="The session; without user_id an anonymous one, which has a history of its own."
    )
    user_id: Annotated[Id | None, AfterValidator(_check_somebody), PlainIdsFirst()] = Field(None, validate_default=True)
    item_id: Id = Field(description="Need not be in the current bundle.")
    timestamp: float | None = Field(
        None, ge=0, le=MAX_TIMESTAMP, description="Seconds since 1970, UTC; the time of arrival when missing."
    )
    type: ShortText | None = Field(None, description="What was done, as in purchase.")
    request_id: RequestId | None = Field(None, description="The answer that led to it.")
    value: float | None = Field(
        None, ge=0, le=MAX_VALUE, description="Of a conversion, as in the price paid, rounded to thousandths."
    )
    event_id: Id | None = Field(None, description="An event of this user with the same id is stored once.")
    consent: bool | None = Field(
        None, description="false: the event is counted and not stored. Missing: as VLM2REC_REQUIRE_CONSENT says."
    )


class EventsRequest(Received):
    """Events stored all or none."""

    events: Annotated[list[EventRequest], Field(fail_fast=True, min_length=1, max_length=MAX_EVENTS)]


class MergeRequest(Received):
    """Which anonymous session the user is."""

    session_id: Id


class AvailabilityRequest(Received):
    """Whether an item may be answered."""

    available: bool = Field(description="false: it is hidden from every answer, on every replica.")


class RollbackRequest(Received):
    """Which bundle to go back to."""

    bundle: Annotated[str, Field(pattern=BUNDLE_ID)] | None = Field(
        None, description="Its id; missing: the newest good one before the one that answers."
    )


REQUESTS: tuple[type[BaseModel], ...] = (
    *(RecommendRequest, BatchRequest, SimilarRequest, EventRequest, EventsRequest, MergeRequest),
    *(AvailabilityRequest, RollbackRequest),
)
