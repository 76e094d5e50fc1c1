"""Checks answers to requests for recommendations: each must be that of the bundle it names, and of no other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from index.bundle.bundle import Bundle

_TOLERANCE: Final = 1e-5


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: which body, when it was due (perf_counter), seconds from then to the answer, status, body.

    A server that stalls is charged for all that waited meanwhile. Status 0 is a connection that failed.
    """

    number: int
    due: float
    seconds: float
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class OfflineAnswers:
    """What one bundle answers, computed without the service.

    Attributes:
        bundle: it.
        histories: of the requests.
        k: items of an answer.
        items: the best items of each request with their scores.
    """

    bundle: Bundle
    histories: Sequence[Sequence[str]]
    k: int
    items: list[list[tuple[str, float]]]

    @classmethod
    def of(cls, bundle: Bundle, histories: Sequence[Sequence[str]], k: int) -> "OfflineAnswers":
        """Search for the items of all histories, each by itself."""
        return cls(bundle, histories, k, [_best(bundle, items, k, len(set(items))) for items in histories])

    def has(self, number: int, answer: Sequence[Mapping[str, Any]]) -> bool:
        """Whether an answer is this bundle's: the same items and scores in the same order.

        The service searches a batch for as many items as its longest request needs. A walk through the graph finds
        others at another depth, so every depth that a batch can have is tried.
        """
        longest = max(len(set(items)) for items in self.histories)
        depths = (_best(self.bundle, self.histories[number], self.k, more) for more in range(longest + 1))
        return any(_are_same(answer, items) for items in (self.items[number], *depths))


def _best(bundle: Bundle, history: Sequence[str], k: int, more: int) -> list[tuple[str, float]]:
    """The best items without those of the history; the search is for so many more."""
    rows, _ = bundle.ids.rows(history)
    found = bundle.search(bundle.encode([rows[bundle.indexed[rows]]]), k + more)
    pairs = zip(found.rows[0].tolist(), found.scores[0].tolist(), strict=True)
    return [(bundle.ids.id(row), score) for row, score in pairs if row >= 0 and row not in set(rows.tolist())][:k]


def _are_same(answer: Sequence[Mapping[str, Any]], items: Sequence[tuple[str, float]]) -> bool:
    if not items or [item["item_id"] for item in answer] != [item for item, _ in items]:
        return False
    return bool(np.allclose([item["score"] for item in answer], [score for _, score in items], atol=_TOLERANCE))


def mixed(answers: Sequence[Answered], right: Mapping[str, OfflineAnswers]) -> list[str]:
    """Defects of answers: a bundle that may not serve, or items or scores of another bundle."""
    wrong = []
    for answer in answers:
        if answer.status != 200:
            continue
        body = json.loads(answer.body)
        named = right.get(body["bundle"])
        is_right = named is not None and named.has(answer.number, body["items"])
        if not is_right or body["strategy"] != "sequence" or body["degraded"] is not None:
            wrong.append(f"request {answer.number}, bundle {body['bundle']}, {body['strategy']}, {body['degraded']}")
    return wrong
