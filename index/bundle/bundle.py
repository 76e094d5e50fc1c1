"""Bundle: the one thing that passes from offline to online, loaded and ready to answer.

A directory with ``manifest.json`` and the files it lists (:mod:`index.bundle.manifest`). A Bundle never changes after
loading; on the CPU any number of threads may use it at once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.bundle.files import (
    check_vectors,
    map_thumbnails,
    map_vectors,
    open_encoder,
    open_index,
    read_indexed,
    read_items,
    read_missing,
    read_probes,
)
from index.bundle.held_files import HeldFiles
from index.bundle.integrity import Verify, hash_files, verify_files
from index.bundle.manifest import ENCODER_FILE, FAISS_FILE, INDEXED_FILE, ITEMS_FILE, PROBES_FILE, Manifest
from index.errors import BundleNotFound, SearchError
from index.filters.filter_cache import FilterCache
from index.filters.text_search import TextSearch
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import MISSING_FILE, VECTORS_FILE
from index.items.items_file import ItemsFile
from index.items.json_values import json_value
from index.items.modality_status import ModalityStatus
from index.items.read_ahead import read_ahead
from index.items.thumbnails import THUMBNAILS_FILE, Thumbnails
from index.search.brute_force import check_allowed, check_k, check_queries
from index.search.encoder import OnnxSequenceEncoder
from index.search.row_mask import RowMask
from index.search.scoring import gather, slot_scores
from index.search.searcher import Searcher

_MAPPED = (ITEMS_FILE, VECTORS_FILE, INDEXED_FILE, MISSING_FILE, FAISS_FILE, THUMBNAILS_FILE)


@dataclass(frozen=True)
class Found:
    """Rows with their scores, best first.

    Attributes:
        rows: (B, k) int64, −1 = none, only at the end.
        scores: (B, k) float32, never increasing, −inf where the row is −1.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Bundle:
    """A verified bundle; make one with :meth:`load`.

    Attributes:
        path: its directory.
        id: its name, unique by time and content.
        manifest: what it says about itself.
        layout: slots of items and queries.
        ids: item id ↔ row.
        metadata: n rows, one single-chunk column per field.
        popularity: (n,) int64 training events per item.
        events: all of them together, at least 1.
        text_search: finds items by a text in id or metadata.
        thumbnails: a small picture of each item that has one; None in a bundle without any.
        probes: held-out histories.
        indexed: (n,) bool, rows that a query can find.
        missing: (n, slots) uint8 codes of :class:`index.items.modality_status.ModalityStatus`, columns in the order of
            the layout.
        max_history: the newest items of a history that :meth:`encode` reads.
        slots_in_use: (slots,) bool, the slots that any item has.
        files: the mapped files, to see whether somebody writes to them.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        items: ItemsFile,
        vectors: NDArray[np.floating],
        indexed: NDArray[np.bool_],
        missing: NDArray[np.uint8],
        probes: EvaluationQueries,
        encoder: OnnxSequenceEncoder,
        searcher: Searcher,
        files: HeldFiles,
        thumbnails: Thumbnails | None = None,
    ) -> None:
        self.path = path
        self.id = manifest.id
        self.manifest = manifest
        self.layout = manifest.layout
        self.ids = items.ids
        self.metadata = items.metadata
        self.popularity = items.popularity
        self.events = max(1, int(items.popularity.sum()))
        self.thumbnails = thumbnails
        self.probes = probes
        self.indexed = indexed
        self.missing = missing
        self.max_history = encoder.max_history
        self.slots_in_use: NDArray[np.bool_] = (missing == ModalityStatus.PRESENT).any(axis=0)
        self.files = files
        self._vectors = vectors
        self._encoder = encoder
        self._searcher = searcher
        self._filters = FilterCache(items.metadata, indexed)
        self.text_search = TextSearch(items.ids.array, items.metadata)
        self._columns = {name: items.metadata.column(name).chunk(0) for name in items.metadata.column_names}
        self._by_popularity = _by_popularity(items.popularity).astype(np.uint32)  # half the memory for life

    @classmethod
    def load(cls, path: Path, *, device: str = "cpu", threads: int = 1, verify: Verify = "stamp") -> "Bundle":
        """Verify a bundle and open it; vectors and index are mapped, and brought into the system's cache meanwhile.

        Args:
            path: its directory.
            device: ``cpu`` or ``cuda``, for the encoder and the index.
            threads: threads of one encoder run and of one search, at least 1.
            verify: ``stamp`` or ``full``, see :func:`index.bundle.integrity.verify_files`; ``full`` also looks at every
                vector.

        Raises:
            BundleNotFound: there is no such directory.
            BundleInvalid: a file is missing, altered, of an unknown format, or does not fit the others.
            EncoderError, SearchError: the device cannot be used.
        """
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where the parent may not be read
            raise BundleNotFound(f"{path}: there is no bundle; list what is published with `vlm2rec index list`")
        if threads < 1:
            raise SearchError(f"threads must be at least 1, got {threads}")
        manifest = Manifest.read(path)
        verify_files(path, manifest, verify)
        if verify != "full":  # which has read them
            read_ahead(path / name for name in (ITEMS_FILE, FAISS_FILE, VECTORS_FILE))
        files = HeldFiles(path / name for name in _MAPPED if name in manifest.files)
        items = read_items(path / ITEMS_FILE, manifest)
        vectors = map_vectors(path / VECTORS_FILE, manifest)
        indexed = read_indexed(path / INDEXED_FILE, manifest)
        missing = read_missing(path / MISSING_FILE, manifest, indexed)
        probes = read_probes(path / PROBES_FILE, manifest)
        encoder = open_encoder(path / ENCODER_FILE, manifest, device, threads)
        searcher = open_index(path / FAISS_FILE, manifest, vectors, indexed, device, threads)
        thumbnails = map_thumbnails(path / THUMBNAILS_FILE, manifest)
        bundle = cls(path, manifest, items, vectors, indexed, missing, probes, encoder, searcher, files, thumbnails)
        items.release_pages()
        if verify == "full":
            bundle.check_vectors()
        return bundle

    def __len__(self) -> int:
        return len(self.ids)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored vectors.

        Args:
            rows: int64 of any shape, 0 ≤ row < n.

        Returns:
            (*rows.shape, Σd) float32.

        Raises:
            SearchError: a row outside the catalogue.
        """
        self._check_rows(rows, lowest=0)
        return gather(self._vectors, rows)

    def encode(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Queries of histories.

        Args:
            histories: B arrays of rows, oldest first, each of at least one; the newest ``max_history`` are used.

        Returns:
            (B, Σd) float32, finite, not normalised, slot weights still 1.

        Raises:
            SearchError: a row outside the catalogue.
            EncoderError: an empty history, or a query that is not finite.
        """
        newest = [history[-self.max_history :] for history in histories]
        for rows in newest:
            self._check_rows(rows, lowest=0)
        return self._encoder.encode([self._vectors.take(rows, axis=0) for rows in newest])

    def verify_in_full(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Hash every file of this bundle; for a thread beside a service that is answering already.

        Args:
            stop: asked before every megabyte; True ends the work.

        Returns:
            True when every file is whole, False when it was stopped before it knew.

        Raises:
            BundleNotFound: the bundle was deleted after it was loaded; what is mapped can still be served.
            BundleInvalid: a file was altered; its name is in the message.
        """
        return hash_files(self.path, self.manifest, stop)

    def check_vectors(self) -> None:
        """Look at every stored vector: finite, and zero exactly where :attr:`missing` says so. Publishing does it once.

        Raises:
            BundleInvalid: a vector breaks the rule; its row is in the message.
        """
        check_vectors(self.path / VECTORS_FILE, self.manifest, self._vectors, self.missing)

    def warm_up(self) -> None:
        """Run the encoder on every shape it is ever given, and one search, before the first request.

        Raises:
            EncoderError, SearchError: the bundle cannot answer.
        """
        self._encoder.warm_up()
        first = np.array([self._by_popularity[0]], dtype=np.int64)
        self.search(self.encode([first]), 1)

    def allowed(
        self, condition: Mapping[str, Any] | None = None, available: NDArray[np.bool_] | None = None
    ) -> RowMask:
        """The rows that a filter allows, for :meth:`search` and :meth:`popular`; kept, so a repeated one costs little.

        Args:
            condition: see :mod:`index.filters.filters`; None allows every row.
            available: (n,) bool, what may be answered at the moment, whatever the filter, such as all but the hidden
                items; never written to. A new array makes all combinations anew, the same one finds them again.

        Returns:
            Read-only; its ``mask`` is (n,) bool, its ``without`` and ``&`` take further rows out.

        Raises:
            FilterError: the condition breaks the grammar, names an unknown field, or compares unlike types.
            SearchError: ``available`` is of another dtype or length.
        """
        return self._filters.allowed(condition, available)

    def keeps_filter(self, condition: Mapping[str, Any], available: NDArray[np.bool_] | None = None) -> bool:
        """Whether :meth:`allowed` has this filter already, and so takes microseconds however many items there are.

        Raises:
            FilterError: the condition breaks the grammar.
        """
        return self._filters.keeps(condition, available)

    def search(
        self, queries: NDArray[np.floating], k: int, *, allowed: RowMask | NDArray[np.bool_] | None = None
    ) -> Found:
        """The best k items per query.

        Args:
            queries: (B, Σd), slot weights already multiplied in.
            k: at least 1; may exceed the catalogue.
            allowed: shared by all queries, from :meth:`allowed`; or a plain (n,) bool, which is counted at every call.

        Returns:
            (B, k): always min(k, allowed and indexed) rows; scores from the stored vectors in float32, ties by lower
            row.

        Raises:
            SearchError: a shape, dtype or value breaks a rule.
        """
        return Found(*self._searcher.search(queries, k, allowed))

    def exact(
        self, queries: NDArray[np.floating], k: int, *, allowed: RowMask | NDArray[np.bool_] | None = None
    ) -> Found:
        """As :meth:`search`, but exact: every allowed row is looked at. For checks, as it takes its time."""
        return Found(*self._searcher.exact(queries, k, allowed))

    def contributions(self, queries: NDArray[np.floating], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What each slot adds to each score.

        Args:
            queries: (B, Σd) as they were given to :meth:`search`.
            rows: (B, k) int64, −1 = none.

        Returns:
            (B, k, slots) float32 in the order of the layout; sums to the score within 1e-5; 0 for an absent slot and
            where the row is −1.

        Raises:
            SearchError: a shape, dtype or value breaks a rule, or a row outside the catalogue.
        """
        checked = check_queries(queries, self.layout.dim)
        if rows.ndim != 2 or rows.shape[0] != checked.shape[0]:
            raise SearchError(f"rows must be ({checked.shape[0]}, k), got {rows.shape}")
        self._check_rows(rows, lowest=-1)
        parts = slot_scores(checked, gather(self._vectors, rows), self.layout)
        parts[rows < 0] = 0.0
        return parts

    def popular(self, k: int, *, allowed: RowMask | NDArray[np.bool_] | None = None) -> Found:
        """The items of the most training events, those without a slot too.

        Args:
            k: at least 1; may exceed the catalogue.
            allowed: from :meth:`allowed`, or a plain (n,) bool.

        Returns:
            (1, k); the score is the share of all training events, 0 … 1; ties by lower row.

        Raises:
            SearchError: k or the mask breaks a rule.
        """
        check_k(k)
        if allowed is None:
            best = self._by_popularity[:k]
        else:
            mask = allowed.mask if isinstance(allowed, RowMask) else allowed
            check_allowed(mask, -1, len(self))
            best = _first_allowed(self._by_popularity, mask, k)
        rows = np.full((1, k), -1, dtype=np.int64)
        scores = np.full((1, k), -np.inf, dtype=np.float32)
        rows[0, : best.shape[0]] = best
        scores[0, : best.shape[0]] = self.popularity[best] / self.events
        return Found(rows, scores)

    def fields(self, row: int, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Metadata of one item, ready for JSON; NaN and null are None, dates and times ISO 8601.

        Args:
            row: 0 ≤ row < n.
            names: fields to give, in this order; None gives all. A name that is no field is left out.

        Raises:
            SearchError: a row outside the catalogue.
        """
        if not 0 <= row < len(self):
            raise SearchError(f"rows must lie in 0 … {len(self) - 1}, got {row}")
        return {name: json_value(self._columns[name][row].as_py()) for name in self._fields(names)}

    def fields_of(self, rows: NDArray[np.int64], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Metadata of several items, as :meth:`fields` of each, in a fifth of the time for a thousand.

        Args:
            rows: (k,) int64, 0 ≤ row < n.
            names: as for :meth:`fields`.

        Raises:
            SearchError: a row outside the catalogue.
        """
        self._check_rows(rows, lowest=0)
        wanted = self._fields(names)
        columns = ([json_value(value) for value in self._columns[name].take(rows).to_pylist()] for name in wanted)
        values = zip(*columns, strict=True) if wanted else ((),) * len(rows)
        return [dict(zip(wanted, one, strict=True)) for one in values]

    def _fields(self, names: Sequence[str] | None) -> list[str]:
        return (
            list(self._columns) if names is None else [name for name in dict.fromkeys(names) if name in self._columns]
        )

    def _check_rows(self, rows: NDArray[np.int64], *, lowest: int) -> None:
        if rows.size and not (lowest <= rows.min() and rows.max() < len(self)):
            wrong = rows[(rows < lowest) | (rows >= len(self))][0]
            raise SearchError(f"rows must lie in {lowest} … {len(self) - 1}, got {wrong}")


def _by_popularity(popularity: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) rows, the most popular first, ties by lower row.

    Counts and rows that fit 63 bits together are sorted as one number, several times as fast as a stable argsort.
    """
    count = popularity.shape[0]
    most, bits = int(popularity.max()), count.bit_length()
    if most >> (63 - bits):
        return np.argsort(-popularity, kind="stable")
    order: NDArray[np.int64] = (most - popularity) << bits | np.arange(count, dtype=np.int64)
    order.sort()
    order &= (1 << bits) - 1
    return order


def _first_allowed(order: NDArray[np.uint32], allowed: NDArray[np.bool_], k: int) -> NDArray[np.uint32]:
    """The first k of ``order`` that are allowed, looking only as far as needed."""
    reach = 4 * k
    while True:
        head = order[:reach]
        found = head[allowed[head]]
        if found.shape[0] >= k or reach >= order.shape[0]:
            return found[:k]
        reach *= 8
