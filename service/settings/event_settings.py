"""Declares the settings of event types."""

from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from index.bundle.event_types import DEFAULT_EVENT_TYPES, EventTypes
from index.errors import EventTypesError
from service.settings.groups import SettingsGroup
from service.settings.plain_numbers import DECIMAL


def _split_table(value: Any) -> Any:  # noqa: ANN401 - any value of a variable or of the file
    """Split the text of a variable, as in ``rent=4,search=ignore``; a text that is no number stays one."""
    if not isinstance(value, str):
        return value
    table: dict[str, float | str] = {}
    for part in filter(None, map(str.strip, value.split(","))):
        name, _, said = part.rpartition("=")
        if name.strip() in table:
            raise ValueError("must name each type once")
        said = said.strip()
        table[name.strip()] = float(said) if DECIMAL.fullmatch(said) else said
    return table


class EventSettings(SettingsGroup):
    """What the types of events mean; the file holds them in a table ``[events]``."""

    event_types: Annotated[dict[str, Any], BeforeValidator(_split_table)] = Field(
        {},
        description="Weights, `impression` or `ignore` by type, which change the default table, as in "
        "`rent=4,search=ignore`; in the file the table `[events.types]`.",
    )
    default_type: str | None = Field(
        None, description="Type whose meaning an event without a type, or of an unknown one, has; unset: `view`."
    )
    event_outcomes: Annotated[dict[str, Any], BeforeValidator(_split_table)] = Field(
        {},
        description="`impression`, `click`, `conversion` or `none` by type: the outcome of an answer that its events "
        "are, as in `rent=conversion,finished=conversion`; in the file the table `[events.outcomes]`.",
    )

    @model_validator(mode="after")
    def _check_table(self) -> Self:
        try:
            if self.table is None:  # a bundle may have types that are not known here
                EventTypes.of(dict.fromkeys(self.event_outcomes, 1.0), None, self.event_outcomes)
        except EventTypesError as error:
            raise ValueError(f"event_types, default_type or event_outcomes: {error}") from None
        return self

    @cached_property
    def table(self) -> EventTypes | None:
        """The table that these settings set; None: that of the bundle, else the default."""
        if not self.event_types and self.default_type is None:
            return None
        return EventTypes.of(self.event_types, self.default_type, self.event_outcomes)

    def over(self, of_bundle: EventTypes | None) -> EventTypes:
        """The table that counts: that of these settings, else that of a bundle, else the default.

        Their outcomes change those of any of them; they leave out types that it lacks.
        """
        return self.table or (of_bundle or DEFAULT_EVENT_TYPES).with_outcomes(self.event_outcomes)
