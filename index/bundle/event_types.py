"""Defines what the types of events mean, in one table for the service and for training.

A positive type has a weight above 0: its items shape the query and the loss. A negative type has a weight below 0: its
items push away and are excluded. An ``impression`` says that an item was shown; an ``ignore`` is only stored.

Each type also says which outcome of an answer its events are, if any. It is counted, and changes no answer and no fit.
"""

import re
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, Final, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from index.errors import EventTypesError

Meaning = Literal["positive", "negative", "impression", "ignore"]
Outcome = Literal["impression", "click", "conversion"]
NO_OUTCOME: Final = "none"
"""In place of an outcome: events of this type are none."""

LARGEST_WEIGHT: Final = 10.0
MOST_TYPES: Final = 64
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,64}")
_DEFAULTS: Final[Mapping[str, float | str]] = {
    "view": 1.0,
    "cart": 3.0,
    "purchase": 5.0,
    "like": 5.0,
    "click": 1.0,
    "dislike": -5.0,
    "return": -2.0,
    "impression": "impression",
}
_DEFAULT_TYPE: Final = "view"
# A basket or a like follows a view, which counts; it would be a click without the two rows here.
_DEFAULT_OUTCOMES: Final[Mapping[str, str]] = {
    "view": "click",
    "click": "click",
    "purchase": "conversion",
    "impression": "impression",
    "cart": NO_OUTCOME,
    "like": NO_OUTCOME,
}
_OUTCOMES: Final[Mapping[str, Outcome]] = {outcome: outcome for outcome in get_args(Outcome)}


