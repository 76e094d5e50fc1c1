"""Made catalogues for benches: vectors with clusters and a low intrinsic dimension, histories of like items.

Uniform random vectors would make every approximate index look broken (nothing is near anything). Here an item is a
point of 36 latent dimensions around one of 256 centres: 12 that all slots see and 8 that each slot sees alone. Its
slots text, image and behaviour are linear images of them in 64 dimensions each, with a little noise. Every twentieth
item has no picture, every tenth no behaviour yet.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from index.slots import BEHAVIOUR, IMAGE, TEXT, Slot, SlotLayout

LAYOUT = SlotLayout((Slot(TEXT, 64), Slot(IMAGE, 64), Slot(BEHAVIOUR, 64)))

_BLOCK_ROWS = 65_536
_CENTRES = 256
_SHARED, _OWN = 12, 8
_SPREAD = 1.5  # of the items around their centre, where the centres spread by 1: hard for lists, easy for no index
_NOISE = 0.05
_WITHOUT_PICTURE, _WITHOUT_BEHAVIOUR = 20, 10


def vector_blocks(rows: int, seed: int = 0) -> Iterator[NDArray[np.float16]]:
    """Stored vectors in blocks of at most 65,536 rows; the same seed gives the same rows, however many there are."""
    rng = np.random.default_rng(seed)
    latent = _SHARED + _OWN * len(LAYOUT.slots)
    centres = rng.normal(size=(_CENTRES, latent)).astype(np.float32)
    popular = rng.dirichlet(np.full(_CENTRES, 2.0))
    seen = [np.r_[:_SHARED, _SHARED + _OWN * slot : _SHARED + _OWN * (slot + 1)] for slot in range(len(LAYOUT.slots))]
    maps = [rng.normal(size=(_SHARED + _OWN, slot.dim)).astype(np.float32) for slot in LAYOUT.slots]
    for start in range(0, rows, _BLOCK_ROWS):
        own = np.random.default_rng((seed, start))
        point = centres[own.choice(_CENTRES, _BLOCK_ROWS, p=popular)]
        point += _SPREAD * own.standard_normal(point.shape, dtype=np.float32)
        slots = {}
        for slot, part, image in zip(LAYOUT.slots, seen, maps, strict=True):
            block = point[:, part] @ image / np.sqrt(np.float32(len(part)))
            slots[slot.name] = block + _NOISE * own.standard_normal(block.shape, dtype=np.float32)
        slots[IMAGE][own.integers(_WITHOUT_PICTURE, size=_BLOCK_ROWS) == 0] = 0
        slots[BEHAVIOUR][own.integers(_WITHOUT_BEHAVIOUR, size=_BLOCK_ROWS) == 0] = 0
        yield LAYOUT.stack(slots)[: rows - start].astype(np.float16)


def made_vectors(rows: int, seed: int = 0) -> NDArray[np.float16]:
    """(rows, 192) float16 stored vectors, made block by block."""
    vectors = np.empty((rows, LAYOUT.dim), dtype=np.float16)
    start = 0
    for block in vector_blocks(rows, seed):
        vectors[start : start + len(block)] = block
        start += len(block)
    return vectors


def made_histories(vectors: NDArray[np.floating], count: int, length: int = 10, seed: int = 0) -> NDArray[np.int64]:
    """(count, length) int64 rows: an item at random and those most like it among 2,000 others, as a user would take.

    Args:
        vectors: (n, Σd) stored vectors, n ≥ ``length``.
        count: histories wanted.
        length: items of each.
        seed: of the choice.
    """
    rng = np.random.default_rng((seed, 1))
    histories = np.empty((count, length), dtype=np.int64)
    for row in histories:
        pool = rng.choice(len(vectors), min(2000, len(vectors)), replace=False)
        near = np.asarray(vectors[pool], np.float32) @ np.asarray(vectors[pool[0]], np.float32)
        row[:] = pool[np.argsort(-near, kind="stable")[:length]]
    return histories
