"""Sums what item-to-item lists add to the scores of a few rows.

Most entries of the lists are of other items. So a table of marks, by the low bits of a row, drops nearly all of them
before any is compared with the rows. Few calls of numpy are made, as each costs more than its work for one query.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MARKS_PER_ROW = 128  # of 1,500 entries a dozen pass by chance


def row_parts(
    rows: NDArray[np.int64],
    items: int,
    lengths: Sequence[int],
    near: NDArray[np.int32],
    similarities: NDArray[np.float16],
    factors: NDArray[np.float64],
) -> NDArray[np.float32]:
    """What each list adds to the score of each row.

    The entries of a row are added in float64 in the order of the history, newest item first, and then rounded.

    Args:
        rows: (B, k) int64, −1 = none.
        items: number of items of the catalogue n.
        lengths: B, how many of the h items are of each query.
        near: (lists, h, w) int32 neighbours of each item, newest item of each query first.
        similarities: (lists, h, w) float16, 0 beside the entries of an item.
        factors: (lists, h) float64, what the similarities of each item are multiplied with.

    Returns:
        (B, k, lists) float32; 0 where the row is −1, and for a row in no list.
    """
    lists = len(near)
    if not rows.size or not near.size:
        return np.zeros((*rows.shape, lists), dtype=np.float32)
    width, history = near.shape[2], near.shape[1]
    bits = (_MARKS_PER_ROW * rows.shape[1] - 1).bit_length()
    marks, places = rows & ((1 << bits) - 1), near & np.int32((1 << bits) - 1)
    keys, owners = rows, None
    if len(rows) > 1:
        numbers = np.arange(len(rows))
        owners = numbers.repeat(lengths)
        marks += (numbers << bits)[:, None]
        places = places + (owners << bits)[:, None]
        keys = np.where(rows < 0, -1, rows + (numbers * items)[:, None])
    marked = np.zeros(len(rows) << bits, dtype=np.bool_)
    marked[marks] = True
    hits = marked.take(places).reshape(-1).nonzero()[0]

    keys = keys.reshape(-1)
    ascending = keys.copy()
    ascending.sort()
    of_items = hits // width
    own = near.take(hits)
    if owners is not None:
        own = owners.take(of_items % history) * items + own
    at = ascending.searchsorted(own)
    values = factors.take(of_items) * similarities.take(hits)
    values *= ascending.take(at, mode="clip") == own  # 0 for the entries of other rows
    at += of_items // history * len(keys)
    # bincount adds in the order of its input: newest item of the history first.
    sums = np.bincount(at, values, lists * len(keys))[: lists * len(keys)].astype(np.float32)
    return sums.reshape(lists, -1).T[ascending.searchsorted(keys)].reshape(*rows.shape, lists)
