"""Defines what finds the best items of a bundle, so that another store than FAISS is one more class."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.lists.list_query import ListQuery
from index.search.row_mask import RowMask
from index.search.scoring import FoundVectors, ScoredRows


class Retriever(Protocol):
    """Finds items by slots and lists together; any number of threads may use it.

    Attributes:
        waits: whether a search waits for another process, so that it must not run in an event loop, and a bundle's own
            index is not read.
    """

    waits: bool

    def search(
        self,
        bundle: Bundle,
        queries: NDArray[np.floating],
        k: int,
        *,
        allowed: RowMask | None = None,
        histories: Sequence[ListQuery | None] | None = None,
    ) -> ScoredRows:
        """The best k items per query.

        Args:
            bundle: whose items are searched.
            queries: (B, Σd), slot weights already multiplied in.
            k: at least 1; may exceed the catalogue.
            allowed: mask shared by all queries, from :meth:`index.bundle.bundle.Bundle.allowed`; None: all rows.
            histories: for each query the history whose item-to-item lists add to the scores, or None.

        Returns:
            (B, k), of which min(k, allowed and indexed rows) are filled; exact scores from the stored vectors and the
            lists in float32, ties by lower row; with the vectors of the rows where they came with them.

        Raises:
            SearchError: a shape, dtype or value breaks a rule.
            RetrieverUnavailable: the other store does not answer, or answers nonsense.
        """
        ...

    def vectors(self, bundle: Bundle, rows: NDArray[np.int64]) -> FoundVectors | None:
        """Stored vectors of rows, where the store that is searched gives them; None: read those of the bundle.

        Args:
            bundle: whose rows they are.
            rows: (r,) int64, 0 ≤ row < n, in any order, may repeat.

        Returns:
            The vectors of these rows, but for those that the bundle has not indexed.

        Raises:
            RetrieverUnavailable: the other store does not answer, or answers nonsense.
        """
        ...

    def check(self, bundle_id: str) -> None:
        """Check that the items of a bundle can be searched, before it is loaded.

        Raises:
            BundleRefused: they cannot be searched, or not yet.
            RetrieverUnavailable: the other store does not answer, so this is unknown.
        """
        ...

    def warm_up(self, bundle: Bundle) -> None:
        """Run encoder and search once, so that the first request is fast.

        Raises:
            BundleRefused: the other store holds other items than the bundle.
            RetrieverUnavailable: the other store does not answer.
            EncoderError, SearchError: the encoder or the search fails.
        """
        ...

    def close(self) -> None:
        """Close connections; searches in progress fail."""
        ...
