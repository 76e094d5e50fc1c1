"""Makes the event traffic of a shop: a fifth of it is about items of answers, the rest about any user and item."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.load.histories import user_id

TABLE: Final[Mapping[str, str]] = {"view": "0.5", "rent": "4", "search": "ignore"}
"""A table of types as a shop would set it, beside the default one."""

_SHARES: Final = {"view": 0.6, "impression": 0.2, "cart": 0.1, "purchase": 0.05, "dislike": 0.05}
_OF_ANSWERS: Final = 0.2


@dataclass(frozen=True)
class ShownAnswer:
    """An answer that events may belong to.

    Attributes:
        user: its user.
        request_id: its id.
        items: item ids.
    """

    user: str
    request_id: str
    items: Sequence[str]


class EventTraffic:
    """Events of made users, each with an event id of its own.

    Args:
        items: item ids.
        users: number of users.
        answers: that a fifth of the events belong to.
        seed: of the events.
    """

    def __init__(self, items: Sequence[str], users: int, answers: Sequence[ShownAnswer], seed: int) -> None:
        self._items = items
        self._users = users
        self._answers = answers
        self._rng = np.random.default_rng(seed)
        self._number = 0

    def write(self, path: Path, bodies: int, *, events: int) -> Path:
        """Write bodies of `POST /events`, one a line.

        Args:
            path: the file.
            bodies: how many.
            events: in each; 1: a single event, more: a list.
        """
        with path.open("w") as out:
            for _ in range(bodies):
                made = list(self._some(events))
                out.write(json.dumps(made[0] if events == 1 else {"events": made}) + "\n")
        return path

    def _some(self, count: int) -> Iterator[dict[str, Any]]:
        kinds = self._rng.choice(list(_SHARES), count, p=list(_SHARES.values())).tolist()
        users = self._rng.integers(self._users, size=count).tolist()
        items = self._rng.integers(len(self._items), size=count).tolist()
        answered = self._rng.random(count) < _OF_ANSWERS
        for kind, user, item, of_answer in zip(kinds, users, items, answered, strict=True):
            self._number += 1
            event = {"user_id": user_id(user), "item_id": self._items[item]}
            if of_answer and self._answers:
                answer = self._answers[item % len(self._answers)]
                shown = answer.items[user % len(answer.items)]
                event = {"user_id": answer.user, "item_id": shown, "request_id": answer.request_id}
            yield {**event, "type": kind, "event_id": f"e{self._number}"}
