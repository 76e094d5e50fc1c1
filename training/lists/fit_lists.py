"""Make the item-to-item lists of a run, choose their weights on validation, and write ``RUN/encoder/lists``."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.items.slots import IMAGE, SlotLayout
from index.lists.item_lists import CO, LIST_SLOTS, WORDS, ItemList, ItemLists, ListWeights
from training.config.encoder_config import EncoderConfig
from training.data.sequences import LeaveOneOut, Targets, evenly_spaced
from training.lists.build import co_occurrence_list, look_list, words_list
from training.lists.weights import RECENCIES, ChosenWeights, ValidationPool, choose_weights
from training.ranking.slot_ranker import SlotRanker

LISTS_DIRECTORY = "lists"
_DIRECTED = 0.3
"""Weight of what came before in the directed co-occurrence, which is tried beside the symmetric one."""

Progress = Callable[[str, int, int], None]
"""Called with the step, what is done and how much there is."""


def fit_lists(
    directory: Path,
    ranker: SlotRanker,
    layout: SlotLayout,
    texts: Sequence[str | None],
    features: Mapping[str, NDArray[np.floating]],
    parts: LeaveOneOut,
    config: EncoderConfig,
    *,
    progress: Progress = lambda _step, _done, _all: None,
) -> dict[str, Any]:
    """Make and weigh the lists whose slot the layout has; earlier lists in the directory are replaced.

    Co-occurrence is counted symmetrically and directed, and validation chooses between them.

    Without validation targets nothing can be weighed, and no list is made; nor is one without any entry.

    Args:
        directory: ``RUN/encoder``.
        ranker: scores the slots as they will be stored.
        layout: slots of the run.
        texts: text per item; None for none.
        features: modality vectors by slot name; those of ``image`` are compared for ``look``.
        parts: training histories to count and validation targets to weigh with.
        config: sizes, and whether seen items are left out.
        progress: called often.

    Returns:
        What ``fit.json`` says of the lists: for those that were made the entries, the chosen weights and recency with
        their NDCG@10 on validation, and the same for the lists without the slots; {} if none was made.
    """
    shutil.rmtree(directory / LISTS_DIRECTORY, ignore_errors=True)
    validation = evenly_spaced(parts.validation, config.validation_users)
    if not config.list_neighbours or not len(validation):
        return {}
    lists = _build(layout, texts, features, parts, config, progress)
    if not lists:
        return {}
    choose = partial(_choose, validation=validation, findable=ranker.findable, config=config, progress=progress)
    chosen = choose(ranker, lists, step="weights of the lists")
    backward = 1.0
    if CO in lists:
        directed = lists | {CO: _co_occurrence(parts, len(texts), config, _DIRECTED, progress)}
        other = choose(ranker, directed, step="weights with directed co-occurrence")
        if other.ndcg > chosen.ndcg:
            lists, chosen, backward = directed, other, _DIRECTED
    alone = choose(None, lists, step="weights of the lists alone")
    made = tuple(lists.values())
    ItemLists(len(texts), made, chosen.weights).save(directory / LISTS_DIRECTORY)
    return {
        "neighbours": config.list_neighbours,
        "entries": {item_list.name: len(item_list.rows) for item_list in made},
        "co_backward": backward,
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
    items, wanted = len(texts), [name for name in LIST_SLOTS if LIST_SLOTS[name] in layout.names]
    lists = {}
    for name in wanted:
        if name == CO:
            lists[name] = _co_occurrence(parts, items, config, 1.0, progress)
        elif name == WORDS:
            lists[name] = words_list(texts, config.list_neighbours, progress=_counted(progress, "list words", items))
        else:
            done = _counted(progress, "list look", items)
            lists[name] = look_list(features[IMAGE], config.list_neighbours, progress=done)
    return {name: made for name, made in lists.items() if len(made.rows)}


def _co_occurrence(
    parts: LeaveOneOut, items: int, config: EncoderConfig, backward: float, progress: Progress
) -> ItemList:
    done = _counted(progress, "list co", items)
    return co_occurrence_list(parts.train, items, config.list_neighbours, backward=backward, progress=done)


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
