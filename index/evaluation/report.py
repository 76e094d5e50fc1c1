"""Measures a newly built bundle on its own files, and writes ``report.json`` and ``report.html``."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.bundle.encoder_pair import EncoderPair
from index.bundle.index_spec import IndexSpec
from index.bundle.manifest import (
    ENCODER_FILE,
    FAISS_FILE,
    ITEMS_FILE,
    LISTS_DIRECTORY,
    PAGE_FILE,
    REPORT_FILE,
    EffortRecord,
    GateRecord,
    IndexRecord,
)
from index.bundle.quality import Quality
from index.evaluation.calibrate import calibrate
from index.evaluation.catalogue_audit import CatalogueAudit, audit_catalogue
from index.evaluation.listed_queries import with_lists
from index.evaluation.measure import (
    PLAIN,
    ExactResults,
    QuerySet,
    encoded,
    evaluation_histories,
    kind_weights,
    latency_ms,
    query_kinds,
    result_spread,
)
from index.evaluation.report_page import render_page
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import MISSING_FILE, VECTORS_FILE, ItemTable
from index.lists.item_lists import ItemLists
from index.lists.list_scores import ListScores
from index.search.encoder import OnnxSequenceEncoder
from index.search.query_plan import SCAN, Effort, IndexKind
from index.search.row_mask import RowMask
from index.search.searcher import Searcher
from index.search.vector_index import CpuIndex

_BLOCK_ROWS = 65_536
_ITEM_BYTES = 16  # per item: the order of popularity and the counts, int64 each


@dataclass(frozen=True)
class BundleDraft:
    """A bundle while it is being built.

    Attributes:
        directory: directory of its files.
        table: the items.
        indexed: (n,) bool, the rows in the index.
        encoder: the loaded encoder.
        evaluation_queries: held-out histories, may be empty.
        spec: specification of the index.
        lists: item-to-item lists, all of a weight above 0; None for none.
        refit: the served and the measured encoder; None if they are the same.
    """

    directory: Path
    table: ItemTable
    indexed: NDArray[np.bool_]
    encoder: OnnxSequenceEncoder
    evaluation_queries: EvaluationQueries
    spec: IndexSpec
    lists: ItemLists | None = None
    refit: EncoderPair | None = None

    @cached_property
    def vectors(self) -> NDArray[np.floating]:
        """(n, Σd) stored vectors, mapped from the bundle's file."""
        vectors: NDArray[np.floating] = np.load(self.directory / VECTORS_FILE, mmap_mode="r").view(np.ndarray)
        return vectors

    @cached_property
    def present(self) -> NDArray[np.bool_]:
        """(n, slots) bool, which slots of each item are present."""
        starts = range(0, len(self.table), _BLOCK_ROWS)
        blocks = [self.table.layout.present(self.vectors[start : start + _BLOCK_ROWS]) for start in starts]
        return np.concatenate(blocks)

    @cached_property
    def list_scores(self) -> ListScores | None:
        """Scores by the lists; None for none."""
        return None if self.lists is None else ListScores(self.lists, self.table.layout)

    @property
    def presence(self) -> dict[str, int]:
        """Number of items per slot."""
        counts = self.present.sum(axis=0)
        return {name: int(count) for name, count in zip(self.table.layout.names, counts, strict=True)}

    def searcher(self, effort: Effort, threads: int) -> Searcher:
        """A searcher over the index file and the lists with an effort.

        Args:
            effort: search effort by skew.
            threads: threads of one search, at least 1.
        """
        loaded = CpuIndex(self.directory / FAISS_FILE, self.vectors, self.indexed, threads=threads)
        return Searcher(loaded, self.vectors, self.indexed, self.table.layout, effort, self.list_scores)


