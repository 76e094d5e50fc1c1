"""Imputes the behaviour vectors of items that have too few events for one of their own."""

# The map g goes from the vectors of text and picture to behaviour vectors: kernel ridge regression on the principal
# components, in its Nyström form (Williams and Seeger, 2001), so that a few landmarks are stored and not every item. It
# is fitted on the trained vectors of warm items, which count the more the more events they have. The imputed vector is
# ρ · normalise(g(content)), 0 < ρ ≤ 1. A ρ that rises with the events of an item was measured and gains nothing
# (docs/experiments/new-items.md, "Lengths that rise with the events").
#
# ρ is calibrated on validation, so that imputed items get the share of the first ten positions that they deserve, their
# share of the events. New items are imitated by hash folds of warm items: without their behaviour vectors, predicted by
# a map that was fitted without them. Items that have events, but fewer than ``min_events``, are measured as they are.

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from index.items.slots import BEHAVIOUR, TEXT, SlotLayout
from training.embedding.pca import ModalityBasis, fit_basis
from training.errors import EmbeddingsError

Vectors = Mapping[str, NDArray[np.floating]]
"""Modality → (n, D); a row of zeros is absent."""

COMPONENTS = 256
LANDMARKS = 1_500
LEAST_WARM = 20
"""Warm items below which there is no map."""
_OTHER_SCALE = 0.3
"""Weight of the components of other modalities beside those of texts."""
_WIDTH = 1.5
_RIDGE = 1.0
_HALF_WEIGHT = 10
"""Events at which a warm item has half of the largest weight."""
_BLOCK_ROWS = 8_192
_META = "imputation"


