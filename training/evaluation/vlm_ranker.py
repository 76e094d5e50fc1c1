"""Ranks by a vision-language model's own vectors: history prompt against item prompts."""

# Published (arXiv 2603.17450) as "direct ranking". Each distinct history is encoded once, whichever table needs it.

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.ranking.fused_scores import Vectors, fused_scores

if TYPE_CHECKING:
    from training.config.types import Fusion

_APART = -2.0
"""Below every cosine."""


def history_key(history: NDArray[np.int64], max_history: int) -> str:
    """The part of a history that a model reads, as text: its newest item rows.

    Args:
        history: item rows, oldest first.
        max_history: newest items that are read.
    """
    return " ".join(map(str, history[-max_history:].tolist()))


def distinct_histories(histories: Iterable[NDArray[np.int64]], max_history: int) -> list[NDArray[np.int64]]:
    """The distinct histories as a model reads them, shortest first.

    Args:
        histories: item rows, oldest first.
        max_history: newest items that are read.
    """
    distinct = {history_key(history, max_history): history[-max_history:] for history in histories}
    return sorted(distinct.values(), key=lambda history: (len(history), history.tolist()))


class VlmRanker:
    """A model's vectors of items and histories.

    Args:
        items: modality → (n, D) float32, rows of length 1 or zero.
        histories: modality → vectors of the known histories.
        known: the histories, see :func:`distinct_histories`.
        max_history: newest items of a history that the model reads.
        fusion: how the modalities of ``items`` are combined into one score.

    Attributes:
        findable: (n,) bool, items with at least one modality.
    """

    def __init__(
        self,
        items: Vectors,
        histories: Vectors,
        known: Sequence[NDArray[np.int64]],
        max_history: int,
        fusion: "Fusion",
    ) -> None:
        self._items, self._histories = items, histories
        self._rows = {history_key(history, max_history): number for number, history in enumerate(known)}
        self._max_history, self._fusion = max_history, fusion
        self.findable: NDArray[np.bool_] = np.any([block.any(axis=1) for block in items.values()], axis=0)

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32 scores of known histories; an item without a shared modality comes last.

        Equal scores stay equal: they are rounded to five decimals, see
            :func:`training.ranking.fused_scores.fused_scores`.
        """
        rows = [self._rows[history_key(history, self._max_history)] for history in histories]
        queries = {name: self._histories[name][rows] for name in self._items}
        scores, comparable = fused_scores(queries, self._items, self._fusion)
        return np.where(comparable, scores, np.float32(_APART))
