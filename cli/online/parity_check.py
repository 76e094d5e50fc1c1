"""Compares the answers of PyTorch, ONNX and a live service to the same histories."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cli.errors import LiveServiceError
from index.bundle.bundle import Bundle
from index.errors import SearchError
from index.lists.list_query import ListQuery
from index.search.parity import ParityResult, RankedItems
from index.search.scoring import ScoredRows


class Live(Protocol):
    """The calls to the live service; see `cli.online.live_service`."""

    def recommend(self, items: list[str], k: int, *, keeps_places: bool) -> dict[str, Any]:
        """The answer to a history of item ids, by score alone also where the bundle keeps places for new items."""
        ...

    def available(self, item_id: str) -> bool:
        """Whether an item may be answered."""
        ...


class Encoder(Protocol):
    """Encodes histories of stored vectors."""

    def encode(self, histories: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """(B, Σd) float32."""
        ...


class ParityCheck:
    """Compares a live service with its bundle under ONNX Runtime, and that with PyTorch.

    All of them add the bundle's item-to-item lists. The live answer is held to the same index, the two encoders to each
    other by exact search, so that only the encoders can make a difference there.

    Args:
        bundle: the one that is live.
        live: the service.
        torch: the encoder under PyTorch; None: not compared.
        k: items of each answer.
        tolerance: largest difference of scores that is none.

    Attributes:
        pairs: what was compared.
    """

    def __init__(self, bundle: Bundle, live: Live, torch: Encoder | None, *, k: int, tolerance: float) -> None:
        self._bundle, self._live, self._torch, self._k = bundle, live, torch, k
        self._served = ParityResult("ONNX – live", tolerance)
        self._exported = ParityResult("PyTorch – ONNX", tolerance)
        self._shown: dict[str, bool] = {}
        self.pairs = [self._served] if torch is None else [self._exported, self._served]

    def histories(self, most: int, items: list[str]) -> list[NDArray[np.int64]]:
        """Rows of the histories to compare: evaluation queries, spread evenly, and one of given items.

        Raises:
            SearchError: a given item is unknown, or there is nothing to ask with.
        """
        probes = self._bundle.evaluation_queries
        places = np.unique(np.linspace(0, len(probes) - 1, min(most, len(probes))).astype(np.int64))
        found = [probes.history(int(place)) for place in places]
        if items:
            rows, unknown = self._bundle.ids.rows(items)
            if unknown:
                raise SearchError(f"--item {unknown[0]!r} is not in bundle {self._bundle.id}; name items that are")
            found.append(rows)
        found = [history for history in found if self._bundle.indexed[history].any()]
        if not found:
            raise SearchError(f"bundle {self._bundle.id} has no probes with a slot; give a history with --item")
        return found

    def ask(self, history: NDArray[np.int64]) -> None:
        """Compare the answers to one history.

        Raises:
            LiveServiceError: the service does not answer, or with another bundle by now.
        """
        usable = history[self._bundle.indexed[history]]
        query = self._bundle.encode([usable])[0]
        name = f"history {', '.join(self._bundle.ids.id(int(row)) for row in history[-3:])}"
        if self._torch is not None:
            self._compare_encoders(name, query, usable, history)
        self._compare_live(name, query, usable, history)

    def _compare_encoders(
        self, name: str, query: NDArray[np.float32], usable: NDArray[np.int64], seen: NDArray[np.int64]
    ) -> None:
        if self._torch is None:
            return
        other = self._torch.encode([self._bundle.vectors(usable)])[0]
        depth = self._k + np.unique(seen).size
        listed = [ListQuery(usable)]
        right, got = (
            self._ranking(self._bundle.exact(vector[None], depth, histories=listed), seen) for vector in (query, other)
        )
        self._exported.compare(name, right, got, lambda item_id: self._score(query, usable, item_id))

    def _compare_live(
        self, name: str, query: NDArray[np.float32], usable: NDArray[np.int64], seen: NDArray[np.int64]
    ) -> None:
        items, keeps_places = [self._bundle.ids.id(int(row)) for row in seen], self._bundle.manifest.fresh_share > 0
        answer = self._live.recommend(items, self._k, keeps_places=keeps_places)
        if answer.get("bundle") != self._bundle.id:
            raise LiveServiceError(
                f"the service answers with bundle {answer.get('bundle')} by now, not with {self._bundle.id}; "
                "verify again"
            )
        if answer.get("strategy") != "sequence" or answer.get("degraded") is not None:
            self._served.fail(name, f"answered by {answer.get('strategy')}, degraded: {answer.get('degraded')}")
            return
        try:
            got = RankedItems(
                [str(item["item_id"]) for item in answer["items"]], [float(item["score"]) for item in answer["items"]]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LiveServiceError(f"the service answers items of another form ({error!r})") from error
        excluded = {self._bundle.ids.id(int(row)) for row in seen}

        def score_of(item_id: str) -> float | None:
            return None if item_id in excluded else self._score(query, usable, item_id)

        self._served.compare(name, self._reference(query, usable, seen, got), got, score_of)

    def _reference(
        self, query: NDArray[np.float32], usable: NDArray[np.int64], seen: NDArray[np.int64], got: RankedItems
    ) -> RankedItems:
        """The bundle's answer without items that are hidden on the service."""
        depth = self._k + np.unique(seen).size
        while True:
            hidden = [item_id for item_id, shown in self._shown.items() if not shown]
            allowed = None
            if hidden:
                mask = np.ones(len(self._bundle), dtype=np.bool_)
                mask[self._bundle.ids.rows(hidden)[0]] = False
                allowed = self._bundle.allowed(None, mask)
            found = self._bundle.search(query[None], depth, allowed=allowed, histories=[ListQuery(usable)])
            right = self._ranking(found, seen)
            missed = set(right.ids) - set(got.ids) - self._shown.keys()
            if not missed:
                return right
            for item_id in missed:
                self._shown[item_id] = self._live.available(item_id)

    def _ranking(self, found: ScoredRows, seen: NDArray[np.int64]) -> RankedItems:
        kept = (found.rows[0] >= 0) & ~np.isin(found.rows[0], seen)
        rows = found.rows[0][kept][: self._k].tolist()
        return RankedItems([self._bundle.ids.id(row) for row in rows], found.scores[0][kept][: self._k].tolist())

    def _score(self, query: NDArray[np.float32], usable: NDArray[np.int64], item_id: str) -> float | None:
        row = self._bundle.ids.row(item_id)
        if row is None:
            return None
        parts = self._bundle.contributions(query[None], np.array([[row]]), histories=[ListQuery(usable)])
        return float(parts[0, 0].sum())
