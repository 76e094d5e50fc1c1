"""Chooses the settings of item kNN and EASE on validation, for the rows of an evaluation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.sequences import LeaveOneOut, evenly_spaced
from training.ranking import metrics
from training.ranking.baselines import Ranker
from training.ranking.interaction_models import EASE_BYTES_PER_PAIR, Ease, ItemKnn
from training.ranking.ranking import rank_targets
from training.ranking.table import EASE, ITEM_KNN

EASE_BY_DEFAULT = 8_000
"""Most items with events for which EASE is a row without being asked for: seconds of one core for each setting."""
EASE_AT_ALL = 20_000
"""Most items with events for EASE: its inverse takes minutes for each setting, and 6 GiB."""
KNN_ITEMS = 500_000
"""Most items with events for item kNN: with 500 neighbours of each it takes 4 GB for each of two settings."""
KNN_PAIRS = 2_000_000_000
"""Most pairs of items of the same user for item kNN, which counts all of them again for each of nine settings."""
_REGULARISATIONS = (10.0, 30.0, 100.0, 300.0, 1000.0)
_NEIGHBOURS = (20, 100, 500)
_SHRINKS = (0.0, 10.0, 30.0)
_VALIDATION_USERS = 5_000
_CUT = 10
_GIB = 2**30

Setting = dict[str, Any]
"""Name → value of the settings of one ranker."""


@dataclass
class InteractionBaselines:
    """Baselines with the settings that validation chose.

    Attributes:
        systems: name of the row → ranker of the whole catalogue.
        settings: name of the row → its settings, and NDCG@10 on validation with them.
        notes: one line for a baseline that is left out.
    """

    systems: dict[str, Ranker] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def interaction_baselines(
    parts: LeaveOneOut,
    items: int,
    *,
    ease: bool | None = None,
    exclude_seen: bool = True,
    progress: Callable[[str, int, int], None] = lambda _step, _done, _all: None,
) -> InteractionBaselines:
    """Item kNN and EASE where the data are small enough, each with its best setting on validation.

    Args:
        parts: of the interactions; the baselines learn from the training part.
        items: size of the catalogue.
        ease: True for EASE up to :data:`EASE_AT_ALL` items with events, False for none, None up to
            :data:`EASE_BY_DEFAULT`.
        exclude_seen: exclude the items of the history, as the service does.
        progress: called with a row's name, and its measured and total number of settings.
    """
    found = InteractionBaselines()

    def choose(name: str, model: Callable[..., Ranker], settings: Iterable[Setting]) -> None:
        wanted, best = [*settings], -1.0
        for done, setting in enumerate(wanted):
            progress(name, done, len(wanted))
            ranker = model(parts.train, items, **setting)
            value = _ndcg(ranker, parts, items, exclude_seen=exclude_seen)
            if value > best:
                best, found.systems[name] = value, ranker
                found.settings[name] = {**setting, f"validation ndcg@{_CUT}": value}
        progress(name, len(wanted), len(wanted))

    known = len(np.unique(parts.train.rows))
    if note := _without_knn(known, parts.train.lengths):
        found.notes.append(note)
    else:
        grid = [{"neighbours": near, "shrink": shrink} for near in _NEIGHBOURS for shrink in _SHRINKS]
        choose(ITEM_KNN, ItemKnn, grid)
    if ease is not False and (note := _left_out(known, asked=bool(ease))):
        found.notes.append(note)
    elif ease is not False:
        choose(EASE, Ease, ({"regularisation": value} for value in _REGULARISATIONS))
    return found


def _ndcg(ranker: Ranker, parts: LeaveOneOut, items: int, *, exclude_seen: bool) -> float:
    """NDCG@10 of at most 5,000 validation targets."""
    if not len(parts.validation):
        return 0.0
    some = evenly_spaced(parts.validation, _VALIDATION_USERS)
    ranked = rank_targets(ranker, some, np.ones(items, dtype=np.bool_), exclude_seen=exclude_seen)
    return float(metrics.gains(ranked.full, _CUT).mean())


def _without_knn(known: int, lengths: NDArray[np.int64]) -> str | None:
    """Why item kNN is left out; None if it is not."""
    if known > KNN_ITEMS:
        return f"no {ITEM_KNN} row: {known:,} items have events, at most {KNN_ITEMS:,} do"
    pairs = int((lengths**2).sum())
    if pairs > KNN_PAIRS:
        return f"no {ITEM_KNN} row: histories have {pairs:,} pairs of items of the same user, at most {KNN_PAIRS:,} do"
    return None


def _left_out(known: int, *, asked: bool) -> str | None:
    if known > EASE_AT_ALL:
        memory = known * known * EASE_BYTES_PER_PAIR / _GIB
        return (
            f"no {EASE} row: {known:,} items have events, at most {EASE_AT_ALL:,} do (it would take {memory:,.0f} GiB)"
        )
    if known > EASE_BY_DEFAULT and not asked:
        return f"no {EASE} row: {known:,} items have events, above {EASE_BY_DEFAULT:,} it needs --ease (minutes)"
    return None
