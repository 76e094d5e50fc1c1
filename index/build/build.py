"""Builds a bundle from an item table, an encoder and evaluation queries, and measures it.

All files are written into a hidden directory, flushed to the disk and renamed in one step, so a killed build leaves
nothing that loads as a bundle.
"""

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.build.faiss_file import Progress, write_index
from index.bundle.encoder_pair import EncoderPair
from index.bundle.event_types import EventTypes
from index.bundle.index_spec import IndexSpec
from index.bundle.integrity import sha256_of, sync_directory, sync_file
from index.bundle.manifest import (
    ENCODER_FILE,
    EVALUATION_QUERIES_FILE,
    INDEXED_FILE,
    ITEMS_FILE,
    LISTS_DIRECTORY,
    MANIFEST_FILE,
    FileEntry,
    GateRecord,
    IndexRecord,
    ListsRecord,
    Manifest,
)
from index.bundle.permissions import READ_ONLY
from index.bundle.quality import Quality
from index.errors import BundleError, EncoderError, IndexSpecError, ItemListError
from index.evaluation.report import BundleDraft, write_report
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import MISSING_FILE, VECTORS_FILE, ItemTable
from index.items.items_file import ItemsFile
from index.items.thumbnails import THUMBNAILS_FILE
from index.lists.item_lists import ItemLists
from index.machine.disk import describe_disk_error, new_array_file
from index.machine.locks import directory_lock
from index.search.encoder import OnnxSequenceEncoder

_BUILDING = ".building-"
_BLOCK_ROWS = 65_536


