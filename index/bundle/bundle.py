"""Loads a bundle, the only artefact that passes from offline to online, and searches it.

A bundle is a directory with ``manifest.json`` and the files it lists (:mod:`index.bundle.manifest`). A loaded
:class:`Bundle` is immutable; on the CPU any number of threads may use it at once.
"""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.bundle.files import (
    check_lists,
    check_vectors,
    map_lists,
    map_thumbnails,
    map_vectors,
    open_encoder,
    open_index,
    read_evaluation_queries,
    read_indexed,
    read_items,
    read_missing,
)
from index.bundle.integrity import Verify, hash_files, verify_files
from index.bundle.manifest import ENCODER_FILE, EVALUATION_QUERIES_FILE, FAISS_FILE, INDEXED_FILE, ITEMS_FILE, Manifest
from index.bundle.mapped_files import MappedFiles, read_ahead
from index.errors import BundleNotFound, SearchError
from index.filters.filter_cache import FilterCache
from index.filters.text_search import TextSearch
from index.items.eval_queries import EvaluationQueries
from index.items.field_values import FieldValues
from index.items.item_table import MISSING_FILE, VECTORS_FILE
from index.items.items_file import ItemsFile
from index.items.modality_status import ModalityStatus, imputed
from index.items.thumbnails import THUMBNAILS_FILE, Thumbnails
from index.lists.list_query import ListQuery
from index.lists.list_scores import ListScores
from index.search.brute_force import check_queries
from index.search.encoder import OnnxSequenceEncoder
from index.search.popularity import PopularityRanking
from index.search.row_mask import RowMask
from index.search.scoring import FoundVectors, ReadVectors, ScoredRows, gather, slot_scores
from index.search.searcher import Searcher

_MAPPED = (ITEMS_FILE, VECTORS_FILE, INDEXED_FILE, MISSING_FILE, FAISS_FILE, THUMBNAILS_FILE)


