"""Joins the text vectors of a frozen encoder with TF-IDF, so that the text head knows names.

A sentence encoder maps names that it never learned, of actors or makers, to nearly the same point; TF-IDF of words and
word pairs keeps them apart. Terms are hashed, so no vocabulary is stored; a truncated singular value decomposition
(latent semantic analysis, Deerwester et al., 1990) shortens them. Both blocks are centred and divided by their spread.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

from training.errors import BackboneError

TEXT_BLOCKS_FILE = "text_blocks.safetensors"
_BUCKETS = 2**17
_WORD = r"(?u)\w+"
_BLOCK_ROWS = 16_384
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True)
class TextBlocks:
    """Both blocks of a text vector, fitted on a catalogue.

    Attributes:
        buckets: (u,) int64 ascending, hashed terms of the catalogue; other terms are ignored.
        weights: (u,) float32, inverse document frequency of each.
        directions: (u, K) float16, of the decomposition.
        centre: (D + K,) float32, mean of each block.
        scales: (2,) float32, factor of each block after centring.
    """

    buckets: NDArray[np.int64]
    weights: NDArray[np.float32]
    directions: NDArray[np.float16]
    centre: NDArray[np.float32]
    scales: NDArray[np.float32]

    @classmethod
    def fit(
        cls, texts: Sequence[str | None], vectors: NDArray[np.float32], length: int, *, share: float
    ) -> "TextBlocks | None":
        """Fit on a catalogue.

        Args:
            texts: of the items; None for none.
            vectors: (n, D) float32 of the encoder for the same items, a row of zeros where an item has no text.
            length: K, longest block of terms; fewer if there are fewer terms or texts.
            share: spread of the block of terms, with a spread of 1 of the encoder's block.

        Returns:
            None where no text has a word.
        """
        counts = _term_counts(texts)
        buckets = np.unique(counts.indices).astype(np.int64)
        if len(buckets) == 0:
            return None
        occurrences = np.bincount(counts.indices, minlength=_BUCKETS)[buckets]
        weights = np.log((1 + len(texts)) / (1 + occurrences)).astype(np.float32) + np.float32(1)
        weighted = _weighted(counts, buckets, weights)
        _, _, directions = randomized_svd(
            weighted, min(length, *weighted.shape), n_iter=4, random_state=0, flip_sign=True
        )
        kept = np.ascontiguousarray(directions.T, dtype=np.float16)
        parts = (vectors, _reduced(weighted, kept))
        centred = [_centre_and_spread(part) for part in parts]
        scales = np.array([1 / centred[0][1], share / centred[1][1]], dtype=np.float32)
        return cls(buckets, weights, kept, np.concatenate([centre for centre, _ in centred]), scales)

    @property
    def dim(self) -> int:
        """D + K."""
        return len(self.centre)

    def join(self, vectors: NDArray[np.float32], texts: Sequence[str | None]) -> NDArray[np.float32]:
        """Joined vectors of items.

        Args:
            vectors: (n, D) float32 of the encoder, a row of zeros where an item has no text.
            texts: of the same items.

        Returns:
            (n, D + K) float32. Rows of zeros stay zero; the block of terms is zero where no term is known.
        """
        split = self.dim - self.directions.shape[1]
        joined = np.zeros((len(vectors), self.dim), dtype=np.float32)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            parts = ((slice(None, split), np.asarray(vectors[rows])), (slice(split, None), self.terms(texts[rows])))
            present = parts[0][1].any(axis=1)
            for (columns, part), scale in zip(parts, self.scales, strict=True):
                filled = present & part.any(axis=1)
                joined[rows, columns][filled] = (part[filled] - self.centre[columns]) * scale
        return joined

    def terms(self, texts: Sequence[str | None]) -> NDArray[np.float32]:
        """The block of terms before it is centred and scaled.

        Args:
            texts: n texts; None for none.

        Returns:
            (n, K) float32, rows of length 1, or zero where no term is known.
        """
        return _reduced(_weighted(_term_counts(texts), self.buckets, self.weights), self.directions)

    def save(self, path: Path) -> None:
        """Write ``text_blocks.safetensors``."""
        save_file({name: np.ascontiguousarray(value) for name, value in vars(self).items()}, path)

    @classmethod
    def load(cls, path: Path) -> "TextBlocks | None":
        """Read ``text_blocks.safetensors``; None if there is no such file.

        Raises:
            BackboneError: it cannot be read.
        """
        if not path.is_file():
            return None
        try:
            return cls(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise BackboneError(f"{path}: cannot be read ({error}); train the model again") from error


def text_blocks_hash(path: Path) -> str:
    """SHA-256 of a file of text blocks in hexadecimal digits; empty if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _term_counts(texts: Sequence[str | None]) -> csr_matrix:
    """Sparse (n, 2¹⁷) counts of hashed words and word pairs."""
    vectoriser = HashingVectorizer(
        n_features=_BUCKETS, ngram_range=(1, 2), token_pattern=_WORD, alternate_sign=False, norm=None, dtype=np.float32
    )
    return vectoriser.transform([text or "" for text in texts])


def _weighted(counts: csr_matrix, buckets: NDArray[np.int64], weights: NDArray[np.float32]) -> csr_matrix:
    """Sparse (n, u) TF-IDF, sublinear in the count, rows of length 1 over the known terms."""
    known = counts[:, buckets]
    known.data = (1 + np.log(known.data)) * weights[known.indices]
    return normalize(known, copy=False)


def _reduced(weighted: csr_matrix, directions: NDArray[np.float16]) -> NDArray[np.float32]:
    """(n, K) float32, rows of length 1, or zero without a known term."""
    reduced = np.asarray(weighted @ directions.astype(np.float32), dtype=np.float32)
    lengths = np.linalg.norm(reduced, axis=1, keepdims=True)
    return np.asarray(reduced / np.where(lengths > _SMALLEST_SPREAD, lengths, np.inf), dtype=np.float32)


def _centre_and_spread(block: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Mean of the rows that are not zero, and the root of their mean squared distance from it, 1 if that is 0."""
    total, squares, count = np.zeros(block.shape[1]), 0.0, 0
    for start in range(0, len(block), _BLOCK_ROWS):
        part = np.asarray(block[start : start + _BLOCK_ROWS], dtype=np.float64)
        count += int(part.any(axis=1).sum())
        total += part.sum(axis=0)
        squares += float(np.square(part).sum())
    centre = total / max(count, 1)
    spread = float(np.sqrt(max(squares / max(count, 1) - float(centre @ centre), 0.0)))
    return centre.astype(np.float32), spread if spread > _SMALLEST_SPREAD else 1.0