def build_bundle(
    table: ItemTable,
    encoder: Path,
    evaluation_queries: EvaluationQueries,
    out: Path,
    spec: IndexSpec | None = None,
    *,
    lists: ItemLists | None = None,
    evaluation: Mapping[str, Any] | None = None,
    exclude_seen: bool = True,
    event_types: EventTypes | None = None,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> Path:
    """Build a bundle and measure it.

    Args:
        table: the items. After a refit their provenance names the served and the measured encoder.
        encoder: path of ``encoder.onnx``, with the same slots as the table.
        evaluation_queries: held-out histories as rows of the table; may be empty.
        out: directory in which ``<bundle id>/`` is created; created if missing.
        spec: specification of the index; the defaults of :class:`IndexSpec` if None.
        lists: item-to-item lists of the table; those without weight or slot are left out. Without any, the bundle has
            format 2 instead of 3.
        evaluation: content of the file that ``vlm2rec evaluate --json`` wrote about this encoder; its figures are
            checked against the bounds. After a refit it must name the table's two encoders.
        exclude_seen: default of requests: whether recommendations exclude the items of the user's history.
        event_types: what the types of events meant in training; None: training read no types.
        now: time of the build, aware; the current time if None.
        progress: called with the name of a stage and the share of it done, 0 … 1.

    Returns:
        The bundle's directory.

    Raises:
        IndexSpecError: nothing to index, values that are not finite, a bound on a slot that the items do not have, an
            evaluation of another encoder or pair of encoders, or a table that was refitted with another encoder.
        ItemListError: the lists are of another catalogue, or an entry breaks a rule.
        EncoderError: the encoder cannot be loaded or is for other slots.
        ItemTableError: an evaluation query names a row that does not exist, or a metadata column has a type that a
            bundle cannot store.
        BundleError: the directory cannot be written.
    """
    spec = spec or IndexSpec()
    report_progress = progress or (lambda _stage, _share: None)
    refit = EncoderPair.of_items(table.model)
    model = _open_encoder(encoder, table, spec.threads, refit)
    _check(table, evaluation_queries, spec)
    used = None if lists is None else _used(lists, table)
    created = now or datetime.now(UTC)
    quality = _quality(evaluation, encoder, used, refit, exclude_seen=exclude_seen)
    with _disk_errors(out), _scratch(out) as directory:
        indexed = _write_items(table, directory, report_progress)
        _write_queried(encoder, evaluation_queries, used, directory, report_progress)
        draft = BundleDraft(directory, table, indexed, model, evaluation_queries, spec, used, refit)
        choice, made = write_index(draft, report_progress)
        record, gate = write_report(draft, choice.kind, choice.reason, made, quality, created, report_progress)
        given: dict[str, Any] = {"exclude_seen": exclude_seen, "event_types": event_types}
        manifest = _seal(draft, record, gate, created, report_progress, **given)
        return _put_in_place(directory, out / manifest.id)


def _check(table: ItemTable, evaluation_queries: EvaluationQueries, spec: IndexSpec) -> None:
    """Check what can be refused before anything is written.

    Raises:
        ItemTableError: an evaluation query names a row that does not exist.
        IndexSpecError: a bound on a slot or a licence that the items do not have.
    """
    evaluation_queries.check_rows(len(table))
    spec.bounds.check_slots(table.layout)
    spec.bounds.check_licences(table.model)


def _quality(
    evaluation: Mapping[str, Any] | None,
    encoder: Path,
    lists: ItemLists | None,
    refit: EncoderPair | None,
    *,
    exclude_seen: bool,
) -> Quality | None:
    """The figures of an evaluation; None without one.

    Raises:
        IndexSpecError: it is of another encoder, pair of encoders or setting.
    """
    if evaluation is None:
        return None
    weights = {} if lists is None else lists.weights.weights
    return Quality.read(evaluation, encoder, exclude_seen=exclude_seen, lists=weights, refit=refit)


def _open_encoder(encoder: Path, table: ItemTable, threads: int, refit: EncoderPair | None) -> OnnxSequenceEncoder:
    """Load the encoder.

    Raises:
        EncoderError: it cannot be loaded, or is for other slots than the table has.
        IndexSpecError: the table was refitted with another encoder.
    """
    if refit is not None:
        refit.check_served(encoder)
    model = OnnxSequenceEncoder(encoder, threads=threads)
    if model.layout != table.layout:
        raise EncoderError(
            f"{encoder}: the encoder is for the slots {model.layout.slots}, the item table has {table.layout.slots}; "
            "fit the encoder again"
        )
    return model


def _used(lists: ItemLists, table: ItemTable) -> ItemLists | None:
    """The lists that add to a score; None if there are none.

    Raises:
        ItemListError: the lists are of another catalogue.
    """
    if lists.items != len(table):
        raise ItemListError(
            f"the lists are of {lists.items} items, the item table has {len(table)}; fit the encoder again"
        )
    used = lists.used().for_layout(table.layout)
    return used if used.lists else None


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Turn what the operating system or Arrow says of a disk into a :class:`BundleError`."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise BundleError(describe_disk_error(error, out, "build again", what="the bundle")) from error


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A hidden directory, removed at the end unless it was renamed; leftovers of killed builds are removed first.

    A build holds a lock on its directory. The kernel releases it when the process ends, so an unlocked directory is the
    leftover of a killed build.
    """
    out.mkdir(parents=True, exist_ok=True)
    for leftover in out.glob(f"{_BUILDING}*"):
        with contextlib.suppress(OSError), directory_lock(leftover):
            shutil.rmtree(leftover)
    directory = out / f"{_BUILDING}{uuid.uuid4().hex}"
    directory.mkdir()
    with directory_lock(directory):
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _write_items(table: ItemTable, directory: Path, progress: Progress) -> NDArray[np.bool_]:
    """Write vectors, items and the mask of indexed rows; returns the mask, (n,) bool."""
    vectors = new_array_file(directory / VECTORS_FILE, table.vectors.dtype, table.vectors.shape)
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
    progress("items", 0.0)
    ItemsFile(table.ids, table.popularity, table.metadata).save(directory / ITEMS_FILE)
    if table.thumbnails is not None:
        table.thumbnails.copy_to(directory / THUMBNAILS_FILE)
    return indexed


def _write_queried(
    encoder: Path, queries: EvaluationQueries, lists: ItemLists | None, directory: Path, progress: Progress
) -> None:
    """Write what a search reads beside the vectors, and the queries that measure it."""
    shutil.copyfile(encoder, directory / ENCODER_FILE)
    queries.save(directory / EVALUATION_QUERIES_FILE)
    if lists is not None:
        progress("lists", 0.0)
        lists.save(directory / LISTS_DIRECTORY)


def _seal(
    draft: BundleDraft,
    record: IndexRecord,
    gate: GateRecord,
    now: datetime,
    progress: Progress,
    *,
    exclude_seen: bool,
    event_types: EventTypes | None,
) -> Manifest:
    """Hash and flush every file, make it read-only, and write the manifest last."""
    directory, table = draft.directory, draft.table
    files: dict[str, FileEntry] = {}
    written = sorted(path for path in directory.rglob("*") if path.is_file())
    for number, path in enumerate(written):
        progress("hash", number / len(written))
        sync_file(path)
        path.chmod(READ_ONLY)
        files[path.relative_to(directory).as_posix()] = FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
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
            exclude_seen=exclude_seen,
            event_types=event_types,
            fresh_share=float(draft.spec.fresh_share),
            lists=None if draft.lists is None else ListsRecord.of(draft.lists),
            refit=draft.refit,
            files=files,
        )
        text = manifest.to_json()
    except (TypeError, ValueError) as error:
        raise IndexSpecError(f"the provenance of the item table must be JSON ({error}); embed it again") from error
    (directory / MANIFEST_FILE).write_text(text)
    (directory / MANIFEST_FILE).chmod(READ_ONLY)
    sync_file(directory / MANIFEST_FILE)
    for written_to in {path.parent for path in written}:
        sync_directory(written_to)
    return manifest


def _put_in_place(directory: Path, final: Path) -> Path:
    if final.exists():  # built from the same content within the same second
        return final
    directory.rename(final)
    sync_directory(final.parent)
    return final