class Bundle:
    """A verified bundle; create it with :meth:`load`.

    Attributes:
        path: the bundle's directory.
        id: the bundle's name, unique by time and content.
        manifest: the bundle's manifest.
        layout: slots of items and queries.
        ids: item id ↔ row.
        metadata: n rows, one single-chunk column per field.
        popularity: (n,) int64 training events per item.
        total_events: sum of ``popularity``, at least 1.
        text_search: finds items by a text in id or metadata.
        thumbnails: the items' small pictures; None in a bundle without pictures.
        evaluation_queries: held-out histories with their targets.
        indexed: (n,) bool, the rows that a query can find; ``findable`` is the same, faster to read row by row.
        missing: (n, slots) uint8 codes of `index.items.modality_status.ModalityStatus`, in the order of the layout.
        max_history: number of newest items of a history that :meth:`encode` reads.
        list_scores: scores by item-to-item lists; None in a bundle without lists.
        slots_in_use: (slots,) bool, the slots that at least one item has.
        files: the mapped files; detects writes to them.
        searcher: finds rows by slots and lists.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        items: ItemsFile,
        vectors: NDArray[np.floating],
        indexed: NDArray[np.bool_],
        missing: NDArray[np.uint8],
        evaluation_queries: EvaluationQueries,
        encoder: OnnxSequenceEncoder,
        searcher: Searcher,
        files: MappedFiles,
        thumbnails: Thumbnails | None = None,
        list_scores: ListScores | None = None,
    ) -> None:
        self.path = path
        self.id = manifest.id
        self.manifest = manifest
        self.layout = manifest.layout
        self.ids = items.ids
        self.metadata = items.metadata
        self.popularity = items.popularity
        self.total_events = max(1, int(items.popularity.sum()))
        self.thumbnails = thumbnails
        self.evaluation_queries = evaluation_queries
        self.indexed = indexed
        self.findable = indexed.data
        self.missing = missing
        self.max_history = encoder.max_history
        self.slots_in_use: NDArray[np.bool_] = (missing == ModalityStatus.PRESENT).any(axis=0)
        self.list_scores = list_scores
        self.files = files
        self._vectors = vectors
        self._encoder = encoder
        self.searcher = searcher
        self._filters = FilterCache(items.metadata, indexed)
        self.text_search = TextSearch(items.ids.array, items.metadata)
        self._field_values = FieldValues(items.metadata)
        self._popularity_ranking = PopularityRanking(items.popularity)

    @classmethod
    def load(
        cls, path: Path, *, device: str = "cpu", threads: int = 1, verify: Verify = "stamp", ahead: bool = True
    ) -> "Bundle":
        """Verify and load a bundle; the items, vectors and index are memory-mapped and read ahead in the background.

        Args:
            path: the bundle's directory.
            device: ``cpu`` or ``cuda``, for the encoder and the index.
            threads: threads of one encoder run and of one search, at least 1.
            verify: ``stamp`` or ``full``, see `index.bundle.integrity`; ``full`` also checks vectors and lists.
            ahead: read items, vectors and index ahead; False where another store is searched: single rows are read.

        Raises:
            BundleNotFound: the directory does not exist.
            BundleInvalid: a file is missing, altered, of an unknown format, or does not fit the others.
            EncoderError, SearchError: the device cannot be used.
        """
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where the parent may not be read
            raise BundleNotFound(f"{path}: there is no bundle; list what is published with `vlm2rec index list`")
        if threads < 1:
            raise SearchError(f"threads must be at least 1, got {threads}")
        manifest = Manifest.read(path)
        verify_files(path, manifest, verify)
        if ahead and verify != "full":  # full verification reads every file anyway
            read_ahead(path / name for name in (ITEMS_FILE, FAISS_FILE, VECTORS_FILE))
        listed = () if manifest.lists is None else manifest.lists.files
        files = MappedFiles(path / name for name in (*_MAPPED, *listed) if name in manifest.files)
        items = read_items(path / ITEMS_FILE, manifest)
        vectors = map_vectors(path / VECTORS_FILE, manifest, ahead=ahead)
        indexed = read_indexed(path / INDEXED_FILE, manifest)
        missing = read_missing(path / MISSING_FILE, manifest, indexed)
        queries = read_evaluation_queries(path / EVALUATION_QUERIES_FILE, manifest)
        encoder = open_encoder(path / ENCODER_FILE, manifest, device, threads)
        lists = map_lists(path, manifest)
        searcher = open_index(path / FAISS_FILE, manifest, vectors, indexed, lists, device, threads)
        thumbnails = map_thumbnails(path / THUMBNAILS_FILE, manifest)
        bundle = cls(
            path, manifest, items, vectors, indexed, missing, queries, encoder, searcher, files, thumbnails, lists
        )
        items.release_pages()
        if verify == "full":
            bundle.check_content()
        return bundle

    def __len__(self) -> int:
        return len(self.ids)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored vectors of rows.

        Args:
            rows: int64 of any shape, 0 ≤ row < n.

        Returns:
            (*rows.shape, Σd) float32.

        Raises:
            SearchError: a row lies outside the catalogue.
        """
        self._check_rows(rows, lowest=0)
        return gather(self._vectors, rows)

    def imputed(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which items, (k,) int64 rows, have an imputed behaviour vector, (k,) bool; raises as :meth:`vectors`."""
        self._check_rows(rows, lowest=0)
        return imputed(self.missing[rows], self.layout, self._vectors[rows])

    def encode(self, histories: Sequence[NDArray[np.int64]], read: ReadVectors | None = None) -> NDArray[np.float32]:
        """Encode histories as queries.

        Args:
            histories: B arrays (l,) of int64 rows, oldest first, l ≥ 1; only the newest ``max_history`` rows are used.
            read: returns the vectors of these rows; None: the stored ones are read.

        Returns:
            (B, Σd) float32 queries, finite, not normalised, all slot weights 1.

        Raises:
            SearchError: a row lies outside the catalogue.
            EncoderError: an empty history, or a query that is not finite.
        """
        newest = [history[-self.max_history :] for history in histories]
        rows = np.concatenate(newest) if newest else np.zeros(0, dtype=np.int64)
        vectors = (read or self.vectors)(rows)  # of all histories at once: most of the cost is that of a call
        ends = itertools.accumulate(map(len, newest))
        return self._encoder.encode([vectors[end - len(own) : end] for own, end in zip(newest, ends, strict=True)])

    def verify_in_full(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Hash every file of this bundle, on a background thread of a service that already uses it.

        Args:
            stop: called before every megabyte; True stops the verification.

        Returns:
            True if every file is intact, False if the verification was stopped.

        Raises:
            BundleNotFound: the bundle was deleted after loading; the mapped files can still be served.
            BundleInvalid: a file was altered; the message names it.
        """
        return hash_files(self.path, self.manifest, stop)

    def check_content(self) -> None:
        """Check every stored vector and every entry of the lists.

        A vector must be finite, and zero exactly where :attr:`missing` records it; for lists see `ItemList.check`.

        Raises:
            BundleInvalid: a vector or an entry breaks a rule; the message names its row.
        """
        check_vectors(self.path / VECTORS_FILE, self.manifest, self._vectors, self.missing)
        if self.list_scores is not None:
            check_lists(self.path, self.list_scores.lists)

    def warm_up(self, search: Callable[..., object] | None = None) -> None:
        """Run the encoder once on every shape it uses, and one search, so that the first request is fast.

        Args:
            search: called as :meth:`search` in its place, where another store is searched.

        Raises:
            EncoderError, SearchError: the encoder or the search fails.
        """
        self._encoder.warm_up()
        first = self._popularity_ranking.best(1)
        (search or self.search)(self.encode([first]), 1, histories=[ListQuery(first)])

    def allowed(
        self, condition: Mapping[str, Any] | None = None, available: NDArray[np.bool_] | None = None
    ) -> RowMask:
        """The rows that a filter allows, for :meth:`search` and :meth:`popular`; cached, so repeating a filter is fast.

        Args:
            condition: see :mod:`index.filters.filters`; None allows every row.
            available: (n,) bool, the rows that may be returned under any filter, such as all but the hidden items. It
                must not be modified: the cache recognises it by identity, and a new array discards the combinations
                with the previous one.

        Returns:
            A read-only mask; ``mask`` is (n,) bool, ``without`` and ``&`` exclude further rows.

        Raises:
            FilterError: the condition breaks the grammar, names an unknown field, or compares unlike types.
            SearchError: ``available`` is of another dtype or length.
        """
        return self._filters.allowed(condition, available)

    def has_cached_filter(self, condition: Mapping[str, Any], available: NDArray[np.bool_] | None = None) -> bool:
        """Whether :meth:`allowed` has this filter cached, and so takes microseconds; raises FilterError as it does."""
        return self._filters.contains(condition, available)

    def search(
        self,
        queries: NDArray[np.floating],
        k: int,
        *,
        allowed: RowMask | NDArray[np.bool_] | None = None,
        histories: Sequence[ListQuery | None] | None = None,
    ) -> ScoredRows:
        """The best k items per query, by slots and lists together.

        Args:
            queries: (B, Σd), slot weights already multiplied in.
            k: at least 1; may exceed the catalogue.
            allowed: mask shared by all queries, from :meth:`allowed`; a plain (n,) bool is counted at every call.
            histories: for each query the history whose item-to-item lists add to the scores, or None; ignored in a
                bundle without lists.

        Returns:
            (B, k), of which min(k, allowed and indexed rows) are filled; scores from the stored vectors and the lists
            in float32, ties by lower row.

        Raises:
            SearchError: a shape, dtype or value breaks a rule.
        """
        return ScoredRows(*self.searcher.search(queries, k, allowed, histories))

    def exact(
        self,
        queries: NDArray[np.floating],
        k: int,
        *,
        allowed: RowMask | NDArray[np.bool_] | None = None,
        histories: Sequence[ListQuery | None] | None = None,
    ) -> ScoredRows:
        """As :meth:`search`, but scans every allowed row; slow, for checks."""
        return ScoredRows(*self.searcher.exact(queries, k, allowed, histories))

    def contributions(
        self,
        queries: NDArray[np.floating],
        rows: NDArray[np.int64],
        histories: Sequence[ListQuery | None] | None = None,
        found: FoundVectors | None = None,
    ) -> NDArray[np.float32]:
        """The contribution of each slot to each score; that of a list counts to its slot.

        Args:
            queries: (B, Σd) as passed to :meth:`search`.
            rows: (B, k) int64, −1 = none.
            histories: as passed to :meth:`search`.
            found: vectors that came with the rows; None: they are read here.

        Returns:
            (B, k, slots) float32, slots in the order of the layout; they sum to the score within 1e-5; 0 where the row
            is −1, and for an absent slot whose lists add nothing.

        Raises:
            SearchError: a shape, dtype or value breaks a rule, or a row lies outside the catalogue.
        """
        checked = check_queries(queries, self.layout.dim)
        if rows.ndim != 2 or rows.shape[0] != checked.shape[0]:
            raise SearchError(f"rows must be ({checked.shape[0]}, k), got {rows.shape}")
        self._check_rows(rows, lowest=-1)
        vectors = gather(self._vectors, rows) if found is None else found.of(np.maximum(rows, 0), self.vectors)
        parts = slot_scores(checked, vectors, self.layout)
        parts[rows < 0] = 0.0
        if histories is not None and self.list_scores is not None:
            parts[:, :, self.list_scores.slot_positions] += self.list_scores.contributions(histories, rows)
        return parts

    def list_contributions(self, histories: Sequence[ListQuery | None], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What each list adds to each score, already within the contribution of its slot.

        Args:
            histories: B, as passed to :meth:`search`.
            rows: (B, k) int64, −1 = none.

        Returns:
            (B, k, lists) float32, lists in the order of ``list_scores.lists.names``; none in a bundle without lists.

        Raises:
            SearchError: a shape or value breaks a rule, or a row lies outside the catalogue.
        """
        self._check_rows(rows, lowest=-1)
        if self.list_scores is None:
            return np.zeros((*rows.shape, 0), dtype=np.float32)
        return self.list_scores.contributions(histories, rows)

    def popular(self, k: int, *, allowed: RowMask | NDArray[np.bool_] | None = None) -> ScoredRows:
        """The items with the most training events, including items without any slot.

        Args:
            k: at least 1; may exceed the catalogue.
            allowed: from :meth:`allowed`, or a plain (n,) bool.

        Returns:
            (1, k); a score is the item's share of all training events, 0 … 1; ties by lower row.

        Raises:
            SearchError: k or the mask breaks a rule.
        """
        return self._popularity_ranking.scored(k, allowed)

    def fields(self, row: int, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Metadata of one item as JSON values; NaN and null become None, dates and times ISO 8601.

        Args:
            row: 0 ≤ row < n.
            names: fields to return, in this order; None returns all. Unknown names are ignored.

        Raises:
            SearchError: a row lies outside the catalogue.
        """
        self._check_rows(np.array([row]), lowest=0)
        return self._field_values.of(row, names)

    def fields_of(self, rows: NDArray[np.int64], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Metadata of several items, as :meth:`fields` returns it; five times as fast for a thousand rows.

        Args:
            rows: (k,) int64, 0 ≤ row < n.
            names: as for :meth:`fields`, which raises the same.
        """
        self._check_rows(rows, lowest=0)
        return self._field_values.of_all(rows, names)

    def _check_rows(self, rows: NDArray[np.int64], *, lowest: int) -> None:
        # Unsigned, a row below the lowest is above all others: one pass.
        if rows.size and (rows - lowest).view(np.uint64).max() >= len(self) - lowest:
            wrong = rows[(rows < lowest) | (rows >= len(self))][0]
            raise SearchError(f"rows must lie in {lowest} … {len(self) - 1}, got {wrong}")
