"""Specifies the index to build, and chooses its kind and codes where they are ``auto``."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from index.bundle.gate import Bounds
from index.errors import IndexSpecError
from index.search.query_plan import IndexKind

Codes = Literal["fp32", "fp16", "sq8"]

LARGEST_FLAT = 20_000
LARGEST_EXACT = 300_000
LARGEST_HNSW = 1_200_000
NEARLY_ONE = 0.999
OMITTED_AT_DEFAULT = "omitted at default"
"""Metadata of a field that a fingerprint leaves out at its default, so that fingerprints of earlier versions stay."""

_KINDS = ("auto", *get_args(IndexKind))
_CODES = ("auto", *get_args(Codes))
_BYTES = {"fp32": 4, "fp16": 2, "sq8": 1}
_ROWS_PER_LIST = 39  # FAISS asks for at least 39 training rows per list
_MOST_LISTS = 65_536


@dataclass(frozen=True)
class IndexChoice:
    """The kind and codes of an index, with the reason for them.

    Attributes:
        kind: flat, hnsw or ivf.
        codes: encoding of a row in the index; results are re-scored from the stored vectors.
        reason: why this kind and these codes, in words.
        bytes: estimated size of ``index.faiss``.
    """

    kind: IndexKind
    codes: Codes
    reason: str
    bytes: int


@dataclass(frozen=True)
class IndexSpec:
    """Specification of the index to build.

    Attributes:
        kind: ``flat`` scans every row and is exact; ``hnsw`` walks a graph and has the best recall at a given latency;
            ``ivf`` scans some of many inverted lists and builds fast. ``auto`` takes flat up to 20,000 rows (up to
            300,000 if ``target_recall`` is .999 or more), HNSW up to 1,200,000 and IVF beyond; a kind that does not fit
            ``memory_bytes`` is skipped in that order (docs/experiments/search.md).
        codes: encoding of rows in the index: ``fp32``, ``fp16`` or ``sq8`` (a byte per component). With ``auto`` a flat
            index reads the stored vectors themselves; other kinds take fp16 for a target recall of .999 or more, and
            otherwise sq8 if the build measures that its rounding costs next to no recall. Scores never depend on it.
        memory_bytes: most bytes of ``index.faiss``, which is memory-mapped; None sets no limit.
        recall_k: k of all recall figures, 1 … 1,000.
        target_recall: recall@k that the calibrated search effort reaches for every kind of query, 0 … 1.
        bounds: bounds that the bundle must keep before it may be published.
        evaluation_queries: most evaluation queries to measure with, at least 1.
        links: graph neighbours per row of HNSW (M), 4 … 128.
        construction: beam width while HNSW is built (efConstruction), at least ``links``.
        lists: inverted lists of IVF; None for 4 √rows, with at least 39 rows each.
        threads: threads of the build, at least 1.
        seed: seed of the training sample of IVF and of its k-means.
        fresh_share: share of the places of an answer that the bundle keeps for new items by default, 0 … 1.

    Raises:
        IndexSpecError: a value out of its range.
    """

    kind: Literal["auto", "flat", "hnsw", "ivf"] = "auto"
    codes: Literal["auto", "fp32", "fp16", "sq8"] = "auto"
    memory_bytes: int | None = None
    recall_k: int = 20
    target_recall: float = 0.97
    bounds: Bounds = field(default_factory=Bounds)
    evaluation_queries: int = 256
    links: int = 24
    construction: int = 64
    lists: int | None = None
    threads: int = 2
    seed: int = 0
    fresh_share: float = field(default=0.0, metadata={OMITTED_AT_DEFAULT: True})

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise IndexSpecError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if self.codes not in _CODES:
            raise IndexSpecError(f"codes must be one of {', '.join(_CODES)}, got {self.codes!r}")
        for name, low, high in (
            ("recall_k", 1, 1000),
            ("evaluation_queries", 1, 1_000_000),
            ("links", 4, 128),
            ("construction", self.links, 10_000),
            ("threads", 1, 1024),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise IndexSpecError(f"{name} must be {low} … {high}, got {value}")
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise IndexSpecError(f"memory_bytes must be at least 1, got {self.memory_bytes}; leave it out for no limit")
        if self.lists is not None and not 1 <= self.lists <= _MOST_LISTS:
            raise IndexSpecError(f"lists must be 1 … {_MOST_LISTS}, got {self.lists}")
        if not 0 <= self.target_recall <= 1:
            raise IndexSpecError(f"target_recall must be 0 … 1, got {self.target_recall}")
        if not 0 <= self.fresh_share <= 1:
            raise IndexSpecError(f"fresh_share must be 0 … 1, got {self.fresh_share}; 0 keeps no place for new items")

    def choose(self, rows: int, dim: int, stored: Codes = "fp16") -> IndexChoice:
        """Choose kind and codes for a number of rows.

        Args:
            rows: rows to index, at least 1.
            dim: components of a row.
            stored: encoding of the stored vectors; a flat index of the same encoding takes no memory.

        Returns:
            The first choice, in order of preference, that fits ``memory_bytes``.

        Raises:
            IndexSpecError: no allowed kind and codes fit ``memory_bytes``.
        """
        too_large: list[str] = []
        smallest = 0
        for kind, why in self._kinds(rows):
            for codes in self._codes(kind, stored):
                size = self.size(kind, codes, rows, dim, stored)
                if self.memory_bytes is None or size <= self.memory_bytes:
                    reason = (
                        why
                        if not too_large
                        else f"{why}; {' and '.join(too_large)} would not fit {self.memory_bytes} bytes"
                    )
                    return IndexChoice(kind, codes, reason, size)
                too_large.append(f"{kind} {codes} ({size} bytes)")
                smallest = min(smallest or size, size)
        raise IndexSpecError(
            f"memory_bytes {self.memory_bytes} is too small for {rows} rows of {dim} components, the smallest allowed "
            f"index takes {smallest}; raise it, or leave kind and codes to auto"
        )

    def size(self, kind: IndexKind, codes: Codes, rows: int, dim: int, stored: Codes = "fp16") -> int:
        """Estimated bytes of ``index.faiss``; arguments as of :meth:`choose`."""
        if kind == "flat" and codes == stored:
            return 0
        row = dim * _BYTES[codes]
        if kind == "hnsw":
            row += 8 * self.links + 4 * self.links // (self.links - 1) + 12  # links below and above, offset, level
        if kind == "ivf":
            return rows * (row + 8) + self.list_count(rows) * dim * 4
        return rows * row

    def list_count(self, rows: int) -> int:
        """Number of inverted lists for a number of rows, at least 1."""
        wanted = self.lists if self.lists is not None else int(4 * math.sqrt(rows))
        return max(1, min(wanted, rows // _ROWS_PER_LIST, _MOST_LISTS))

    def _kinds(self, rows: int) -> Iterator[tuple[IndexKind, str]]:
        """The kinds in order of preference, each with its reason."""
        if self.kind != "auto":
            yield self.kind, "requested by name"
            return
        if rows <= LARGEST_FLAT:
            yield "flat", f"{rows} rows, up to {LARGEST_FLAT} are scanned in well under a millisecond"
        elif self.target_recall >= NEARLY_ONE and rows <= LARGEST_EXACT:
            yield "flat", f"target recall {self.target_recall:g}, and {rows} rows can still be scanned"
        if rows <= LARGEST_HNSW:
            yield "hnsw", f"{rows} rows, up to {LARGEST_HNSW} the graph finds more than lists in the same time"
            yield "ivf", f"{rows} rows, lists take less memory than a graph"
        else:
            yield "ivf", f"{rows} rows, above {LARGEST_HNSW} a graph takes too long to build"
        yield "flat", f"{rows} rows, scanning the stored vectors takes no memory of its own"

    def _codes(self, kind: IndexKind, stored: Codes) -> Iterator[Codes]:
        """The codes in order of preference."""
        if self.codes != "auto":
            yield self.codes
            return
        if kind == "flat":
            yield stored
            return
        if self.target_recall >= NEARLY_ONE:
            yield "fp16"
        yield "sq8"