@dataclass(frozen=True)
class BehaviourImputation:
    """The map g with the lengths of the imputed vectors.

    Attributes:
        bases: modality → principal components, scaled by the weight of the modality.
        landmarks: (m, R) float32 components of some warm items.
        coefficients: (m, d) float64, of the kernel at each landmark.
        offset: (d,) float64, mean behaviour vector.
        min_events: events from which an item has a behaviour vector of its own after a fit.
        new_length: ρ of an item without events, in (0, 1].
        few_length: ρ of an item with events; calibrated on items with fewer than ``min_events``.
    """

    bases: Mapping[str, ModalityBasis]
    landmarks: NDArray[np.float32]
    coefficients: NDArray[np.float64]
    offset: NDArray[np.float64]
    min_events: int
    new_length: float = 1.0
    few_length: float = 1.0

    def directions(self, vectors: Vectors) -> NDArray[np.float32]:
        """Predicted directions of behaviour vectors.

        Args:
            vectors: of the items.

        Returns:
            (n, d) float32, rows of length 1, or zero for an item without any modality.

        Raises:
            EmbeddingsError: a modality is missing or its vectors have another length.
        """
        wanted = {name: len(basis.mean) for name, basis in self.bases.items()}
        given = {name: block.shape[1] for name, block in vectors.items()}
        if any(given.get(name) != dim for name, dim in wanted.items()):
            raise EmbeddingsError(
                f"the imputation takes vectors {wanted}, the embeddings have {given}; embed with the model it was "
                "fitted on"
            )
        items = len(next(iter(vectors.values())))
        made = np.zeros((items, len(self.offset)), dtype=np.float32)
        for start in range(0, items, _BLOCK_ROWS):
            part = {name: np.asarray(vectors[name][start : start + _BLOCK_ROWS], dtype=np.float32) for name in wanted}
            features = _features(part, self.bases)
            predicted = _kernel(features, self.landmarks) @ self.coefficients + self.offset
            lengths = np.linalg.norm(predicted, axis=1)
            present = np.any([block.any(axis=1) for block in part.values()], axis=0) & (lengths > 0)
            made[start : start + len(features)][present] = predicted[present] / lengths[present, None]
        return made

    def lengths(self, counts: NDArray[np.int64]) -> NDArray[np.float32]:
        """ρ of items whose vector is imputed.

        An item that came after the fit has no vector of its own, however many events it has. With events it gets the
        length of the items with few events; with ``min_events`` of 1 there was none to calibrate that length on, and it
        keeps the length of a new item.

        Args:
            counts: (n,) int64 events.

        Returns:
            (n,) float32, above 0 and at most 1.
        """
        length = self.few_length if self.min_events > 1 else self.new_length
        return np.where(counts > 0, length, self.new_length).astype(np.float32)

    def fill(
        self, slots: dict[str, NDArray[np.floating]], vectors: Vectors, counts: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[np.floating]], NDArray[np.float32], NDArray[np.bool_]]:
        """Put imputed behaviour vectors where there are none.

        Args:
            slots: slot name → (n, d) slot vectors, ``behaviour`` among them.
            vectors: modality vectors of the same items.
            counts: (n,) int64 training events.

        Returns:
            The slots; (n,) float32 lengths of the behaviour vectors; (n,) bool, the imputed items.
        """
        behaviour = np.array(slots[BEHAVIOUR], dtype=np.float32)
        empty = np.flatnonzero(~behaviour.any(axis=1))
        lengths, imputed = np.ones(len(behaviour), dtype=np.float32), np.zeros(len(behaviour), dtype=np.bool_)
        if len(empty):
            shown = np.any([slots[name][empty].any(axis=1) for name in slots if name != BEHAVIOUR], axis=0)
            empty = empty[shown]
        if len(empty):
            behaviour[empty] = self.directions({name: vectors[name][empty] for name in self.bases})
            imputed[empty] = behaviour[empty].any(axis=1)
            lengths[imputed] = self.lengths(counts[imputed])
        return {**slots, BEHAVIOUR: behaviour}, lengths, imputed

    def save(self, path: Path) -> None:
        """Write to a temporary file and rename it."""
        tensors = {"landmarks": self.landmarks, "coefficients": self.coefficients, "offset": self.offset}
        for name, basis in self.bases.items():
            tensors |= {f"mean.{name}": basis.mean, f"directions.{name}": basis.directions}
        described = {
            "modalities": list(self.bases),
            "min_events": self.min_events,
            "new_length": self.new_length,
            "few_length": self.few_length,
        }
        partial = path.with_name(f"{path.name}.part")
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        save_file(contiguous, partial, metadata={_META: json.dumps(described)})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "BehaviourImputation":
        """Read the file of :meth:`save`.

        Raises:
            EmbeddingsError: the file is missing, unreadable, or not an imputation.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                described = json.loads(file.metadata()[_META])
                bases = {
                    name: ModalityBasis(file.get_tensor(f"mean.{name}"), file.get_tensor(f"directions.{name}"))
                    for name in described["modalities"]
                }
                return cls(
                    bases,
                    file.get_tensor("landmarks"),
                    file.get_tensor("coefficients"),
                    file.get_tensor("offset"),
                    int(described["min_events"]),
                    float(described["new_length"]),
                    float(described["few_length"]),
                )
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise EmbeddingsError(f"{path}: no readable imputation ({error}); fit the encoder again") from error


class ImputationFit:
    """Fits maps from modality vectors to the behaviour vectors of a model.

    Args:
        layout: slots of the stored vectors.
        vectors: modality vectors of the catalogue; those of a slot of the layout are used.
        behaviour: (n, d) behaviour vectors, zero for items without one.
        counts: (n,) int64 training events.
        min_events: events from which an item has a behaviour vector.
    """

    def __init__(
        self,
        layout: SlotLayout,
        vectors: Vectors,
        behaviour: NDArray[np.floating],
        counts: NDArray[np.int64],
        min_events: int,
    ) -> None:
        self._min_events = min_events
        self._weights = counts / (counts + _HALF_WEIGHT)
        lengths = np.linalg.norm(behaviour, axis=1, keepdims=True)
        self.warm: NDArray[np.bool_] = lengths[:, 0] > 0
        self.vectors = {name: vectors[name] for name in layout.names if name != BEHAVIOUR and name in vectors}
        self._units = np.divide(behaviour, lengths, out=np.zeros(behaviour.shape), where=lengths > 0)
        self._bases = {}
        for name, block in self.vectors.items():
            basis = fit_basis(np.asarray(block, dtype=np.float32), COMPONENTS, whiten=0.0)
            scale = 1.0 if name == TEXT or TEXT not in self.vectors else _OTHER_SCALE
            self._bases[name] = ModalityBasis(basis.mean, basis.directions * scale)

    @property
    def possible(self) -> bool:
        """Whether there are contents and warm items enough to fit a map."""
        return bool(self.vectors) and int(self.warm.sum()) >= LEAST_WARM

    def fit(self, without: NDArray[np.bool_] | None = None) -> BehaviourImputation:
        """Fit a map on the warm items.

        Args:
            without: (n,) bool, items to leave out.
        """
        chosen = self.warm if without is None else self.warm & ~without
        rows = np.flatnonzero(chosen)
        features = _features({name: np.asarray(block[rows]) for name, block in self.vectors.items()}, self._bases)
        weights, units = self._weights[rows], self._units[rows]
        picked = np.random.default_rng(0).permutation(len(rows))[:LANDMARKS]
        landmarks = features[np.sort(picked)]
        offset = (weights[:, None] * units).sum(axis=0) / weights.sum()
        count = len(landmarks)
        product, target = np.zeros((count, count)), np.zeros((count, units.shape[1]))
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            kernel = _kernel(features[part], landmarks)
            weighted = kernel * weights[part, None]
            product += weighted.T @ kernel
            target += weighted.T @ (units[part] - offset)
        product += _RIDGE * _kernel(landmarks, landmarks)
        product[np.diag_indices(count)] += 1e-6 * len(rows)  # equal items make it singular
        coefficients = np.asarray(np.linalg.solve(product, target), dtype=np.float64)
        return BehaviourImputation(self._bases, landmarks, coefficients, offset, self._min_events)


def _features(vectors: Vectors, bases: Mapping[str, ModalityBasis]) -> NDArray[np.float32]:
    """(n, R) float32 components of all modalities side by side; an absent modality is as the mean of the catalogue."""
    return np.concatenate([basis.apply(np.asarray(vectors[name])) for name, basis in bases.items()], axis=1)


def _kernel(features: NDArray[np.float32], landmarks: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, m) float64 Gaussian kernel."""
    squares = (features**2).sum(axis=1)[:, None] + (landmarks**2).sum(axis=1)[None, :] - 2 * features @ landmarks.T
    return np.asarray(np.exp(-_WIDTH * np.maximum(squares, 0).astype(np.float64)), dtype=np.float64)