def write_report(
    draft: BundleDraft,
    kind: IndexKind,
    reason: str,
    parameters: dict[str, int | str],
    quality: Quality | None,
    created: datetime,
    progress: Callable[[str, float], None],
) -> tuple[IndexRecord, GateRecord]:
    """Calibrate and measure the index, audit the items, write ``report.json`` and ``report.html``.

    Args:
        draft: the bundle, with every file except report and manifest.
        kind: kind of the built index.
        reason: why this kind.
        parameters: parameters of the index by name.
        quality: the evaluation of the encoder; None if there is none.
        created: time of the build, aware.
        progress: called with the name of a stage and the share of it done, 0 … 1.

    Returns:
        The manifest's records of the index and of the gate.
    """
    record, measured = _measure(draft, kind, reason, parameters, progress)
    report = {"created": f"{created.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"} | measured
    audit = _audit(draft, lambda share: progress("pictures", share))
    gate = _gate_record(draft, record, report, audit, quality)
    report |= audit.as_json() | {
        "quality": None if quality is None else quality.as_json(),
        "gate": gate.model_dump(mode="json"),
        "evaluation": None if quality is None else quality.evaluation,
    }
    if draft.refit is not None:
        report["refit"] = draft.refit.model_dump(mode="json")
    (draft.directory / REPORT_FILE).write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    (draft.directory / PAGE_FILE).write_text(render_page(report, gate), encoding="utf-8")
    return record, gate


def _measure(
    draft: BundleDraft,
    kind: IndexKind,
    reason: str,
    parameters: dict[str, int | str],
    progress: Callable[[str, float], None],
) -> tuple[IndexRecord, dict[str, Any]]:
    """Calibrate and measure the index; the manifest's record of it and the figures for the report."""
    spec, layout = draft.spec, draft.table.layout
    histories = evaluation_histories(draft.indexed, draft.evaluation_queries, spec.evaluation_queries)
    queries = encoded(draft.encoder, draft.vectors, histories)
    weights = kind_weights(layout, draft.presence)
    exact = ExactResults(
        query_kinds(queries, layout, draft.presence),
        draft.vectors,
        draft.indexed,
        layout,
        spec.recall_k,
        lambda share: progress("exact answers", share),
        _new_items(draft) if spec.fresh_share else {},
    )
    effort = calibrate(
        kind,
        lambda effort: draft.searcher(effort, spec.threads),
        exact,
        spec.target_recall,
        lambda share: progress("calibrate", share),
    )
    progress("measure", 0.0)
    searcher = draft.searcher(effort, threads=1)
    scores = draft.list_scores
    measured: Mapping[str, QuerySet] = exact.kinds
    if scores is not None:
        measured = with_lists(exact, histories, weights, scores, draft.vectors, draft.indexed)
    record = IndexRecord(
        kind=kind,
        reason=reason + _scanned(kind, effort, spec.target_recall),
        parameters=parameters,
        effort=EffortRecord(**asdict(effort)),
        recall_k=exact.k,
        recall={name: query_set.recall(searcher) for name, query_set in measured.items()},
    )
    spread = result_spread(searcher, measured[PLAIN], draft.vectors, layout, scores)
    report = {
        "items": _item_counts(draft),
        "index": record.model_dump(mode="json"),
        "index_bytes": (draft.directory / FAISS_FILE).stat().st_size,
        "memory": memory(draft.directory, len(draft.table)),
        "search_ms": {name: latency_ms(searcher, query_set) for name, query_set in measured.items()},
        "answers": {name: value for name, value in spread.items() if name != "list_shares"},
        "probes": {"held_out": len(draft.evaluation_queries), "used": queries.shape[0]},
    }
    if draft.lists is not None:
        report["lists"] = _lists(draft.lists, spread["list_shares"], round(exact.recall(searcher, PLAIN), 4))
    return record, report


