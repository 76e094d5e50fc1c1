"""Keeps the vectors of texts and pictures that items no longer use, by content hash.

A picture that returns (after a missing mount or an accidental deletion) then needs no embedding. Vectors are kept for
:data:`KEPT_SETS` sets of embeddings; per slot there are never more than the catalogue had items in that time, the most
recent first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.items.slots import IMAGE, TEXT
from training.embedding.content_hashes import NOT_READ, PICTURE_HASH, TEXT_HASH, ContentHashes

KEPT_SETS = 30
"""Number of later sets of embeddings for which an unused vector is kept."""
CONTENT_OF: Mapping[str, str] = {TEXT: TEXT_HASH, IMAGE: PICTURE_HASH}
"""Slot → the column of :class:`ContentHashes` with the hash of the vector's source."""
SLOT, CONTENT, SINCE, ITEMS, PLACE = "slot", "content", "since", "items", "place"
SCHEMA = pl.Schema({SLOT: pl.String(), CONTENT: pl.String(), SINCE: pl.Int64(), ITEMS: pl.Int64()})
_NONE = pl.DataFrame(schema=SCHEMA)


@dataclass(frozen=True)
class UnusedVectors:
    """Vectors by content.

    Attributes:
        frame: ``slot``; ``content``, the hash of the vector's source; ``since``, the number of the first set of
            embeddings without it; ``items``, the number of items of the set before.
        vectors: slot → (m, D) float32, rows as those of the slot in ``frame``.
    """

    frame: pl.DataFrame = field(default_factory=lambda: _NONE)
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of vectors."""
        return self.frame.height

    def fits(self, dims: Mapping[str, int]) -> bool:
        """Whether frame and vectors agree with each other and with these vector lengths."""
        counts = dict(self.frame.group_by(SLOT).len().iter_rows()) if self.frame.schema == SCHEMA else None
        shapes = {slot: block.shape for slot, block in self.vectors.items()}
        return counts is not None and shapes == {slot: (count, dims.get(slot)) for slot, count in counts.items()}


def contents_of(slot: str, contents: ContentHashes) -> pl.DataFrame:
    """``content`` hash and ``place`` (row) of the vectors of a slot, for rows with a vector."""
    column = pl.col(CONTENT_OF[slot]).alias(CONTENT)
    return (
        contents.frame.select(column)
        .with_row_index(PLACE)
        .select(CONTENT, pl.col(PLACE).cast(pl.Int64))
        .filter(pl.col(CONTENT).is_not_null() & (pl.col(CONTENT) != NOT_READ))
    )


def next_unused(before: ContentHashes, earlier: UnusedVectors, now: ContentHashes, number: int) -> pl.DataFrame:
    """The unused vectors to keep beside a new set of embeddings.

    Args:
        before: hashes of the items of the current set, n rows.
        earlier: vectors that were unused before.
        now: hashes of the items of the new set.
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
