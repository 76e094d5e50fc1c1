"""Finds the nearest items by each modality's vectors for a few examples."""

# Exact cosines over the whole catalogue, in the space of the VLM's own vectors, before any projection.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import Dataset
from training.data.stored.stored_pictures import PictureFile
from training.embedding.store import Embeddings

EXAMPLES = 6
NEAREST = 5
_BLOCK_ROWS = 65_536
_LONGEST_TITLE = 120
_PICTURE_SEARCH = 20
"""Items after a chosen one among which an item with a picture is preferred."""


@dataclass(frozen=True)
class ShownItem:
    """An item in the report.

    Attributes:
        item_id: its id.
        title: its title, else its text, else its id; at most 120 characters.
        picture: its picture file; None if it has none.
    """

    item_id: str
    title: str
    picture: PictureFile | None


@dataclass(frozen=True)
class Neighbour:
    """A nearest item.

    Attributes:
        item: the item.
        cosine: of the two vectors, −1 … 1; higher is nearer.
    """

    item: ShownItem
    cosine: float


@dataclass(frozen=True)
class Example:
    """One item and its nearest items.

    Attributes:
        item: the item.
        nearest: modality → nearest items, nearest first; without the modalities that the item lacks.
    """

    item: ShownItem
    nearest: Mapping[str, Sequence[Neighbour]]


def nearest_items(
    dataset: Dataset, embeddings: Embeddings, *, examples: int = EXAMPLES, nearest: int = NEAREST
) -> list[Example]:
    """Choose a few items and find their nearest items.

    Args:
        dataset: titles and pictures; items missing from it are skipped.
        embeddings: modality vectors; items missing from them are skipped.
        examples: items to choose: evenly spaced in the catalogue among those with most modalities and a picture.
        nearest: items to find for each, by each modality.
    """
    positions = {item_id: row for row, item_id in enumerate(dataset.item_ids())}
    rows = np.array([positions.get(item_id, -1) for item_id in embeddings.item_ids], dtype=np.int64)
    known = rows >= 0
    present = {name: np.asarray(block.any(axis=1)) & known for name, block in embeddings.vectors.items()}
    chosen = _choose(dataset, rows, present, examples)
    found = {
        name: _nearest(block, present[name], [row for row in chosen if present[name][row]], nearest)
        for name, block in embeddings.vectors.items()
    }
    return [
        Example(
            _shown(dataset, int(rows[row])),
            {
                name: [Neighbour(_shown(dataset, int(rows[other])), cosine) for other, cosine in by_row[row]]
                for name, by_row in found.items()
                if row in by_row
            },
        )
        for row in chosen
    ]


def _choose(
    dataset: Dataset, rows: NDArray[np.int64], present: Mapping[str, NDArray[np.bool_]], examples: int
) -> list[int]:
    """Rows of the embeddings among the items with the most modalities."""
    count = np.sum(list(present.values()), axis=0)
    candidates = np.flatnonzero((count == count.max()) & (count > 0))
    if not len(candidates):
        return []
    chosen: list[int] = []
    for start in np.linspace(0, len(candidates), examples, endpoint=False).astype(np.int64).tolist():
        after = [int(row) for row in candidates[start:] if int(row) not in chosen]
        pictured = (row for row in after[:_PICTURE_SEARCH] if dataset.image_path(int(rows[row])) is not None)
        row = next(pictured, after[0] if after else None)
        if row is not None:
            chosen.append(row)
    return chosen


def _nearest(
    block: NDArray[np.float32], present: NDArray[np.bool_], chosen: Sequence[int], nearest: int
) -> dict[int, list[tuple[int, float]]]:
    """Row → (row, cosine) of the nearest other rows that have the modality; of equal ones the earlier row."""
    if not chosen:
        return {}
    queries = np.asarray(block[list(chosen)])
    cosines = np.full((len(chosen), len(block)), -np.inf, dtype=np.float32)
    for start in range(0, len(block), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        cosines[:, part] = np.where(present[part], queries @ np.asarray(block[part]).T, -np.inf)
    cosines[np.arange(len(chosen)), list(chosen)] = -np.inf
    found = {}
    for row, scores in zip(chosen, cosines, strict=True):
        order = np.argsort(-scores, kind="stable")[:nearest]
        found[row] = [(int(other), float(scores[other])) for other in order if np.isfinite(scores[other])]
    return found


def _shown(dataset: Dataset, row: int) -> ShownItem:
    item_id, title, text = dataset.items.row(row)[:3]
    words = next((name for name in (title, text, item_id) if name is not None and name.strip()), item_id)
    words = " ".join(words[: 8 * _LONGEST_TITLE].split())
    shortened = words if len(words) <= _LONGEST_TITLE else words[: _LONGEST_TITLE - 1] + "…"
    return ShownItem(item_id, shortened, dataset.image_path(row))
