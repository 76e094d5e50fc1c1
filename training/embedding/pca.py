"""Computes principal components of modality vectors, the fixed first part of every slot's projection."""

# Vectors of language and vision models lie in a narrow cone. Subtracting their mean and scaling the principal
# directions makes the learned part small and quick to train (whitening of embeddings: Su et al., arXiv 2103.15316).
# The maps are affine, so they are folded into the learned map when training ends.

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK_ROWS = 16_384
_MOST_ROWS = 200_000
_SMALLEST_VARIANCE = 1e-6


@dataclass(frozen=True)
class ModalityBasis:
    """An affine map ``v → (v − mean) @ directions``.

    Attributes:
        mean: (D,) float64.
        directions: (D, R) float64, scaled so that the mapped catalogue has a mean squared row length of 1.
    """

    mean: NDArray[np.float64]
    directions: NDArray[np.float64]

    def apply(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map vectors.

        Args:
            vectors: (n, D); a row of zeros is absent.

        Returns:
            (n, R) float32; absent rows stay zero.
        """
        mapped = np.zeros((len(vectors), self.directions.shape[1]), dtype=np.float32)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            block = np.asarray(vectors[start : start + _BLOCK_ROWS])
            present = block.any(axis=1)
            mapped[start : start + len(block)][present] = (block[present] - self.mean) @ self.directions
        return mapped


def fit_basis(vectors: NDArray[np.float32], size: int, *, whiten: float) -> ModalityBasis:
    """Principal components of the rows that are present.

    Args:
        vectors: (n, D); rows of zeros are left out. Of a large catalogue evenly spaced rows are used.
        size: most components R.
        whiten: 0 keeps the spread of the components, 1 makes it equal; each is divided by its deviation to this power.

    Returns:
        A basis with R ≥ 1. If all rows are equal, their direction is the only one and no mean is subtracted, so that
        no row becomes zero.
    """
    dim = vectors.shape[1]
    step = max(1, -(-len(vectors) // _MOST_ROWS))
    count, total, product = 0, np.zeros(dim), np.zeros((dim, dim))
    for start in range(0, len(vectors), _BLOCK_ROWS * step):
        block = np.asarray(vectors[start : start + _BLOCK_ROWS * step : step], dtype=np.float64)
        block = block[block.any(axis=1)]
        count += len(block)
        total += block.sum(axis=0)
        product += block.T @ block
    mean = total / max(count, 1)
    variances, axes = np.linalg.eigh(product / max(count, 1) - np.outer(mean, mean))
    order = np.argsort(-variances)
    variances, axes = variances[order], axes[:, order]
    kept = max(1, min(size, int((variances > _SMALLEST_VARIANCE * max(variances[0], _SMALLEST_VARIANCE)).sum())))
    if variances[0] <= _SMALLEST_VARIANCE:
        length = float(np.linalg.norm(mean))
        direction = mean / length if length > 0 else np.eye(dim)[0]
        return ModalityBasis(np.zeros(dim), direction[:, None])
    scale = variances[:kept] ** (-whiten / 2)
    spread = np.sqrt(np.sum(variances[:kept] * scale**2))
    signs = np.sign(axes[np.abs(axes[:, :kept]).argmax(axis=0), np.arange(kept)])
    return ModalityBasis(mean, axes[:, :kept] * (signs * scale / spread))
