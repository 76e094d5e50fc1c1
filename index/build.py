"""Building a bundle: item table, encoder and probes in; a verified, measured directory out.

Everything is written into a hidden directory, flushed to the disk and renamed in one step, so a build that is killed
leaves nothing that loads. With :mod:`index.search` the only module that imports faiss.
"""

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.encoder import OnnxSequenceEncoder
from index.errors import BundleError, EncoderError, IndexSpecError
from index.index_spec import IndexSpec
from index.item_table import ITEM_ID, MISSING_FILE, POPULARITY, VECTORS_FILE, ItemTable
from index.manifest import (
    ENCODER_FILE,
    FAISS_FILE,
    INDEXED_FILE,
    ITEMS_FILE,
    MANIFEST_FILE,
    PROBES_FILE,
    FileEntry,
    GateRecord,
    IndexRecord,
    Manifest,
)
from index.plan import IndexKind
from index.probes import Probes
from index.quality import Quality
from index.report import Draft, write_report
from index.stamp import sha256_of, sync_directory, sync_file

Progress = Callable[[str, float], None]

_BUILDING = ".building-"
_BLOCK_ROWS = 65_536
_TRAINING_ROWS_PER_LIST = 64
_KMEANS_ROUNDS = 10


def build_bundle(
    table: ItemTable,
    encoder: Path,
    probes: Probes,
    out: Path,
    spec: IndexSpec | None = None,
    *,
    evaluation: Mapping[str, Any] | None = None,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Path:
    """Build a bundle, measure its recall, and put it in place.

    Args:
        table: the items.
        encoder: ``encoder.onnx`` for the same slots.
        probes: held-out histories as rows of the table; may be empty.
        out: directory that receives ``<bundle id>/``; made if missing.
        spec: what to build; the defaults of :class:`IndexSpec` if None.
        evaluation: what ``vlm2rec evaluate --json`` wrote about this encoder; its figures are held to the bounds.
        now: time of the build, aware; the present if None.
        progress: called with the name of a stage and the share of it that is done, 0 … 1.

    Returns:
        The bundle's directory.

    Raises:
        IndexSpecError: nothing to index, values that are not finite, a bound on a slot that the items do not have, or
            an evaluation of another encoder.
        EncoderError: the encoder cannot be loaded or is for other slots.
        ItemTableError: a probe names a row that does not exist.
        BundleError: the directory cannot be written.
    """
    spec = spec or IndexSpec()
    report_progress = progress or (lambda _stage, _share: None)
    model = OnnxSequenceEncoder(encoder, threads=spec.threads)
    if model.layout != table.layout:
        raise EncoderError(
            f"{encoder}: the encoder is for the slots {model.layout.slots}, the item table has {table.layout.slots}; "
            "fit the encoder again"
        )
    probes.check_rows(len(table))
    spec.bounds.check_slots(table.layout)
    created = now or datetime.now(UTC)
    quality = None if evaluation is None else Quality.read(evaluation, encoder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _scratch(out) as directory:
            indexed = _write_items(table, directory, report_progress)
            shutil.copyfile(encoder, directory / ENCODER_FILE)
            probes.save(directory / PROBES_FILE)
            draft = Draft(directory, table, indexed, model, probes, spec)
            kind, reason = spec.choose(int(indexed.sum()))
            with _faiss_threads(spec.threads):
                parameters = _write_faiss(
                    kind, draft.vectors, np.flatnonzero(indexed), directory / FAISS_FILE, spec, report_progress
                )
            record, gate = write_report(draft, kind, reason, parameters, quality, created, report_progress)
            manifest = _seal(draft, record, gate, created, report_progress)
            return _put_in_place(directory, out / manifest.id)
    except (OSError, pa.ArrowException) as error:
        raise BundleError(
            f"{out}: the bundle cannot be written ({error}); check the path and the space left"
        ) from error


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A hidden directory that goes away unless it is renamed; those of dead builds go first.

    The builder holds a lock on its directory. The kernel drops it with the process, so a lock that can be had marks
    what a killed build left behind.
    """
    for leftover in out.glob(f"{_BUILDING}*"):
        with contextlib.suppress(OSError), _locked(leftover):
            shutil.rmtree(leftover)
    directory = out / f"{_BUILDING}{uuid.uuid4().hex}"
    directory.mkdir()
    with _locked(directory):
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory; raises BlockingIOError if another process has it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _write_items(table: ItemTable, directory: Path, progress: Progress) -> NDArray[np.bool_]:
    """Write vectors, items and the mask of indexed rows; gives the mask, (n,) bool."""
    vectors = np.lib.format.open_memmap(
        directory / VECTORS_FILE, mode="w+", dtype=table.vectors.dtype, shape=table.vectors.shape
    )
    indexed = np.zeros(len(table), dtype=np.bool_)
    for start in range(0, len(table), _BLOCK_ROWS):
        progress("vectors", start / len(table))
        block = np.asarray(table.vectors[start : start + _BLOCK_ROWS])
        if not np.isfinite(block).all():
            row = start + int(np.argmax(~np.isfinite(block).all(axis=1)))
            raise IndexSpecError(
                f"item {table.ids.id(row)!r} has a vector that is not finite; embed the catalogue again"
            )
        vectors[start : start + _BLOCK_ROWS] = block
        indexed[start : start + _BLOCK_ROWS] = table.layout.present(block).any(axis=1)
    vectors.flush()
    if not indexed.any():
        raise IndexSpecError(f"none of {len(table)} items has a text or picture vector, so there is nothing to index")
    np.save(directory / MISSING_FILE, table.missing_record())
    np.save(directory / INDEXED_FILE, indexed)
    columns = {
        ITEM_ID: pa.array((table.ids.id(row) for row in range(len(table))), pa.string()),
        POPULARITY: pa.array(table.popularity, pa.int64()),
    } | {name: table.metadata.column(name) for name in table.metadata.column_names}
    pq.write_table(pa.table(columns), directory / ITEMS_FILE, compression="zstd")
    return indexed


def _write_faiss(
    kind: IndexKind,
    vectors: NDArray[np.floating],
    rows: NDArray[np.int64],
    path: Path,
    spec: IndexSpec,
    progress: Progress,
) -> dict[str, int | str]:
    """Train, add and write the index; gives what it was built with."""
    lists = spec.list_count(rows.shape[0])
    faiss_index, parameters = _empty_index(kind, vectors.shape[1], lists, spec)
    sample = lists * _TRAINING_ROWS_PER_LIST if kind == "ivf" else 1
    chosen = rows
    if sample < rows.shape[0]:
        chosen = np.sort(np.random.default_rng(spec.seed).choice(rows, sample, replace=False))
    step = min(_BLOCK_ROWS, max(5000, rows.shape[0] // 50))
    try:
        progress("train", 0.0)
        faiss_index.train(np.ascontiguousarray(vectors[chosen], dtype=np.float32))
        for start in range(0, rows.shape[0], step):
            progress("add", start / rows.shape[0])
            faiss_index.add(np.ascontiguousarray(vectors[rows[start : start + step]], dtype=np.float32))
        progress("write", 0.0)
        faiss.write_index(faiss_index, str(path))
    except RuntimeError as error:
        raise BundleError(f"{path}: FAISS could not build the index ({error}); check memory and disk space") from error
    return parameters


def _empty_index(kind: IndexKind, dim: int, lists: int, spec: IndexSpec) -> tuple[Any, dict[str, int | str]]:
    """An untrained index with fp16 codes, and its parameters."""
    product, half = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_fp16
    if kind == "flat":
        return faiss.IndexScalarQuantizer(dim, half, product), {"codes": "fp16"}
    if kind == "hnsw":
        graph = faiss.IndexHNSWSQ(dim, half, spec.links, product)
        graph.hnsw.efConstruction = spec.construction
        return graph, {"codes": "fp16", "links": spec.links, "construction": spec.construction}
    inverted = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dim), dim, lists, half, product, False)
    inverted.cp.niter, inverted.cp.seed, inverted.cp.spherical = _KMEANS_ROUNDS, spec.seed, True
    return inverted, {"codes": "fp16", "lists": lists, "seed": spec.seed}


@contextlib.contextmanager
def _faiss_threads(threads: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _seal(draft: Draft, record: IndexRecord, gate: GateRecord, now: datetime, progress: Progress) -> Manifest:
    """Hash and flush every file, make them read-only, write the manifest last."""
    directory, table = draft.directory, draft.table
    files: dict[str, FileEntry] = {}
    written = sorted(path for path in directory.iterdir() if path.is_file())
    for number, path in enumerate(written):
        progress("hash", number / len(written))
        sync_file(path)
        path.chmod(0o444)
        files[path.name] = FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
    try:
        json.dumps(table.model, allow_nan=False)
        manifest = Manifest.seal(
            created=now.astimezone(UTC).replace(microsecond=0),
            slots=tuple((slot.name, slot.dim) for slot in table.layout.slots),
            dtype=str(table.vectors.dtype),
            items=len(table),
            indexed=int(draft.indexed.sum()),
            max_history=draft.encoder.max_history,
            model=table.model,
            index=record,
            gate=gate,
            files=files,
        )
        text = manifest.to_json()
    except (TypeError, ValueError) as error:
        raise IndexSpecError(f"the provenance of the item table must be JSON ({error}); embed it again") from error
    (directory / MANIFEST_FILE).write_text(text)
    sync_file(directory / MANIFEST_FILE)
    sync_directory(directory)
    return manifest


def _put_in_place(directory: Path, final: Path) -> Path:
    if final.exists():  # the same content within the same second: what is there is as good
        return final
    directory.rename(final)
    sync_directory(final.parent)
    return final
