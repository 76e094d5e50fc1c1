"""Computes the expected answers of bundles with the small layout in plain numpy."""

from dataclasses import dataclass

import numpy as np

from index.items.item_table import ItemTable


@dataclass(frozen=True)
class Oracle:
    """The right answers, worked out from the item table alone."""

    table: ItemTable

    @property
    def vectors(self) -> np.ndarray:
        return np.asarray(self.table.vectors, dtype=np.float64)

    def row(self, item_id: str) -> int:
        row = self.table.ids.row(item_id)
        assert row is not None
        return row

    def encoded(self, items: list[str]) -> np.ndarray:
        """1.5 × the mean of the newest five + the newest, as the encoder of `small_encoder` does."""
        history = self.vectors[[self.row(item) for item in items][-5:]]
        return 1.5 * history.mean(axis=0) + history[-1]

    def scales(self, slot_weights: dict[str, float]) -> np.ndarray:
        """(n,) factors by which a slot counts with its weight, at most 1, in the number of slots of an item."""
        layout = self.table.layout
        counts = {name: min(slot_weights.get(name, 1.0), 1.0) for name in layout.names}
        whole = (len(counts) / sum(counts.values())) ** 0.5
        scales = np.ones(len(self.table))
        for row, vector in enumerate(self.vectors):
            has = [name for name in layout.names if vector[layout.slice(name)].any()]
            weighed = sum(counts[name] for name in has)
            scales[row] = (len(has) / weighed) ** 0.5 / whole if weighed else 1.0
        return scales

    def best(
        self,
        query: np.ndarray,
        k: int,
        without: set[str],
        allowed: np.ndarray | None = None,
        slot_weights: dict[str, float] | None = None,
    ) -> list[tuple[str, float]]:
        """The k best items with their scores; never one without a slot.

        The weights are those that the query is multiplied with already.
        """
        scores = self.vectors @ query * self.scales(slot_weights or {})
        keep = np.any(self.vectors != 0, axis=1)
        keep[[self.row(item) for item in without]] = False
        if allowed is not None:
            keep &= allowed
        order = [row for row in np.argsort(-scores, kind="stable") if keep[row]][:k]
        return [(self.table.ids.id(int(row)), float(scores[row])) for row in order]

    def popular(
        self, k: int, without: set[str] = frozenset(), allowed: np.ndarray | None = None
    ) -> list[tuple[str, float]]:
        """The k items with the most events with their shares."""
        order = np.argsort(-self.table.popularity, kind="stable")
        keep = np.ones(len(self.table), dtype=bool) if allowed is None else allowed.copy()
        keep[[self.row(item) for item in without]] = False
        total = self.table.popularity.sum()
        rows = [int(row) for row in order if keep[row]][:k]
        return [(self.table.ids.id(row), float(self.table.popularity[row] / total)) for row in rows]
