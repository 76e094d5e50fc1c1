"""IndexSpec: what index to build, and how good it must be."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from index.bounds import Bounds
from index.errors import IndexSpecError
from index.plan import IndexKind

LARGEST_FLAT = 20_000
LARGEST_HNSW = 2_000_000

_KINDS = ("auto", *get_args(IndexKind))
_ROWS_PER_LIST = 39  # FAISS asks for at least 39 training rows per list
_MOST_LISTS = 65_536


@dataclass(frozen=True)
class IndexSpec:
    """What to build.

    Attributes:
        kind: ``flat`` looks at every row, exact; ``hnsw`` walks a graph, the best recall at a given latency; ``ivf``
            scans some of many lists, the least memory and the quickest to build; ``auto`` takes flat up to 20,000
            rows, HNSW up to 2,000,000 and IVF beyond (docs/experiments.md, "Index").
        recall_k: k of all recall figures, at least 1.
        target_recall: search effort is calibrated until recall@k reaches this for every kind of query, 0 … 1.
        bounds: what the bundle is held to before it may be published.
        probes: most held-out histories to measure with, at least 1.
        links: graph neighbours per row of HNSW (M), 4 … 128.
        construction: beam while HNSW is built (efConstruction), at least ``links``.
        lists: inverted lists of IVF; None for 4 √rows, at least 39 rows each.
        threads: threads of the build, at least 1.
        seed: of the sample that IVF is trained on, and of its k-means.

    Raises:
        IndexSpecError: a value out of its range.
    """

    kind: Literal["auto", "flat", "hnsw", "ivf"] = "auto"
    recall_k: int = 20
    target_recall: float = 0.97
    bounds: Bounds = field(default_factory=Bounds)
    probes: int = 256
    links: int = 32
    construction: int = 100
    lists: int | None = None
    threads: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise IndexSpecError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        for name, low, high in (
            ("recall_k", 1, 1000),
            ("probes", 1, 1_000_000),
            ("links", 4, 128),
            ("construction", self.links, 10_000),
            ("threads", 1, 1024),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise IndexSpecError(f"{name} must be {low} … {high}, got {value}")
        if self.lists is not None and not 1 <= self.lists <= _MOST_LISTS:
            raise IndexSpecError(f"lists must be 1 … {_MOST_LISTS}, got {self.lists}")
        if not 0 <= self.target_recall <= 1:
            raise IndexSpecError(f"target_recall must be 0 … 1, got {self.target_recall}")

    def choose(self, rows: int) -> tuple[IndexKind, str]:
        """The kind for a number of rows, and why, in words."""
        if self.kind != "auto":
            return self.kind, "asked for by name"
        if rows <= LARGEST_FLAT:
            return "flat", f"{rows} rows, up to {LARGEST_FLAT} are scanned in well under a millisecond"
        if rows <= LARGEST_HNSW:
            return "hnsw", f"{rows} rows, up to {LARGEST_HNSW} the graph finds more than lists in the same time"
        return "ivf", f"{rows} rows, above {LARGEST_HNSW} a graph takes too much memory and too long to build"

    def list_count(self, rows: int) -> int:
        """Inverted lists for a number of rows, at least 1."""
        wanted = self.lists if self.lists is not None else int(4 * math.sqrt(rows))
        return max(1, min(wanted, rows // _ROWS_PER_LIST, _MOST_LISTS))
