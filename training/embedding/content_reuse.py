"""Reuses the vectors of texts and pictures that were embedded before, for any item.

The vector of a text or picture depends on nothing else, so it is found by content hash: among the current vectors and
among the unused ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.embedding.content_hashes import ContentHashes
from training.embedding.store import Embeddings
from training.embedding.unused_vectors import CONTENT, CONTENT_OF, PLACE, SLOT, UnusedVectors, contents_of, next_unused

_NORM_TOLERANCE = 1e-3
_BLOCK_ROWS = 8_192


@dataclass(frozen=True)
class KnownVectors:
    """Current and unused vectors by content.

    A place is the row of a current vector, or n + the row of an unused vector of the same slot, where n is the number
    of items.

    Attributes:
        base: the current embeddings, n items.
        contents: hashes of their items.
        unused: vectors that none of these items uses.
    """

    base: Embeddings
    contents: ContentHashes
    unused: UnusedVectors

    def take(self, slot: str, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """(m, D) float32 vectors at these places; zero for place −1."""
        block = self.base.vectors[slot]
        made = np.zeros((len(places), block.shape[1]), dtype=np.float32)
        ours = (places >= 0) & (places < len(self.base))
        made[ours] = block[places[ours]]
        others = places >= len(self.base)
        if others.any():
            made[others] = self.unused.vectors[slot][places[others] - len(self.base)]
        return made

    def find(self, slot: str, asked: pl.Series) -> NDArray[np.int64]:
        """Places of the vectors of a slot with these content hashes.

        Args:
            slot: name of the slot.
            asked: (m,) hashes, null for none.

        Returns:
            (m,) int64, −1 if there is no vector of length 1.
        """
        unused = self.unused.frame.filter(pl.col(SLOT) == slot).with_row_index(PLACE)
        later = unused.select(CONTENT, pl.col(PLACE).cast(pl.Int64) + len(self.base))
        is_asked = pl.col(CONTENT).is_in(asked.unique().implode())  # few: the others would only take memory
        known = pl.concat([part.filter(is_asked) for part in (contents_of(slot, self.contents), later)])
        known = known.unique(CONTENT, keep="first", maintain_order=True)
        joined = asked.rename(CONTENT).to_frame().join(known, on=CONTENT, how="left", maintain_order="left")
        places = joined[PLACE].fill_null(-1).to_numpy().astype(np.int64)
        found = np.flatnonzero(places >= 0)
        for start in range(0, len(found), _BLOCK_ROWS):
            rows = found[start : start + _BLOCK_ROWS]
            lengths = np.linalg.norm(self.take(slot, places[rows]), axis=1)
            places[rows[~(np.abs(lengths - 1) <= _NORM_TOLERANCE)]] = -1
        return places

    def next_unused(self, now: ContentHashes, number: int) -> pl.DataFrame:
        """Vectors of length 1 that become or stay unused, see
        :func:`training.embedding.unused_vectors.next_unused`.

        Args:
            now: hashes of the items of the new set.
            number: of the new set.
        """
        frame = next_unused(self.contents, self.unused, now, number)
        kept = []
        for slot in self.base.vectors:
            part = frame.filter(pl.col(SLOT) == slot)
            places = part[PLACE].to_numpy()
            whole = np.zeros(len(places), dtype=np.bool_)
            for start in range(0, len(places), _BLOCK_ROWS):
                lengths = np.linalg.norm(self.take(slot, places[start : start + _BLOCK_ROWS]), axis=1)
                whole[start : start + _BLOCK_ROWS] = np.abs(lengths - 1) <= _NORM_TOLERANCE
            kept.append(part.filter(pl.Series(whole, dtype=pl.Boolean)))
        return pl.concat(kept) if kept else frame.clear()


@dataclass(frozen=True)
class Reuse:
    """Items of a catalogue whose vectors are known by content.

    Attributes:
        rows: (m,) int64, their rows in the catalogue, ascending.
        places: slot → (m,) int64 places in ``known``, −1 if the item lacks the modality.
        known: the known vectors.
    """

    rows: NDArray[np.int64]
    places: Mapping[str, NDArray[np.int64]]
    known: KnownVectors

    @classmethod
    def find(cls, known: KnownVectors, contents: ContentHashes, changed: NDArray[np.int64]) -> "Reuse":
        """Find known vectors for the new and changed items of a catalogue.

        Args:
            known: the known vectors.
            contents: hashes of the catalogue's items.
            changed: (c,) int64 rows of new and changed items, ascending.
        """
        whole = np.ones(len(changed), dtype=np.bool_)
        places: dict[str, NDArray[np.int64]] = {}
        for slot in known.base.vectors:
            asked = contents.frame[CONTENT_OF[slot]].gather(changed)
            places[slot] = known.find(slot, asked)
            whole &= asked.is_null().to_numpy() | (places[slot] >= 0)
        return cls(changed[whole], {slot: found[whole] for slot, found in places.items()}, known)
