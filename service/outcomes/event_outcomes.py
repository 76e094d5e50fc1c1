"""Says which types of events are outcomes of an answer. Other types are stored as events and are no outcome."""

from collections.abc import Mapping
from typing import Final

from service.stores.outcomes.answer_records import Outcome

OUTCOME_OF: Final[Mapping[str, Outcome]] = {
    "impression": "impression",
    "click": "click",
    "view": "click",
    "purchase": "conversion",
}
"""Outcome by the type of an event."""
