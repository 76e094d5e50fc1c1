"""Calibrates on validation how long imputed behaviour vectors are, by the share of the first ten positions they get."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from index.items.slots import BEHAVIOUR, SlotLayout
from index.lists.item_lists import CO, ItemList, ItemLists
from training.data.sequences import Targets, evenly_spaced
from training.encoder.imputation import BehaviourImputation, ImputationFit
from training.lists.list_ranker import ListRanker
from training.ranking.cold_items import cold_mask
from training.ranking.ranking import rank_targets
from training.ranking.slot_ranker import Encode, SlotRanker

if TYPE_CHECKING:
    from training.ranking.baselines import Ranker

FOLDS = 2
FOLD_SHARE = 0.1
MOST_TARGETS = 2_000
_SHORTEST = 0.3
_STEPS = 6
_LEAST_TARGETS = 10
_DEFAULT_LENGTH = 0.7
"""Length where there is nothing to calibrate on."""

Advance = Callable[[int, int], None]
"""Called with the number of rankings done and of all."""
RANKINGS = (FOLDS + 1) * _STEPS


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
        a map that was fitted without them. Both get the largest length at which their share of the first ten positions
        is at most their share of the targets.

        Returns:
            The imputation, and what ``fit.json`` says of it.
        """
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            advance(done, RANKINGS)

        targets = evenly_spaced(self.validation, MOST_TARGETS)
        imputation = self.fit.fit()
        few = ~self.fit.warm & (self.counts > 0) & self._shown()
        new = ~self.fit.warm & (self.counts == 0)  # not imputed meanwhile, as nobody knows what they deserve
        few_length, few_record = self._calibrated(imputation, few, new, targets, self.lists, step)
        imputation = replace(imputation, few_length=few_length)
        lengths, records = [], []
        for number in range(FOLDS):
            fold = self.fit.warm & cold_mask([f"{number} {item_id}" for item_id in self.item_ids], FOLD_SHARE)
            mapped = replace(self.fit.fit(without=fold), few_length=few_length)
            lists = None if self.lists is None else without_co_occurrence(self.lists, fold)
            length, record = self._calibrated(mapped, fold, new, targets, lists, step)
            if record:
                lengths.append(length)
                records.append(record)
        new_length = float(np.mean(lengths)) if lengths else _DEFAULT_LENGTH
        imputation = replace(imputation, new_length=new_length)
        return imputation, {
            "warm_items": int(self.fit.warm.sum()),
            "new_length": new_length,
            "few_length": few_length,
            "new": records,
            "few": few_record,
        }

    def _shown(self) -> NDArray[np.bool_]:
        others = [block.any(axis=1) for name, block in self.slots.items() if name != BEHAVIOUR]
        return np.asarray(np.any(others, axis=0))

    def _calibrated(
        self,
        imputation: BehaviourImputation,
        items: NDArray[np.bool_],
        left_out: NDArray[np.bool_],
        targets: Targets,
        lists: ItemLists | None,
        step: Callable[[], None],
    ) -> tuple[float, dict[str, float]]:
        """Search the length of some items by bisection.

        Args:
            imputation: the map.
            items: (n,) bool, imputed with the length in question.
            left_out: (n,) bool, items without a behaviour vector meanwhile.
            targets: to rank.
            lists: item-to-item lists.
            step: called after every ranking.

        Returns:
            The length, and the shares; {} and a default where too few targets are of these items.
        """
        deserved = float(items[targets.targets].mean()) if len(targets) else 0.0
        if deserved * len(targets) < _LEAST_TARGETS:
            return _DEFAULT_LENGTH, {}
        slots = {**self.slots, BEHAVIOUR: np.where(items[:, None], 0, self.slots[BEHAVIOUR])}
        filled, lengths, imputed = imputation.fill(slots, self.fit.vectors, self.counts)
        filled[BEHAVIOUR] = np.where(left_out[:, None], 0, filled[BEHAVIOUR])
        low, high, share, best = _SHORTEST, 1.0, float("nan"), float("nan")
        for number in range(_STEPS):
            length = high if number == 0 else (low + high) / 2
            share = self._share(filled, np.where(items & imputed, length, lengths), items, targets, lists)
            step()
            if share <= deserved:
                low, best = length, share
                if number == 0:
                    break
            else:
                high = length
        return low, {"length": low, "share_of_events": deserved, "share_of_top_ten": share if best != best else best}

    def _share(
        self,
        slots: dict[str, NDArray[np.floating]],
        lengths: NDArray[np.floating],
        items: NDArray[np.bool_],
        targets: Targets,
        lists: ItemLists | None,
    ) -> float:
        """Share of some items in the first ten positions of all targets."""
        stored = self.layout.stack(slots, {BEHAVIOUR: lengths}).astype(self.precision).astype(np.float32)
        slot_ranker = SlotRanker(stored, self.encode, self.max_history)
        ranker: Ranker = slot_ranker if lists is None else ListRanker(lists, slot_ranker)
        first = rank_targets(ranker, targets, slot_ranker.findable, exclude_seen=self.exclude_seen).lists
        return float((items[first] & (first >= 0)).sum() / max((first >= 0).sum(), 1))


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
