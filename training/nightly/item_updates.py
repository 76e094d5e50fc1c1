"""Updates the item table of a changed catalogue: keeps the rows of unchanged items and makes the others again."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.bundle.integrity import sync_directory, sync_file, verify_files
from index.bundle.manifest import Manifest
from index.errors import IndexingError
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from index.items.modality_status import ModalityStatus
from index.items.modality_status import imputed as imputed_rows
from index.items.slots import BEHAVIOUR
from index.items.thumbnails import Thumbnails
from training.backbones.identity import differences
from training.data.dataset import Dataset
from training.data.thumbnails import MARK, VERSION
from training.embedding.content_hashes import ContentHashes, Delta
from training.embedding.store import Embeddings
from training.encoder.encoder_files import CONTENTS_FILE, missing_record
from training.encoder.imputation import BehaviourImputation
from training.encoder.loaded import FittedEncoder
from training.encoder.model import SlotProjection
from training.encoder.projection import load_projection, project
from training.errors import EmbeddingsError

INPUTS = "reindex"
"""Key of the fingerprints of the inputs in an item table's provenance."""
_TABLE = re.compile(r"table-(\d{6})")
_BLOCK_ROWS = 16_384
_ROUNDING = 0.01
"""Of the length of a vector in float16; calibrated lengths lie further apart."""


def inputs_of(bundle: Path) -> dict[str, Any] | None:
    """The fingerprints of a bundle's inputs; None if no job made it.

    Raises:
        BundleError: it is damaged; all files are verified.
    """
    manifest = Manifest.read(bundle)
    verify_files(bundle, manifest, "full")
    found = manifest.model.get(INPUTS)
    return dict(found) if isinstance(found, dict) else None


@dataclass(frozen=True)
class KeptTable:
    """A table whose rows can be kept.

    Attributes:
        table: the items.
        contents: hashes of their sources; None if unknown for vectors of this model, then no row is kept.
        number: of the table in ``RUN/reindex``; 0 for the table of the fitted encoder.
    """

    table: ItemTable
    contents: ContentHashes | None
    number: int

    def delta(self, contents: ContentHashes) -> Delta:
        """The difference between a catalogue and this table; without contents every known item counts as changed."""
        if self.contents is not None:
            return contents.against(self.contents)
        places = (self.table.ids.row(item_id) for item_id in contents.item_ids())
        was = np.array([-1 if place is None else place for place in places], dtype=np.int64)
        return Delta(was, np.zeros(len(was), dtype=np.bool_), len(self.table) - int((was >= 0).sum()))

    @classmethod
    def newest(cls, directory: Path, fitted: FittedEncoder, model: Mapping[str, Any]) -> "KeptTable":
        """The newest readable table for this encoder and model, else the table of the fitted encoder.

        Args:
            directory: ``RUN/reindex``.
            fitted: the encoder.
            model: provenance of the model that embeds.
        """
        numbers = sorted((number for number, _ in _tables(directory)), reverse=True)
        for number in numbers:
            path = directory / f"table-{number:06d}"
            try:
                kept = cls(ItemTable.load(path), ContentHashes.load(path / CONTENTS_FILE), number)
            except (IndexingError, EmbeddingsError):
                continue
            if kept.table.model.get(INPUTS, {}).get("encoder") == fitted.mark and kept._of(model):
                return kept
        first = cls(fitted.table, fitted.contents, 0)
        return first if first._of(model) else cls(fitted.table, None, 0)

    def pictures(self, contents: ContentHashes) -> tuple[Thumbnails | None, NDArray[np.int64]]:
        """The thumbnails of the table, and the row of each item among them.

        Returns:
            The thumbnails, None if they are of another version; (n,) int64 rows, −1 for a new or changed item.
        """
        delta = self.delta(contents)
        usable = self.table.model.get(MARK) == VERSION
        return (self.table.thumbnails if usable else None), np.where(delta.same, delta.was, -1)

    def _of(self, model: Mapping[str, Any]) -> bool:
        return not differences(dict(self.table.model.get("embeddings", {})), dict(model))


