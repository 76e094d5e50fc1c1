"""Calibrates on validation how long imputed behaviour vectors are."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.items.slots import BEHAVIOUR, SlotLayout
from index.lists.item_lists import CO, ItemList, ItemLists
from training.data.sequences import Targets, evenly_spaced
from training.encoder.imputation import BehaviourImputation, ImputationFit
from training.lists.list_ranker import ListRanker
from training.ranking import metrics
from training.ranking.cold_items import cold_mask
from training.ranking.ranking import rank_targets
from training.ranking.slot_ranker import Encode, SlotRanker

FOLDS = 5
FOLD_SHARE = 0.1
MOST_TARGETS = 2_000
LENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_LEAST_TARGETS = 10
_DEFAULT_LENGTH = 0.7
"""Length where there is nothing to calibrate on."""
_CUT = 10
_FLOATS_PER_BLOCK = 1 << 23
_MOST_USERS = 256

Advance = Callable[[int, int], None]
"""Called with the number of passes over the targets that are done, and of all."""
PASSES = FOLDS + 1


@dataclass(frozen=True)
class LengthCurve:
    """What some imputed items do to validation, by the length of their vectors.

    Attributes:
        gains: (targets, lengths) DCG@10 of every target, those of the imputed items among them as often as they occur.
        share: (lengths,) share of the imputed items in the first ten positions.
        deserved: their share of the targets.
    """

    gains: NDArray[np.float64]
    share: NDArray[np.float64]
    deserved: float

    @classmethod
    def mean(cls, curves: Sequence["LengthCurve"]) -> "LengthCurve":
        """The mean of the curves of several folds, over the same targets."""
        return cls(
            np.mean([curve.gains for curve in curves], axis=0),
            np.mean([curve.share for curve in curves], axis=0),
            float(np.mean([curve.deserved for curve in curves])),
        )

    def best(self) -> int:
        """Place of the length with the largest NDCG@10 among those that give no more than the deserved share.

        The shortest where all give more; equal ones go to the shorter.
        """
        allowed = np.flatnonzero(self.share <= self.deserved)
        return int(allowed[np.argmax(self.gains[:, allowed].mean(axis=0))]) if len(allowed) else 0

    def longest(self) -> int:
        """Place of the longest length that is as good as the best and gives no more than the deserved share.

        As good is an NDCG@10 within one standard error of the paired difference (Breiman et al., 1984).
        """
        best = self.best()
        lost = self.gains[:, [best]] - self.gains
        error = lost.std(axis=0) / np.sqrt(len(lost))
        good = (lost.mean(axis=0) <= error) & (self.share <= self.deserved)
        return int(np.flatnonzero(good).max(initial=best))

    def described(self) -> dict[str, Any]:
        """Plain values for ``fit.json``."""
        return {
            "lengths": list(LENGTHS),
            "ndcg@10": self.gains.mean(axis=0).tolist(),
            "share_of_top_ten": self.share.tolist(),
            "share_of_events": self.deserved,
        }


@dataclass(frozen=True)
class LengthCalibration:
    """Ranks validation targets with imputed vectors of different lengths.

    Attributes:
        fit: fits the maps.
        layout: slots of the stored vectors.
        slots: slot name → (n, d) slot vectors; ``behaviour`` is zero for items without one of their own.
        counts: (n,) int64 training events.
        encode: the sequence encoder.
        max_history: newest items that it reads.
        lists: item-to-item lists that are served; None for none.
        validation: held-out targets.
        precision: dtype of the stored vectors.
        exclude_seen: mask the items of the history.
        item_ids: ids, which choose the folds.
    """

    fit: ImputationFit
    layout: SlotLayout
    slots: dict[str, NDArray[np.floating]]
    counts: NDArray[np.int64]
    encode: Encode
    max_history: int
    lists: ItemLists | None
    validation: Targets
    precision: str
    exclude_seen: bool
    item_ids: Sequence[str]

    def run(self, advance: Advance = lambda _done, _all: None) -> tuple[BehaviourImputation, dict[str, Any]]:
        """Fit the map and calibrate its lengths.

        Items with too few events are measured as they are. New items are imitated: for a tenth of the warm items,
        chosen by hash, the behaviour vector and every co-occurrence entry are taken away, and the vector is imputed by
        a map that was fitted without them; the mean over the folds counts.

        Items with events get the best length. New items get the longest that is as good as the best: they are shown
        more often where that costs nothing that can be measured, as they need events to get a vector of their own.

        Returns:
            The imputation, and what ``fit.json`` says of it.
        """
        targets = evenly_spaced(self.validation, MOST_TARGETS)
        imputation = self.fit.fit()
        few = ~self.fit.warm & (self.counts > 0) & self._shown()
        new = ~self.fit.warm & (self.counts == 0)  # not imputed meanwhile, as nobody knows what they deserve
        few_curve = self._curve(imputation, few, new, targets, self.lists)
        advance(1, PASSES)
        imputation = replace(imputation, few_length=_DEFAULT_LENGTH if few_curve is None else LENGTHS[few_curve.best()])
        curves = []
        for number in range(FOLDS):
            fold = self.fit.warm & cold_mask([f"{number} {item_id}" for item_id in self.item_ids], FOLD_SHARE)
            mapped = replace(self.fit.fit(without=fold), few_length=imputation.few_length)
            lists = None if self.lists is None else without_co_occurrence(self.lists, fold)
            curves += [found] if (found := self._curve(mapped, fold, new, targets, lists)) is not None else []
            advance(number + 2, PASSES)
        new_curve = LengthCurve.mean(curves) if curves else None
        imputation = replace(
            imputation, new_length=_DEFAULT_LENGTH if new_curve is None else LENGTHS[new_curve.longest()]
        )
        return imputation, {
            "warm_items": int(self.fit.warm.sum()),
            "new_length": imputation.new_length,
            "few_length": imputation.few_length,
            "new": {} if new_curve is None else new_curve.described(),
            "few": {} if few_curve is None else few_curve.described(),
        }

    def _shown(self) -> NDArray[np.bool_]:
        others = [block.any(axis=1) for name, block in self.slots.items() if name != BEHAVIOUR]
        return np.asarray(np.any(others, axis=0))

    def _curve(
        self,
        imputation: BehaviourImputation,
        items: NDArray[np.bool_],
        left_out: NDArray[np.bool_],
        targets: Targets,
        lists: ItemLists | None,
    ) -> LengthCurve | None:
        """Rank the targets with every length of some items.

        Args:
            imputation: the map.
            items: (n,) bool, imputed with the lengths in question.
            left_out: (n,) bool, items without a behaviour vector meanwhile.
            targets: to rank.
            lists: item-to-item lists.

        Returns:
            None where too few targets are of these items.
        """
        deserved = float(items[targets.targets].mean()) if len(targets) else 0.0
        if deserved * len(targets) < _LEAST_TARGETS:
            return None
        slots = {**self.slots, BEHAVIOUR: np.where(items[:, None], 0, self.slots[BEHAVIOUR])}
        filled, lengths, imputed = imputation.fill(slots, self.fit.vectors, self.counts)
        filled[BEHAVIOUR] = np.where(left_out[:, None], 0, filled[BEHAVIOUR])
        rows = np.flatnonzero(items & imputed)
        # Histories read one length, so that a block is encoded once: imputed items are seldom in them.
        read = self._stored(filled, np.where(items & imputed, _DEFAULT_LENGTH, lengths))
        some = {name: block[rows] for name, block in filled.items()}
        vectors = [self._stored(some, np.full(len(rows), length)) for length in LENGTHS]
        return self._ranked(read, rows, vectors, targets, lists, deserved)

    def _stored(self, slots: dict[str, NDArray[np.floating]], lengths: NDArray[np.floating]) -> NDArray[np.float32]:
        """Vectors as they will be stored, rounded to the precision and back."""
        return self.layout.stack(slots, {BEHAVIOUR: lengths}).astype(self.precision).astype(np.float32)

    def _ranked(
        self,
        read: NDArray[np.float32],
        items: NDArray[np.int64],
        vectors: Sequence[NDArray[np.float32]],
        targets: Targets,
        lists: ItemLists | None,
        deserved: float,
    ) -> LengthCurve:
        """The curve of some items.

        Args:
            read: (n, Σd) stored vectors.
            items: (m,) rows of the items.
            vectors: their stored vectors with each length, (m, Σd).
            targets: to rank.
            lists: item-to-item lists.
            deserved: share of the targets that are of these items.
        """
        ranker = SlotRanker(read, self.encode, self.max_history)
        by_lists = None if lists is None else ListRanker(lists)
        gains = np.zeros((len(targets), len(vectors)))
        first, whole = np.zeros(len(vectors)), np.zeros(len(vectors))
        chosen = np.isin(np.arange(len(read)), items)
        block = int(np.clip(_FLOATS_PER_BLOCK // len(read), 1, _MOST_USERS))
        for start in range(0, len(targets), block):
            part = targets.only(np.arange(len(targets)) // block == start // block)
            queries = ranker.queries(part.histories)
            scores = queries @ read.T
            added = np.zeros_like(scores) if by_lists is None else by_lists.scores(part.histories)
            scores += added
            for number, stored in enumerate(vectors):
                scores[:, items] = queries @ stored.T + added[:, items]
                found = rank_targets(_KnownScores(scores), part, ranker.findable, exclude_seen=self.exclude_seen)
                filled = found.lists >= 0
                gains[start : start + len(part), number] = metrics.gains(found.full, _CUT)
                first[number] += (chosen[found.lists] & filled).sum()
                whole[number] += filled.sum()
        return LengthCurve(gains, first / np.maximum(whole, 1), deserved)


@dataclass(frozen=True)
class _KnownScores:
    """A ranker of one block of histories whose scores are there already, (B, n) float32."""

    known: NDArray[np.float32]

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32 scores of every item; higher is better."""
        return self.known[: len(histories)]


def without_co_occurrence(lists: ItemLists, items: NDArray[np.bool_]) -> ItemLists:
    """The same lists with no item of a set in the co-occurrence list, as if these items had no event.

    Args:
        lists: of the catalogue.
        items: (n,) bool.
    """
    return dataclasses.replace(
        lists, lists=tuple(_without(one, items) if one.name == CO else one for one in lists.lists)
    )


def _without(item_list: ItemList, items: NDArray[np.bool_]) -> ItemList:
    rows, similarities = np.asarray(item_list.rows), np.asarray(item_list.similarities)
    owners = np.repeat(np.arange(len(items)), np.diff(item_list.offsets))
    kept = ~items[rows] & ~items[owners]
    offsets = np.zeros(len(items) + 1, dtype=np.int64)
    np.cumsum(np.bincount(owners[kept], minlength=len(items)), out=offsets[1:])
    return ItemList(item_list.name, offsets, rows[kept], similarities[kept])
