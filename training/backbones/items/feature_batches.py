"""Turns pairs of history and next item into batches for the heads, from stored vectors of the items."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.backbones.batches import PairBatch, excluded_rows
from training.backbones.items.heads import FeatureBatch, FeatureRows
from training.config.types import MODALITIES
from training.data.training_pairs import Window

Vectors = Mapping[str, NDArray[np.float32]]


class FeatureCollator:
    """Turns item rows into batches; the counterpart of :class:`training.backbones.batches.Collator`.

    Args:
        features: modality → (n, F) float32 for the whole catalogue, a row of zeros where an item lacks it.
        max_history: items of a history that are read, the newest ones.
        modalities: modalities to encode; the others count as absent everywhere.
    """

    def __init__(self, features: Vectors, *, max_history: int, modalities: Sequence[str] = MODALITIES) -> None:
        self._features, self._max_history = features, max_history
        self.modalities = tuple(modalities)

    def pairs(self, windows: Sequence[Window]) -> PairBatch:
        """A batch of pairs.

        Args:
            windows: consecutive items of users, each with the items that must not be its negatives.
        """
        targets = np.concatenate([window.targets for window in windows])
        distinct, back = np.unique(targets, return_inverse=True)
        collected = self._collections()
        items = {m: np.array([rows.item(row) for row in distinct.tolist()])[back] for m, rows in collected.items()}
        sequences = {
            m: np.array([rows.history(w.rows[:n].tolist()) for w in windows for n in w.lengths.tolist()])
            for m, rows in collected.items()
        }
        batch, starts = _joined(collected)
        return PairBatch(
            batch,
            {m: _placed(numbers, starts[m]) for m, numbers in sequences.items()},
            {m: _placed(numbers, starts[m]) for m, numbers in items.items()},
            torch.from_numpy(targets),
            torch.from_numpy(excluded_rows(windows)),
        )

    def items(self, rows: NDArray[np.int64]) -> tuple[FeatureBatch, dict[str, Tensor]]:
        """Items of these rows, and per modality the (n,) rows of the heads' output, −1 where absent."""
        collected = self._collections()
        numbers = {m: np.array([found.item(row) for row in rows.tolist()]) for m, found in collected.items()}
        batch, starts = _joined(collected)
        return batch, {m: _placed(found, starts[m]) for m, found in numbers.items()}

    def sequences(self, histories: Sequence[NDArray[np.int64]]) -> tuple[FeatureBatch, dict[str, Tensor]]:
        """These histories; returns the same as :meth:`items`."""
        collected = self._collections()
        # The newest items are chosen before those without the modality are left out, as in prompts.
        kept = [history[-self._max_history :].tolist() for history in histories]
        numbers = {m: np.array([found.history(rows) for rows in kept]) for m, found in collected.items()}
        batch, starts = _joined(collected)
        return batch, {m: _placed(found, starts[m]) for m, found in numbers.items()}

    def _collections(self) -> dict[str, FeatureRows]:
        return {name: FeatureRows(name, self._features[name], self._max_history) for name in self.modalities}


def _joined(collected: Mapping[str, FeatureRows]) -> tuple[FeatureBatch, dict[str, int]]:
    """The batch, and the first output of each modality."""
    starts, done = {}, 0
    for name, rows in collected.items():
        starts[name] = done
        done += len(rows)
    return FeatureBatch(tuple(rows.group() for rows in collected.values())), starts


def _placed(numbers: NDArray[np.int64], start: int) -> Tensor:
    """Numbers within a modality as rows of the whole output, −1 where absent."""
    return torch.from_numpy(np.where(numbers < 0, -1, numbers + start).astype(np.int64))
