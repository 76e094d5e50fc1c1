"""Finds items in the FAISS index of the bundle itself."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.lists.list_query import ListQuery
from index.search.row_mask import RowMask
from index.search.scoring import FoundVectors, ScoredRows


class FaissRetriever:
    """Searches the index that a bundle holds.

    Attributes:
        waits: False.
    """

    waits = False

    def search(
        self,
        bundle: Bundle,
        queries: NDArray[np.floating],
        k: int,
        *,
        allowed: RowMask | None = None,
        histories: Sequence[ListQuery | None] | None = None,
    ) -> ScoredRows:
        """The best k items per query; see `Retriever.search`."""
        return bundle.search(queries, k, allowed=allowed, histories=histories)

    def vectors(self, bundle: Bundle, rows: NDArray[np.int64]) -> FoundVectors | None:  # noqa: ARG002
        """None: the bundle has them; see `Retriever.vectors`."""
        return None

    def check(self, bundle_id: str) -> None:
        """Do nothing: a bundle that can be loaded can be searched."""

    def warm_up(self, bundle: Bundle) -> None:
        """Run encoder and search once; see `Retriever.warm_up`."""
        bundle.warm_up()

    def close(self) -> None:
        """Do nothing: there is no connection."""


FAISS = FaissRetriever()
"""It has no state, so there is one."""
