"""Audits the items of a bundle: missing modalities, repeated pictures, texts and pictures that disagree.

The audit reads the stored vectors and the missing-modality record, so it covers the data that will be served.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.evaluation.disagreement import NEAREST, Disagreement, disagreement
from index.evaluation.near_duplicates import COSINE, NearDuplicates, near_duplicates
from index.evaluation.neighbours import nearest, sample_rows
from index.items.item_table import ItemTable
from index.items.modality_status import ModalityStatus, imputed
from index.items.slots import BEHAVIOUR, IMAGE, TEXT, SlotLayout

_COMPARISONS = 500_000_000  # a few seconds on two cores; up to 22,000 pictures are compared each with each
_SMALLEST_SAMPLE = 2_000
_EXAMPLES = 10
_NAMED = 5  # named items of a group, and named neighbours of an item
_LONGEST_TITLE = 160
_BINS = 20  # of the histogram of p

_FILES = (ModalityStatus.UNREADABLE, ModalityStatus.NOT_FOUND)
_MODALITIES = (ModalityStatus.ABSENT, *_FILES)


@dataclass(frozen=True)
class CatalogueAudit:
    """Findings of the audit, for the gate and the report.

    Attributes:
        layout: the slots.
        missing: (n, slots) uint8 codes of :class:`index.items.modality_status.ModalityStatus`.
        imputed: number of items with an imputed behaviour vector.
        pictures: repeated pictures; None if fewer than two items have a picture.
        disagreeing: items whose text and picture disagree; None if too few items have both.
        names: row → id and title.
    """

    layout: SlotLayout
    missing: NDArray[np.uint8]
    imputed: int
    pictures: NearDuplicates | None
    disagreeing: Disagreement | None
    names: "ItemNames"

    def figures(self) -> dict[str, float]:
        """Share of items by figure, 0 … 1, without figures that could not be measured."""
        figures = {
            f"missing.{name}": float((self.missing[:, column] != ModalityStatus.PRESENT).mean())
            for column, name in enumerate(self.layout.names)
        }
        if self.pictures is not None:
            figures["near_duplicates"] = self.pictures.share
        if self.disagreeing is not None:
            figures["disagreement"] = self.disagreeing.share
        return figures

    def as_json(self) -> dict[str, Any]:
        """The sections ``missing``, ``near_duplicates`` and ``disagreement`` of ``report.json``."""
        return {
            "missing": {name: self._missing_of(column) for column, name in enumerate(self.layout.names)},
            "near_duplicates": None if self.pictures is None else self._pictures(self.pictures),
            "disagreement": None if self.disagreeing is None else self._disagreeing(self.disagreeing),
        }

    def _missing_of(self, column: int) -> dict[str, Any]:
        codes = self.missing[:, column]
        counts = {code.name.lower(): int((codes == code).sum()) for code in ModalityStatus}
        if self.layout.names[column] == BEHAVIOUR:
            counts["imputed"] = self.imputed
        rows = np.flatnonzero(np.isin(codes, [int(code) for code in _MODALITIES]))
        files_first = rows[np.argsort(~np.isin(codes[rows], _FILES), kind="stable")]
        return {**counts, "examples": self.names.of(files_first[:_EXAMPLES].tolist())}

    def _pictures(self, pictures: NearDuplicates) -> dict[str, Any]:
        return {
            "cosine": COSINE,
            "pictured": pictures.pictured,
            "sampled": pictures.sampled,
            "repeated": pictures.repeated,
            "share": pictures.share,
            "groups": [
                {"size": size, "items": self.names.of(rows[:_NAMED])} for rows, size in pictures.groups[:_EXAMPLES]
            ],
        }

    def _disagreeing(self, disagreement: Disagreement) -> dict[str, Any]:
        counts, _ = np.histogram(disagreement.p, bins=_BINS, range=(0.0, 1.0))
        suspects = disagreement.suspects
        return {
            "nearest": NEAREST,
            "sampled": int(disagreement.rows.shape[0]),
            "suspects": int(suspects.shape[0]),
            "share": disagreement.share,
            "text_similarity": {
                "own": round(float(disagreement.own.mean()), 4),
                "strangers": round(float(disagreement.strangers.mean()), 4),
            },
            "p": counts.tolist(),
            "examples": [
                {
                    **self.names.one(int(disagreement.rows[position])),
                    "p": round(float(disagreement.p[position]), 4),
                    "looks_like": self.names.of(disagreement.neighbours[position, :_NAMED].tolist()),
                }
                for position in suspects[:_EXAMPLES]
            ],
        }


class ItemNames:
    """Looks up ids and titles of rows for the report.

    Args:
        table: the items.
    """

    def __init__(self, table: ItemTable) -> None:
        self._ids = table.ids
        has_titles = "title" in table.metadata.column_names and pa.types.is_string(table.metadata.column("title").type)
        self._titles = table.metadata.column("title") if has_titles else None

    def one(self, row: int) -> dict[str, str | None]:
        """``id`` and ``title`` of a row; the title is None if it has none, and truncated if it is long."""
        title = None if self._titles is None else self._titles[row].as_py()
        return {"id": self._ids.id(row), "title": title and title[:_LONGEST_TITLE]}

    def of(self, rows: Iterable[int]) -> list[dict[str, str | None]]:
        """As :meth:`one`, for several rows."""
        return [self.one(row) for row in rows]


def audit_catalogue(
    table: ItemTable,
    vectors: NDArray[np.floating],
    missing: NDArray[np.uint8],
    *,
    seed: int,
    progress: Callable[[float], None],
) -> CatalogueAudit:
    """Audit the items; in a large catalogue a sample is compared with all items.

    Args:
        table: the items.
        vectors: (n, Σd) stored vectors.
        missing: (n, slots) uint8 codes of :class:`index.items.modality_status.ModalityStatus`.
        seed: seed of the sample.
        progress: called with the share done, 0 … 1.
    """
    layout, names = table.layout, ItemNames(table)
    has = {name: missing[:, column] == ModalityStatus.PRESENT for column, name in enumerate(layout.names)}
    nothing = np.zeros(len(table), dtype=np.bool_)
    filled = int(np.count_nonzero(imputed(missing, layout, vectors)))
    pictured = np.flatnonzero(has.get(IMAGE, nothing))
    if pictured.shape[0] < 2:
        return CatalogueAudit(layout, missing, filled, None, None, names)
    both = has[IMAGE] & has.get(TEXT, nothing)
    near = nearest(
        vectors,
        layout.slice(IMAGE),
        pictured,
        both,
        sample_rows(pictured, comparisons=_COMPARISONS, smallest=_SMALLEST_SAMPLE, seed=seed),
        k=NEAREST,
        bound=COSINE,
        progress=progress,
    )
    agreement = disagreement(vectors, layout.slice(TEXT), np.flatnonzero(both), near, seed=seed) if both.any() else None
    return CatalogueAudit(layout, missing, filled, near_duplicates(near, pictured.shape[0]), agreement, names)