def updated_table(
    dataset: Dataset,
    embeddings: Embeddings,
    contents: ContentHashes,
    fitted: FittedEncoder,
    kept: KeptTable,
    popularity: NDArray[np.int64],
    provenance: Mapping[str, Any],
    thumbnails: Thumbnails | None,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> ItemTable:
    """Make the item table of a changed catalogue.

    An unchanged item keeps its stored row byte for byte. The others are projected and stacked. An item of the fitted
    table keeps a behaviour vector of its own; it is imputed for a new item, and again when the length of an imputed
    vector is to be another, as the item has events now.

    Args:
        dataset: the catalogue.
        embeddings: of the same catalogue.
        contents: hashes of its items.
        fitted: the encoder, with the behaviour vectors.
        kept: the table with the rows to keep.
        popularity: (n,) int64 training events per item.
        provenance: of the new table.
        thumbnails: of the same catalogue.
        progress: called with the numbers of finished and of all changed items.

    Raises:
        EmbeddingsError: the projection cannot be read or does not fit.
    """
    layout = fitted.table.layout
    delta = kept.delta(contents)
    vectors = np.zeros((len(contents), layout.dim), dtype=fitted.table.vectors.dtype)
    imputation = fitted.imputation
    unchanged = delta.same & ~_imputed_anew(kept, delta, popularity, imputation)
    same, others = np.flatnonzero(unchanged), np.flatnonzero(~unchanged)
    vectors[same] = kept.table.vectors[delta.was[same]]
    imputed = np.zeros(len(contents), dtype=np.bool_)
    imputed[same] = imputed_rows(kept.table.missing_record(), layout, kept.table.vectors)[delta.was[same]]
    projection = load_projection(fitted.projection) if len(others) else None
    for start in range(0, len(others), _BLOCK_ROWS):
        progress(start, len(others))
        rows = others[start : start + _BLOCK_ROWS]
        if projection is not None:
            stacked, imputed[rows] = _stacked(embeddings, rows, fitted, projection, imputation, popularity[rows])
            vectors[rows] = stacked.astype(vectors.dtype)
    return ItemTable(
        layout=layout,
        ids=ItemIds(embeddings.item_ids),
        vectors=vectors,
        popularity=popularity,
        metadata=dataset.metadata(),
        model=dict(provenance),
        missing=missing_record(layout, vectors, embeddings, contents.not_found(), imputed),
        thumbnails=thumbnails,
    )


def _imputed_anew(
    kept: KeptTable, delta: Delta, popularity: NDArray[np.int64], imputation: BehaviourImputation | None
) -> NDArray[np.bool_]:
    """(n,) bool: items of the kept table whose behaviour vector is imputed, and of another length than it is to have.

    Its events have begun, or an earlier version stored it.
    """
    table, again = kept.table, np.zeros(len(popularity), dtype=np.bool_)
    if imputation is None:
        return again
    imputed = imputed_rows(table.missing_record(), table.layout, table.vectors)
    rows = np.flatnonzero((delta.was >= 0) & imputed[np.maximum(delta.was, 0)])
    found = table.layout.lengths(BEHAVIOUR, table.vectors[delta.was[rows]])
    again[rows] = np.abs(found - imputation.lengths(popularity[rows])) > _ROUNDING
    return again


def _stacked(
    embeddings: Embeddings,
    rows: NDArray[np.int64],
    fitted: FittedEncoder,
    projection: SlotProjection,
    imputation: BehaviourImputation | None,
    counts: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Stored vectors of some items, (rows, Σd), and which of them have an imputed behaviour vector, (rows,)."""
    ids = [embeddings.item_ids[row] for row in rows.tolist()]
    some = Embeddings(ids, {name: np.asarray(block[rows]) for name, block in embeddings.vectors.items()})
    slots: dict[str, NDArray[np.floating]] = dict(project(some, projection))
    layout, table = fitted.table.layout, fitted.table
    if BEHAVIOUR not in layout.names:
        return layout.stack(slots), np.zeros(len(ids), dtype=np.bool_)
    part = layout.slice(BEHAVIOUR)
    behaviour = np.zeros((len(ids), part.stop - part.start), dtype=np.float32)
    places = np.array([-1 if (row := table.ids.row(item_id)) is None else row for item_id in ids], dtype=np.int64)
    own = table.missing_record()[:, layout.names.index(BEHAVIOUR)] == ModalityStatus.PRESENT
    known = np.flatnonzero((places >= 0) & own[np.maximum(places, 0)])
    behaviour[known] = table.vectors[places[known], part]
    slots[BEHAVIOUR] = behaviour
    if imputation is None:
        return layout.stack(slots), np.zeros(len(ids), dtype=np.bool_)
    slots, lengths, imputed = imputation.fill(slots, some.vectors, counts)
    return layout.stack(slots, {BEHAVIOUR: lengths}), imputed


def remap_queries(queries: EvaluationQueries, before: ItemIds, now: ItemIds) -> EvaluationQueries:
    """Translate evaluation queries to the rows of another catalogue.

    Deleted items are removed from the histories. A query without target or history is removed.

    Args:
        queries: rows of ``before``.
        before: the catalogue of the queries.
        now: the new catalogue.
    """
    rows = np.array([-1 if (row := now.row(before.id(old))) is None else row for old in range(len(before))], np.int64)
    histories = np.full(queries.histories.shape, -1, dtype=np.int64)
    targets = rows[queries.targets] if len(queries) else queries.targets
    for number in range(len(queries)):
        left = rows[queries.history(number)]
        left = left[left >= 0]
        histories[number, : len(left)] = left
    whole = targets >= 0
    if histories.size:
        whole &= histories[:, 0] >= 0
    return EvaluationQueries(histories[whole], targets[whole])


def keep_table(directory: Path, table: ItemTable, contents: ContentHashes) -> None:
    """Write a table durably, then remove the earlier ones.

    Args:
        directory: ``RUN/reindex``; made if needed.
        table: the items.
        contents: hashes of their sources.

    Raises:
        ItemTableError: a vector is not finite.
    """
    number = max((number for number, _ in _tables(directory)), default=0) + 1
    final = directory / f"table-{number:06d}"
    partial = directory / f".{final.name}.part"
    shutil.rmtree(partial, ignore_errors=True)
    table.save(partial)
    contents.save(partial / CONTENTS_FILE)
    for path in partial.iterdir():
        sync_file(path)
    sync_directory(partial)
    partial.rename(final)
    sync_directory(directory)
    remove_tables(directory, keep=number)


def remove_tables(directory: Path, *, keep: int) -> None:
    """Remove all tables except one, and incomplete tables of a killed job."""
    for number, path in _tables(directory):
        if number != keep:
            shutil.rmtree(path, ignore_errors=True)
    for path in directory.glob(".table-*.part"):
        shutil.rmtree(path, ignore_errors=True)


def _tables(directory: Path) -> list[tuple[int, Path]]:
    found = ((_TABLE.fullmatch(path.name), path) for path in directory.glob("table-*"))
    return sorted((int(name[1]), path) for name, path in found if name is not None)
