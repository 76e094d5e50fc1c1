"""UnusedVectors: vectors of texts and pictures that no item has any more, kept for a while by what they were made of.

A picture that comes back (a mount that was missing for a night, an item that was deleted by mistake) then costs no
embedding. Kept over the next :data:`KEPT_SETS` sets of embeddings, and never more of a slot than the catalogue had
items in that time, those that went last first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.items.slots import IMAGE, TEXT
from training.embedding.content_hashes import NOT_READ, PICTURE_HASH, TEXT_HASH, ContentHashes

KEPT_SETS = 30
"""Over how many later sets of embeddings a vector is kept that no item has any more."""
CONTENT_OF: Mapping[str, str] = {TEXT: TEXT_HASH, IMAGE: PICTURE_HASH}
"""Slot → the column of :class:`ContentHashes` that tells what its vector is made of."""
SLOT, CONTENT, SINCE, ITEMS, PLACE = "slot", "content", "since", "items", "place"
SCHEMA = pl.Schema({SLOT: pl.String(), CONTENT: pl.String(), SINCE: pl.Int64(), ITEMS: pl.Int64()})
_NONE = pl.DataFrame(schema=SCHEMA)


@dataclass(frozen=True)
class UnusedVectors:
    """Vectors by content.

    Attributes:
        frame: ``slot``; ``content``, the hash of what the vector is made of; ``since``, the number of the set of
            embeddings that no longer had it; ``items``, how many items the set before that one had.
        vectors: slot → (m, D) float32, rows as those of the slot in ``frame``.
    """

    frame: pl.DataFrame = field(default_factory=lambda: _NONE)
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of vectors."""
        return self.frame.height

    def fits(self, dims: Mapping[str, int]) -> bool:
        """Whether the parts agree with each other and with embeddings of these lengths."""
        counts = dict(self.frame.group_by(SLOT).len().iter_rows()) if self.frame.schema == SCHEMA else None
        shapes = {slot: block.shape for slot, block in self.vectors.items()}
        return counts is not None and shapes == {slot: (count, dims.get(slot)) for slot, count in counts.items()}


def contents_of(slot: str, contents: ContentHashes) -> pl.DataFrame:
    """What the vectors of a slot are made of: ``content`` and ``place``, the row; only rows that have one."""
    column = pl.col(CONTENT_OF[slot]).alias(CONTENT)
    return (
        contents.frame.select(column)
        .with_row_index(PLACE)
        .select(CONTENT, pl.col(PLACE).cast(pl.Int64))
        .filter(pl.col(CONTENT).is_not_null() & (pl.col(CONTENT) != NOT_READ))
    )


def next_unused(before: ContentHashes, earlier: UnusedVectors, now: ContentHashes, number: int) -> pl.DataFrame:
    """Which vectors no item has any more once a new set of embeddings is in force, as far as they are kept.

    Args:
        before: what the items of the set in force are made of, n rows.
        earlier: what was unused already.
        now: what the items of the new set are made of.
        number: of the new set.

    Returns:
        As :attr:`UnusedVectors.frame`, with ``place``: the row among those of ``before``, or n and the row among those
        of the same slot in ``earlier``.
    """
    parts = []
    most = max(len(now), len(before), *earlier.frame[ITEMS].unique().to_list())
    for slot in CONTENT_OF:
        gone = contents_of(slot, before).with_columns(
            pl.lit(slot).alias(SLOT), pl.lit(number, pl.Int64).alias(SINCE), pl.lit(len(before), pl.Int64).alias(ITEMS)
        )
        kept = earlier.frame.filter(pl.col(SLOT) == slot).with_row_index(PLACE)
        kept = kept.with_columns(pl.col(PLACE).cast(pl.Int64) + len(before)).filter(pl.col(SINCE) > number - KEPT_SETS)
        columns = [*SCHEMA, PLACE]
        every = pl.concat([gone.select(columns), kept.select(columns)])
        every = every.unique(CONTENT, keep="first", maintain_order=True)
        every = every.join(contents_of(slot, now), on=CONTENT, how="anti", maintain_order="left")
        parts.append(every.sort(SINCE, descending=True, maintain_order=True).head(most))
    return pl.concat(parts)