class EventTypes(BaseModel):
    """The meaning and the weight of each type of event.

    Attributes:
        types: a weight (above 0: positive, below 0: negative), ``impression`` or ``ignore`` by the name of the type.
        default_type: the type in ``types`` whose meaning and weight an event without a type, or of an unknown one, has.
        outcomes: ``impression``, ``click``, ``conversion`` or ``none`` by the name of a type in ``types``; of the
            others see :meth:`outcome`. Tables of earlier versions have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    types: dict[str, float | Literal["impression", "ignore"]]
    default_type: str
    outcomes: dict[str, Literal["impression", "click", "conversion", "none"]] = {}

    @field_validator("types", mode="before")
    @classmethod
    def _check(cls, types: Any) -> Any:  # noqa: ANN401 - any value of a file
        if not isinstance(types, dict) or not 1 <= len(types) <= MOST_TYPES:
            raise ValueError(f"must be a table of 1 to {MOST_TYPES} types, got {str(types)[:80]}")
        for name, value in types.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError(f"a type must have 1 to 64 characters and no control characters, got {name!r:.80}")
            is_weight = isinstance(value, int | float) and not isinstance(value, bool)
            if not (value in ("impression", "ignore") or (is_weight and 0 < abs(value) <= LARGEST_WEIGHT)):
                raise ValueError(
                    f"{name} must be a weight of -{LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g} other than 0, "
                    f"'impression' or 'ignore', got {value!r:.80}"
                )
        return types

    @field_validator("outcomes", mode="before")
    @classmethod
    def _check_outcomes(cls, outcomes: Any) -> Any:  # noqa: ANN401 - any value of a file
        if not isinstance(outcomes, dict):
            raise ValueError(  # noqa: TRY004 - pydantic reports no other error
                f"outcomes must be a table, got {str(outcomes)[:80]}"
            )
        for name, value in outcomes.items():
            if not isinstance(value, str) or value not in {*_OUTCOMES, NO_OUTCOME}:
                raise ValueError(
                    f"the outcome of {str(name)[:80]} must be 'impression', 'click', 'conversion' or 'none', "
                    f"got {value!r:.80}"
                )
        return outcomes

    @model_validator(mode="after")
    def _outcomes_are_of_known_types(self) -> Self:
        if unknown := [name for name in self.outcomes if name not in self.types]:
            raise ValueError(f"outcomes must name types among {', '.join(self.types)}, got {unknown[0]!r:.80}")
        return self

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without outcomes as earlier versions wrote it, which know no outcomes."""
        raw: dict[str, Any] = serialize(self)
        return raw if self.outcomes else {name: value for name, value in raw.items() if name != "outcomes"}

    @model_validator(mode="after")
    def _default_is_known(self) -> Self:
        if self.default_type not in self.types:
            raise ValueError(
                f"default_type must be one of the types {', '.join(self.types)}, got {self.default_type!r:.80}"
            )
        return self

    @classmethod
    def of(
        cls,
        types: Mapping[str, Any] | None = None,
        default_type: str | None = None,
        outcomes: Mapping[str, Any] | None = None,
    ) -> Self:
        """The default table with changes.

        Args:
            types: further types, and others for the defaults of the same name.
            default_type: None: ``view``.
            outcomes: by type; types that are left out have the default.

        Raises:
            EventTypesError: a name, a weight, the default type or an outcome breaks a rule.
        """
        table = types if types is not None and not isinstance(types, Mapping) else {**_DEFAULTS, **(types or {})}
        return cls._validated(table, default_type or _DEFAULT_TYPE, {} if outcomes is None else outcomes)

    def with_outcomes(self, outcomes: Mapping[str, Any]) -> Self:
        """The same types with other outcomes.

        Args:
            outcomes: by type; those of types that the table lacks are left out.

        Raises:
            EventTypesError: an outcome breaks a rule.
        """
        known = {name: outcome for name, outcome in outcomes.items() if name in self.types}
        return self._validated(self.types, self.default_type, {**self.outcomes, **known}) if known else self

    @classmethod
    def _validated(cls, types: Any, default_type: str, outcomes: Any) -> Self:  # noqa: ANN401 - any value of a file
        try:
            return cls.model_validate({"types": types, "default_type": default_type, "outcomes": outcomes})
        except ValidationError as error:
            raise EventTypesError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None

    @cached_property
    def weights(self) -> Mapping[str, float]:
        """The weight of each known type; 0 for impressions and ignored types."""
        return {name: 0.0 if isinstance(value, str) else float(value) for name, value in self.types.items()}

    @cached_property
    def default_weight(self) -> float:
        """The weight of an event without a type or of an unknown type."""
        return self.weights[self.default_type]

    def weight(self, name: str | None) -> float:
        """The weight of an event; 0 if it is an impression or ignored."""
        return self.default_weight if name is None else self.weights.get(name, self.default_weight)

    @cached_property
    def meanings(self) -> Mapping[str, Meaning]:
        """The meaning of each known type."""
        return {
            name: value if isinstance(value, str) else "positive" if value > 0 else "negative"
            for name, value in self.types.items()
        }

    @cached_property
    def default_meaning(self) -> Meaning:
        """The meaning of an event without a type or of an unknown type."""
        return self.meanings[self.default_type]

    def meaning(self, name: str | None) -> Meaning:
        """What an event of this type means; None or an unknown type: as ``default_type``."""
        return self.default_meaning if name is None else self.meanings.get(name, self.default_meaning)

    def is_among(self, name: str | None, names: Collection[str]) -> bool:
        """Whether an event of this type is of one of these types; None or an unknown type: also of ``default_type``."""
        return name in names or (name not in self.types and self.default_type in names)

    @cached_property
    def _outcomes_of_types(self) -> Mapping[str | None, Outcome]:
        names: tuple[str | None, ...] = (*self.types, None)
        found = {name: self._outcome_of_type(self.default_type if name is None else name) for name in names}
        return {name: _OUTCOMES[outcome] for name, outcome in found.items() if outcome in _OUTCOMES}

    def _outcome_of_type(self, name: str) -> str:
        if name in self.outcomes:
            return self.outcomes[name]
        meaning = self.meaning(name)
        if meaning == "impression":
            return "impression"
        return _DEFAULT_OUTCOMES.get(name, "click" if meaning == "positive" else NO_OUTCOME)

    def outcome(self, name: str | None) -> Outcome | None:
        """The outcome of an answer that an event of this type is, as `outcomes` says; None: it is none.

        Where `outcomes` says nothing: a type of the meaning ``impression``, or of that name, is an impression; ``view``
        and ``click`` are clicks, ``purchase`` is a conversion, ``cart`` and ``like`` are none; other positive types are
        clicks, and all else is none. Without a type it is that of ``default_type``. An unknown type is none: it may
        mean anything.
        """
        return self._outcomes_of_types.get(name)


DEFAULT_EVENT_TYPES: Final = EventTypes.of()
"""Used where neither the settings nor the bundle have a table."""
