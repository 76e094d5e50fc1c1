"""Make the item-to-item lists of a run, choose their weights on validation, and write ``RUN/encoder/lists``.

The lists are made before the fit, whose epoch is chosen by slots and lists together.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.items.slots import IMAGE, SlotLayout
from index.lists.item_lists import CO, LIST_SLOTS, WORDS, ItemList, ItemLists, ListWeights
from training.config.encoder_config import EncoderConfig
from training.data.sequences import LeaveOneOut, Sequences, Targets, evenly_spaced
from training.lists.build import co_occurrence_list, look_list, words_list
from training.lists.validation_pool import ValidationPool, listed_items
from training.lists.weights import RECENCIES, ChosenWeights, best_figures, choose_weights
from training.ranking.slot_ranker import SlotRanker

LISTS_DIRECTORY = "lists"
_DIRECTED = 0.3
"""Weight of what came before in the directed co-occurrence, which is tried beside the symmetric one."""
_SHRINKAGE = 10.0
"""Shrinkage of co-occurrence, in events (docs/experiments/lists.md, "Beside item kNN and EASE")."""

Progress = Callable[[str, int, int], None]
"""Called with the step, what is done and how much there is."""


@dataclass(frozen=True)
class CandidateLists:
    """Lists of a catalogue before their weights beside the slots are chosen.

    Attributes:
        symmetric: name → list, co-occurrence counted symmetrically.
        directed: the same with what came before at less weight; equal to ``symmetric`` without co-occurrence.
        validation: targets that weights are chosen on.
        symmetric_alone: weights of the symmetric lists without the slots.
        directed_alone: those of the directed ones.
    """

    symmetric: Mapping[str, ItemList]
    directed: Mapping[str, ItemList]
    validation: Targets
    symmetric_alone: ChosenWeights
    directed_alone: ChosenWeights


class ServedValidation:
    """Measures what is served, slots and lists together, of one model after another.

    Direction and recency are those that are best for the lists alone; the weights are searched anew for each model.

    Args:
        lists: with their validation targets.
        config: sizes, and whether seen items are left out.
    """

    def __init__(self, lists: CandidateLists, config: EncoderConfig) -> None:
        directed = lists.directed_alone.ndcg > lists.symmetric_alone.ndcg
        alone = lists.directed_alone if directed else lists.symmetric_alone
        self._lists, self._config = lists.directed if directed else lists.symmetric, config
        self._recency = float(alone.weights.recency[min(1, config.list_history - 1)])
        self._validation = lists.validation
        items = len(next(iter(self._lists.values())).offsets) - 1
        self._listed = listed_items(self._lists, items, self._validation, config.list_history)

    def figures(self, ranker: SlotRanker) -> dict[str, float]:
        """``ndcg@10`` and ``hr@10`` of the slots, and of slots and lists ``served_ndcg@10`` with ``served_error``.

        Args:
            ranker: scores the slots as they will be stored.
        """
        config = self._config
        pool = ValidationPool(
            ranker,
            self._validation,
            ranker.findable,
            self._lists,
            config.list_history,
            exclude_seen=config.exclude_seen,
            listed=self._listed,
        )
        return pool.slot_figures() | best_figures(pool, self._recency)


def make_lists(
    layout: SlotLayout,
    texts: Sequence[str | None],
    features: Mapping[str, NDArray[np.floating]],
    findable: NDArray[np.bool_],
    parts: LeaveOneOut,
    config: EncoderConfig,
    *,
    progress: Progress = lambda _step, _done, _all: None,
) -> CandidateLists | None:
    """Make the lists whose slot the layout has, and weigh them without the slots.

    Co-occurrence is counted symmetrically and directed, and validation chooses between them later.

    Args:
        layout: slots of the run.
        texts: text per item; None for none.
        features: modality vectors by slot name; those of ``image`` are compared for ``look``.
        findable: (n,) bool, items with a slot.
        parts: training histories to count and validation targets to weigh with.
        config: sizes, and whether seen items are left out.
        progress: called often.

    Returns:
        None without validation targets, which nothing can be weighed with, and where no list has any entry.
    """
    validation = evenly_spaced(parts.validation, config.validation_users)
    if not config.neighbours(len(texts)) or not len(validation):
        return None
    symmetric = _build(layout, texts, features, parts, config, progress)
    if not symmetric:
        return None
    weigh = partial(_choose, None, validation=validation, findable=findable, config=config, progress=progress)
    alone = weigh(symmetric, step="weights of the lists alone")
    if CO not in symmetric:
        return CandidateLists(symmetric, symmetric, validation, alone, alone)
    directed = symmetric | {CO: _co_occurrence(parts, len(texts), config, _DIRECTED, progress)}
    directed_alone = weigh(directed, step="weights of directed lists alone")
    return CandidateLists(symmetric, directed, validation, alone, directed_alone)


def fit_lists(
    directory: Path,
    ranker: SlotRanker,
    candidates: CandidateLists | None,
    config: EncoderConfig,
    *,
    progress: Progress = lambda _step, _done, _all: None,
) -> dict[str, Any]:
    """Weigh lists beside the slots and write them; earlier lists in the directory are replaced.

    Args:
        directory: ``RUN/encoder``.
        ranker: scores the slots as they will be stored.
        candidates: the lists; None for none.
        config: sizes, and whether seen items are left out.
        progress: called often.

    Returns:
        What ``fit.json`` says of the lists: for those that were made the entries, the chosen weights and recency with
        their NDCG@10 on validation, and the same for the lists without the slots; {} if none was made.
    """
    shutil.rmtree(directory / LISTS_DIRECTORY, ignore_errors=True)
    if candidates is None:
        return {}
    validation = candidates.validation
    choose = partial(_choose, ranker, validation=validation, findable=ranker.findable, config=config, progress=progress)
    lists, alone, backward = candidates.symmetric, candidates.symmetric_alone, 1.0
    chosen = choose(lists, step="weights of the lists")
    if CO in lists:
        other = choose(candidates.directed, step="weights with directed co-occurrence")
        if other.ndcg > chosen.ndcg:
            lists, alone, backward = candidates.directed, candidates.directed_alone, _DIRECTED
            chosen = other
    made = tuple(lists.values())
    ItemLists(len(ranker.findable), made, chosen.weights).save(directory / LISTS_DIRECTORY)
    return {
        "neighbours": config.neighbours(len(ranker.findable)),
        "entries": {item_list.name: len(item_list.rows) for item_list in made},
        "co_backward": backward,
        "co_shrinkage": _SHRINKAGE,
        "validation_users": len(validation),
        "chosen": _described(chosen) | {"ndcg@10_without_lists": chosen.ndcg_without},
        "alone": _described(alone),
    }


def _build(
    layout: SlotLayout,
    texts: Sequence[str | None],
    features: Mapping[str, NDArray[np.floating]],
    parts: LeaveOneOut,
    config: EncoderConfig,
    progress: Progress,
) -> dict[str, ItemList]:
    """The lists whose slot the layout has and that have an entry, in their order."""
    items, neighbours = len(texts), config.neighbours(len(texts))
    wanted = [name for name in LIST_SLOTS if LIST_SLOTS[name] in layout.names]
    lists = {}
    for name in wanted:
        if name == CO:
            lists[name] = _co_occurrence(parts, items, config, 1.0, progress)
        elif name == WORDS:
            lists[name] = words_list(texts, neighbours, progress=_counted(progress, "list words", items))
        else:
            done = _counted(progress, "list look", items)
            lists[name] = look_list(features[IMAGE], neighbours, progress=done)
    return {name: made for name, made in lists.items() if len(made.rows)}


def _co_occurrence(
    parts: LeaveOneOut, items: int, config: EncoderConfig, backward: float, progress: Progress
) -> ItemList:
    done = _counted(progress, "list co", items)
    return co_occurrence_list(
        parts.train, items, config.neighbours(items), backward=backward, shrinkage=_SHRINKAGE, progress=done
    )


def _choose(
    ranker: SlotRanker | None,
    lists: Mapping[str, ItemList],
    *,
    validation: Targets,
    findable: NDArray[np.bool_],
    config: EncoderConfig,
    step: str,
    progress: Progress,
) -> ChosenWeights:
    pool = ValidationPool(ranker, validation, findable, lists, config.list_history, exclude_seen=config.exclude_seen)
    return choose_weights(pool, config.list_history, progress=_counted(progress, step, len(RECENCIES)))


def _counted(progress: Progress, step: str, every: int) -> Callable[[int], None]:
    """A callback that takes only what is done of one step."""
    return lambda done: progress(step, done, every)


def _described(chosen: ChosenWeights) -> dict[str, Any]:
    return {
        "weights": dict(chosen.weights.weights),
        "recency": [float(weight) for weight in chosen.weights.recency],
        "ndcg@10": chosen.ndcg,
        "settings_tried": chosen.tried,
    }


def recorded_weights(record: Mapping[str, Any]) -> ListWeights:
    """Weights as :func:`fit_lists` described them.

    Args:
        record: ``chosen`` or ``alone`` of what ``fit.json`` says of the lists.
    """
    return ListWeights(np.array(record["recency"], dtype=np.float32), dict(record["weights"]))


def recounted_lists(
    lists: ItemLists,
    record: Mapping[str, Any],
    histories: Sequences,
    config: EncoderConfig,
    *,
    progress: Progress = lambda _step, _done, _all: None,
) -> ItemLists:
    """Count co-occurrence on other histories, as :func:`fit_lists` counts it; words, looks and all weights stay.

    Args:
        lists: as :func:`fit_lists` wrote them.
        record: what it returned, with the direction that was chosen.
        histories: to count on.
        config: as for :func:`fit_lists`.
        progress: called often.
    """
    nobody = Targets([], np.zeros(0, dtype=np.int64), [])
    parts, backward = LeaveOneOut(histories, nobody, nobody), float(record["co_backward"])
    made = tuple(
        _co_occurrence(parts, lists.items, config, backward, progress) if item_list.name == CO else item_list
        for item_list in lists.lists
    )
    return ItemLists(lists.items, made, lists.weights)
