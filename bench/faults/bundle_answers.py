"""Checks answers to requests for recommendations: each must be that of the bundle it names, and of no other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle

_TOLERANCE: Final = 1e-5
_SHARED: Final = 0.8  # of the best items of two approximate searches of one bundle


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
class Right:
    """What one bundle answers, computed without the service.

    Attributes:
        bundle: it.
        queries: (requests, Σd) float32 of the histories.
        histories: of the requests.
        items: the best ones for each with their scores, by a search of its own.
    """

    bundle: Bundle
    queries: NDArray[np.float32]
    histories: Sequence[Sequence[str]]
    items: list[list[tuple[str, float]]]

    @classmethod
    def of(cls, bundle: Bundle, histories: Sequence[Sequence[str]], k: int) -> "Right":
        """Encode all histories and search for k items each."""
        queries, items = [], []
        for history in histories:
            rows, _ = bundle.ids.rows(history)
            queries.append(bundle.encode([rows[bundle.indexed[rows]]])[0])
            found = bundle.search(queries[-1][None], k + len(set(history)))
            pairs = zip(found.rows[0].tolist(), found.scores[0].tolist(), strict=True)
            best = [(bundle.ids.id(row), score) for row, score in pairs if row >= 0]
            items.append([(item, score) for item, score in best if item not in history][:k])
        return cls(bundle, np.stack(queries), histories, items)

    def gave(self, number: int, items: Sequence[Mapping[str, Any]]) -> bool:
        """Whether an answer is this bundle's: its scores for the items, the best first, and nearly all of the best.

        Two approximate searches need not find the same items: the service searches for another number at once.
        """
        ids = [item["item_id"] for item in items]
        rows, unknown = self.bundle.ids.rows(ids)
        best, given = {item for item, _ in self.items[number]}, set(ids)
        if unknown or len(given) != len(best) or len(given & best) < _SHARED * len(best):
            return False
        if given & set(self.histories[number]):
            return False
        scores = np.array([item["score"] for item in items])
        exact = self.bundle.contributions(self.queries[number][None], rows[None])[0].sum(axis=1)
        return bool(np.allclose(scores, exact, atol=_TOLERANCE) and (np.diff(scores) <= _TOLERANCE).all())


def mixed(answers: Sequence[Answered], right: Mapping[str, Right]) -> list[str]:
    """Defects of answers: a bundle that may not serve, or items or scores of another bundle."""
    wrong = []
    for answer in answers:
        if answer.status != 200:
            continue
        body = json.loads(answer.body)
        named = right.get(body["bundle"])
        is_right = named is not None and named.gave(answer.number, body["items"])
        if not is_right or body["strategy"] != "sequence" or body["degraded"] is not None:
            wrong.append(f"request {answer.number}, bundle {body['bundle']}, {body['strategy']}, {body['degraded']}")
    return wrong
