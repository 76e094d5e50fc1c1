"""Item-to-item lists from entries item by item."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.lists.item_lists import ItemList


def compressed(name: str, lists: Sequence[tuple[NDArray[np.int32], NDArray[np.float16]]]) -> ItemList:
    """One list from rows and similarities item by item.

    Args:
        name: of the list.
        lists: for each item (k,) int32 rows and (k,) float16 similarities, most similar first.
    """
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(rows) for rows, _ in lists], out=offsets[1:])
    rows = np.concatenate([np.zeros(0, np.int32), *(rows for rows, _ in lists)])
    similarities = np.concatenate([np.zeros(0, np.float16), *(values for _, values in lists)])
    return ItemList(name, offsets, rows, similarities)
