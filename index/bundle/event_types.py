"""Defines what the types of events mean, in one table for the service and for training.

A positive type has a weight above 0: its items shape the query and the loss. A negative type has a weight below 0: its
items push away and are excluded. An ``impression`` says that an item was shown; an ``ignore`` is only stored.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from index.errors import EventTypesError

Meaning = Literal["positive", "negative", "impression", "ignore"]

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


class EventTypes(BaseModel):
    """The meaning and the weight of each type of event.

    Attributes:
        types: a weight (above 0: positive, below 0: negative), ``impression`` or ``ignore`` by the name of the type.
        default_type: the type in ``types`` whose meaning and weight an event without a type, or of an unknown one, has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    types: dict[str, float | Literal["impression", "ignore"]]
    default_type: str

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

    @model_validator(mode="after")
    def _default_is_known(self) -> Self:
        if self.default_type not in self.types:
            raise ValueError(
                f"default_type must be one of the types {', '.join(self.types)}, got {self.default_type!r:.80}"
            )
        return self

    @classmethod
    def of(cls, types: Mapping[str, Any] | None = None, default_type: str | None = None) -> Self:
        """The default table with changes.

        Args:
            types: further types, and others for the defaults of the same name.
            default_type: None: ``view``.

        Raises:
            EventTypesError: a name, a weight or the default type breaks a rule.
        """
        table = types if types is not None and not isinstance(types, Mapping) else {**_DEFAULTS, **(types or {})}
        try:
            return cls.model_validate({"types": table, "default_type": default_type or _DEFAULT_TYPE})
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


DEFAULT_EVENT_TYPES: Final = EventTypes.of()
"""Used where neither the settings nor the bundle have a table."""
