"""report.json: what a fresh index finds, how fast, over which items; measured on the files as they will be served."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.calibrate import calibrate
from index.encoder import OnnxSequenceEncoder
from index.errors import IndexSpecError
from index.index_spec import IndexSpec
from index.item_table import VECTORS_FILE, ItemTable
from index.manifest import FAISS_FILE, REPORT_FILE, EffortRecord, IndexRecord
from index.measure import PLAIN, Exact, latency_ms, probe_queries, query_kinds, spread
from index.plan import Effort, IndexKind
from index.probes import Probes
from index.search import CpuIndex, Searcher

_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Draft:
    """A bundle while it is being built.

    Attributes:
        directory: where its files are.
        table: the items.
        indexed: (n,) bool, rows in the index.
        encoder: the loaded encoder.
        probes: held-out histories.
        spec: what was asked for.
    """

    directory: Path
    table: ItemTable
    indexed: NDArray[np.bool_]
    encoder: OnnxSequenceEncoder
    probes: Probes
    spec: IndexSpec

    @cached_property
    def vectors(self) -> NDArray[np.floating]:
        """(n, Σd) stored vectors, mapped from the bundle's own file."""
        vectors: NDArray[np.floating] = np.load(self.directory / VECTORS_FILE, mmap_mode="r").view(np.ndarray)
        return vectors

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """(n, slots) bool."""
        starts = range(0, len(self.table), _BLOCK_ROWS)
        blocks = [self.table.layout.present(self.vectors[start : start + _BLOCK_ROWS]) for start in starts]
        return np.concatenate(blocks)

    @property
    def presence(self) -> dict[str, int]:
        """Items per slot."""
        counts = self.present.sum(axis=0)
        return {name: int(count) for name, count in zip(self.table.layout.names, counts, strict=True)}

    def searcher(self, effort: Effort, threads: int) -> Searcher:
        """A searcher over the index file with an effort."""
        loaded = CpuIndex(self.directory / FAISS_FILE, self.vectors, self.indexed, threads=threads)
        return Searcher(loaded, self.vectors, self.indexed, self.table.layout, effort)


def write_report(
    draft: Draft,
    kind: IndexKind,
    reason: str,
    parameters: dict[str, int | str],
    evaluation: Mapping[str, Any] | None,
    progress: Callable[[str, float], None],
) -> IndexRecord:
    """Calibrate and measure the index, write ``report.json``.

    Args:
        draft: the bundle with every file but report and manifest.
        kind: the index that was built.
        reason: why that kind.
        parameters: what it was built with.
        evaluation: JSON-able figures of the model, passed through.
        progress: called with stage and share done.

    Returns:
        What the manifest says about the index.

    Raises:
        IndexSpecError: the evaluation is no JSON.
    """
    spec, layout = draft.spec, draft.table.layout
    queries = probe_queries(draft.encoder, draft.vectors, draft.indexed, draft.probes, spec.probes)
    kinds = query_kinds(queries, layout, draft.presence)
    exact = Exact(
        kinds, draft.vectors, draft.indexed, layout, spec.recall_k, lambda share: progress("exact answers", share)
    )
    effort = calibrate(
        kind,
        lambda tried: draft.searcher(tried, spec.threads),
        exact,
        spec.target_recall,
        lambda share: progress("calibrate", share),
    )
    progress("measure", 0.0)
    searcher = draft.searcher(effort, threads=1)
    record = IndexRecord(
        kind=kind,
        reason=reason,
        parameters=parameters,
        effort=EffortRecord(**asdict(effort)),
        recall_k=exact.k,
        recall={name: round(exact.recall(searcher, name), 4) for name in exact.kinds},
        min_recall=spec.min_recall,
    )
    report = {
        "items": _item_counts(draft),
        "index": record.model_dump(mode="json"),
        "index_bytes": (draft.directory / FAISS_FILE).stat().st_size,
        "search_ms": {name: latency_ms(searcher, asked) for name, asked in exact.kinds.items()},
        "answers": spread(searcher, kinds[PLAIN], draft.vectors, layout, exact.k),
        "probes": {"held_out": len(draft.probes), "used": queries.shape[0]},
        "evaluation": evaluation,
    }
    _write_json(draft.directory / REPORT_FILE, report)
    return record


def _item_counts(draft: Draft) -> dict[str, Any]:
    return {
        "total": len(draft.table),
        "indexed": int(draft.indexed.sum()),
        "with_slot": draft.presence,
        "with_all_slots": int(draft.present.all(axis=1).sum()),
    }


def _write_json(path: Path, report: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    except (TypeError, ValueError) as error:
        raise IndexSpecError(f"the evaluation figures must be JSON without NaN ({error}); evaluate again") from error
