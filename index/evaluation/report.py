"""report.json and report.html: what a fresh bundle is worth, measured on its files as they will be served."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.bundle.index_spec import IndexSpec
from index.bundle.manifest import (
    ENCODER_FILE,
    FAISS_FILE,
    ITEMS_FILE,
    PAGE_FILE,
    REPORT_FILE,
    EffortRecord,
    GateRecord,
    IndexRecord,
)
from index.bundle.quality import Quality
from index.evaluation.calibrate import calibrate
from index.evaluation.catalogue_audit import Catalogue, examine
from index.evaluation.measure import PLAIN, Exact, latency_ms, probe_queries, query_kinds, spread
from index.evaluation.report_page import render_page
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import MISSING_FILE, VECTORS_FILE, ItemTable
from index.search.encoder import OnnxSequenceEncoder
from index.search.query_plan import Effort, IndexKind
from index.search.searcher import CpuIndex, Searcher

_BLOCK_ROWS = 65_536
_ITEM_BYTES = 16  # the order of popularity and the counts, int64 each


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
    probes: EvaluationQueries
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
    quality: Quality | None,
    created: datetime,
    progress: Callable[[str, float], None],
) -> tuple[IndexRecord, GateRecord]:
    """Calibrate and measure the index, look through the items, write ``report.json`` and ``report.html``.

    Args:
        draft: the bundle with every file but report and manifest.
        kind: the index that was built.
        reason: why that kind.
        parameters: what it was built with.
        quality: the evaluation of the encoder, if there is one.
        created: time of the build, aware.
        progress: called with stage and share done.

    Returns:
        What the manifest says about the index, and what the bundle is held to.
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
    )
    report = {
        "created": f"{created.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "items": _item_counts(draft),
        "index": record.model_dump(mode="json"),
        "index_bytes": (draft.directory / FAISS_FILE).stat().st_size,
        "memory": memory(draft.directory, len(draft.table)),
        "search_ms": {name: latency_ms(searcher, asked) for name, asked in exact.kinds.items()},
        "answers": spread(searcher, kinds[PLAIN], draft.vectors, layout, exact.k),
        "probes": {"held_out": len(draft.probes), "used": queries.shape[0]},
    }
    catalogue = _look_through(draft, lambda share: progress("pictures", share))
    gate = _hold(draft, record, report, catalogue, quality)
    report |= catalogue.as_json() | {
        "quality": None if quality is None else quality.as_json(),
        "gate": gate.model_dump(mode="json"),
        "evaluation": None if quality is None else quality.evaluation,
    }
    (draft.directory / REPORT_FILE).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (draft.directory / PAGE_FILE).write_text(render_page(report, gate), encoding="utf-8")
    return record, gate


def _look_through(draft: Draft, progress: Callable[[float], None]) -> Catalogue:
    missing = np.load(draft.directory / MISSING_FILE)
    return examine(draft.table, draft.vectors, missing, seed=draft.spec.seed, progress=progress)


def _hold(
    draft: Draft, record: IndexRecord, report: Mapping[str, Any], catalogue: Catalogue, quality: Quality | None
) -> GateRecord:
    """The figures, and which of them miss their bounds."""
    answers = report["answers"]
    figures = {
        **{f"latency_p99_ms.{name}": times["p99"] for name, times in report["search_ms"].items()},
        **({} if quality is None else quality.figures()),
        "coverage": round(answers["distinct_items"] / len(draft.table), 4),
        **{f"slot_share.{name}": share for name, share in answers["slot_shares"].items()},
        **catalogue.figures(),
    }
    limits = draft.spec.bounds.limits(evaluated=quality is not None)
    gate = GateRecord(bounds=limits, figures=figures, shortfalls=())
    missed = tuple(check.figure for check in gate.checks(record.recall) if not check.held)
    return gate.model_copy(update={"shortfalls": missed})


def memory(directory: Path, items: int) -> dict[str, int]:
    """Bytes of a bundle by what they are for, and what a process needs for it once every page has been touched.

    Args:
        directory: the bundle's files.
        items: rows of the catalogue.

    Returns:
        ``vectors``, ``index``, ``items`` (ids, popularity, metadata), ``encoder``, ``others``, and ``resident``: all
        of these and 16 bytes an item for the order of popularity and the counts; vectors and index are mapped, so the
        system may drop their pages again. What Python and its libraries take comes on top.
    """
    sizes = {path.name: path.stat().st_size for path in directory.iterdir() if path.is_file()}
    parts = {
        "vectors": sizes.pop(VECTORS_FILE),
        "index": sizes.pop(FAISS_FILE),
        "items": sizes.pop(ITEMS_FILE),
        "encoder": sizes.pop(ENCODER_FILE),
        "others": sum(sizes.values()),
    }
    return parts | {"resident": sum(parts.values()) + _ITEM_BYTES * items}


def _item_counts(draft: Draft) -> dict[str, Any]:
    return {
        "total": len(draft.table),
        "indexed": int(draft.indexed.sum()),
        "with_slot": draft.presence,
        "with_all_slots": int(draft.present.all(axis=1).sum()),
    }