def _scanned(kind: IndexKind, effort: Effort, target: float) -> str:
    """Which queries scan every row although there is an index, with the reason; empty for none."""
    bands = {value for _, value in effort.bands}
    if kind == "flat" or SCAN not in bands:
        return ""
    which = "every query scans" if bands == {SCAN} else "queries with unusual slot weights scan"
    remedy = "choose ivf or a lower target recall" if kind == "hnsw" else "choose a lower target recall"
    return f"; {which} all rows, as no smaller effort reaches recall {target:g}: {remedy}"


def _new_items(draft: BundleDraft) -> dict[str, RowMask]:
    """The filter of the search for new items; none if there are no new items."""
    new = RowMask.of(np.asarray(draft.table.popularity == 0), draft.indexed)
    return {"new items": new} if new.count else {}


def _lists(lists: ItemLists, shares: Mapping[str, float], recall_without: float) -> dict[str, Any]:
    """The section ``lists`` of ``report.json``."""
    weights = lists.weights.weights
    described = [
        {
            "name": part.name,
            "slot": part.slot,
            "weight": weights[part.name],
            "neighbours": part.longest,
            "mean_neighbours": round(len(part.rows) / len(part), 1),
            "items": int(np.count_nonzero(np.diff(part.offsets))),
            "share": shares[part.name],
        }
        for part in lists.lists
    ]
    recency = [round(float(weight), 4) for weight in lists.weights.recency]
    return {"lists": described, "recency": recency, "plain_recall_without": recall_without}


def _audit(draft: BundleDraft, progress: Callable[[float], None]) -> CatalogueAudit:
    missing = np.load(draft.directory / MISSING_FILE)
    return audit_catalogue(draft.table, draft.vectors, missing, seed=draft.spec.seed, progress=progress)


def _gate_record(
    draft: BundleDraft, record: IndexRecord, report: Mapping[str, Any], audit: CatalogueAudit, quality: Quality | None
) -> GateRecord:
    """The bounds, the figures, and the names of the figures that miss their bound."""
    answers = report["answers"]
    figures = {
        **{f"latency_p99_ms.{name}": times["p99"] for name, times in report["search_ms"].items()},
        **({} if quality is None else quality.figures()),
        "coverage": answers["distinct_items"] / len(draft.table),
        **{f"slot_share.{name}": share for name, share in answers["slot_shares"].items()},
        **audit.figures(),
    }
    limits = draft.spec.bounds.limits(evaluated=quality is not None)
    gate = GateRecord(bounds=limits, figures=figures, shortfalls=())
    missed = tuple(check.figure for check in gate.checks(record.recall) if not check.passed)
    return gate.model_copy(update={"shortfalls": missed})


def memory(directory: Path, items: int) -> dict[str, int]:
    """Bytes of a bundle by purpose, and the memory of a process that has read every page of it.

    Args:
        directory: the bundle's directory.
        items: number of rows of the catalogue.

    Returns:
        Bytes of ``vectors``, ``index``, ``lists`` (if there are any), ``items`` (ids, popularity, metadata),
        ``encoder``, ``others``, and ``resident``: their sum and 16 bytes per item for the order of popularity and the
        counts. Vectors, index and lists are mapped, so the system may evict their pages. Python and its libraries are
        not included.
    """
    sizes = {path.name: path.stat().st_size for path in directory.iterdir() if path.is_file()}
    lists = sum(path.stat().st_size for path in (directory / LISTS_DIRECTORY).glob("*"))
    parts = {
        "vectors": sizes.pop(VECTORS_FILE),
        "index": sizes.pop(FAISS_FILE),
        **({"lists": lists} if lists else {}),
        "items": sizes.pop(ITEMS_FILE),
        "encoder": sizes.pop(ENCODER_FILE),
        "others": sum(sizes.values()),
    }
    return parts | {"resident": sum(parts.values()) + _ITEM_BYTES * items}


def _item_counts(draft: BundleDraft) -> dict[str, Any]:
    return {
        "total": len(draft.table),
        "indexed": int(draft.indexed.sum()),
        "with_slot": draft.presence,
        "with_all_slots": int(draft.present.all(axis=1).sum()),
    }
