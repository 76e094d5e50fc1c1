"""Ranks by shared words of item texts (TF-IDF), the baseline of a text model."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from training.embedding.baseline_features import term_weights


class TfidfNeighbours:
    """Inner product with the mean TF-IDF vector of the history's newest items.

    Needs no training at all, so it ranks cold items like any others.

    Args:
        texts: text per item; None for none.
        max_history: newest items of a history that are averaged.

    Attributes:
        findable: (n,) bool, items whose text has a word in it.
    """

    def __init__(self, texts: Sequence[str | None], max_history: int) -> None:
        weights, rows = term_weights(texts)
        self._max_history = max_history
        self.findable: NDArray[np.bool_] = np.zeros(len(texts), dtype=np.bool_)
        self.findable[rows] = True
        # An empty row for an item without a text, so that rows of the matrix are rows of the catalogue.
        expand = csr_matrix((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(texts), len(rows)))
        self._weights = csr_matrix(expand @ weights, dtype=np.float32)

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32 in 0 … 1."""
        read = [history[-self._max_history :] for history in histories]
        shares = np.concatenate([np.full(len(rows), 1 / len(rows), dtype=np.float32) for rows in read])
        users = np.repeat(np.arange(len(read)), [len(rows) for rows in read])
        means = csr_matrix((shares, (users, np.concatenate(read))), shape=(len(read), self._weights.shape[0]))
        return np.asarray((means @ self._weights @ self._weights.T).toarray(), dtype=np.float32)
