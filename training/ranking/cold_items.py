"""Holds cold items out of training, to measure how well new items are ranked."""

# Whether an item is cold depends on its id alone, so the same share of the same catalogue is the same set everywhere.

import hashlib
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data.sequences import Sequences, Targets


def cold_mask(item_ids: Sequence[str] | pl.Series, share: float) -> NDArray[np.bool_]:
    """Choose the items that are held out.

    Args:
        item_ids: ids in row order.
        share: expected share of cold items, 0 … 1.

    Returns:
        (n,) bool.
    """
    limit = int(share * 2**64)
    digests = (hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).digest()[:8] for item_id in item_ids)
    return np.fromiter((int.from_bytes(digest, "big") < limit for digest in digests), np.bool_, len(item_ids))


def without_items(sequences: Sequences, cold: NDArray[np.bool_]) -> Sequences:
    """The same users without any event of a cold item.

    Args:
        sequences: whole histories.
        cold: (n,) bool.
    """
    kept = ~cold[sequences.rows]
    before = np.concatenate([[0], np.cumsum(kept)])
    return sequences.only(kept, before[sequences.offsets].astype(np.int64))


def cold_targets(sequences: Sequences, cold: NDArray[np.bool_]) -> Targets:
    """Every event of a cold item, with the user's earlier events on other items as history.

    Args:
        sequences: whole histories.
        cold: (n,) bool.

    Returns:
        One target per event that has at least one warm event before it; histories hold warm items only.
    """
    histories: list[NDArray[np.int64]] = []
    targets: list[int] = []
    users: list[str] = []
    for user, name in enumerate(sequences.user_ids):
        rows = sequences.of(user)
        is_cold = cold[rows]
        warm = rows[~is_cold]
        before = np.cumsum(~is_cold)
        for position in np.flatnonzero(is_cold & (before > 0)).tolist():
            histories.append(warm[: before[position]])
            targets.append(int(rows[position]))
            users.append(name)
    return Targets(histories, np.array(targets, dtype=np.int64), users)
