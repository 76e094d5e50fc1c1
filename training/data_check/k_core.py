"""Computes k-cores of the graph of users and items.

The k-core remains after repeatedly removing users and items with fewer than k partners. Published comparisons use the
5-core (docs/method.md, "Published").
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Core:
    """Size of one k-core.

    Attributes:
        k: least number of partners of each user and item.
        users: users in it.
        items: items in it.
        pairs: distinct pairs of user and item in it.
    """

    k: int
    users: int
    items: int
    pairs: int


def k_core(users: NDArray[np.integer], items: NDArray[np.integer], k: int) -> NDArray[np.bool_]:
    """Which pairs belong to the k-core.

    Args:
        users: (pairs,) user numbers, 0 or more.
        items: (pairs,) item numbers, 0 or more; a pair of both occurs once.
        k: least number of partners, at least 0.

    Returns:
        (pairs,) bool.
    """
    kept = np.arange(len(users))
    while len(kept):
        few_users = np.bincount(users[kept]) < k
        few_items = np.bincount(items[kept]) < k
        stays = ~(few_users[users[kept]] | few_items[items[kept]])
        if stays.all():
            break
        kept = kept[stays]
    inside = np.zeros(len(users), dtype=np.bool_)
    inside[kept] = True
    return inside


def core_of(users: NDArray[np.integer], items: NDArray[np.integer], k: int) -> Core:
    """Size of the k-core; see :func:`k_core`."""
    inside = k_core(users, items, k)
    return Core(k, len(np.unique(users[inside])), len(np.unique(items[inside])), int(inside.sum()))


def largest_core(users: NDArray[np.integer], items: NDArray[np.integer]) -> Core:
    """The core with the largest k that is not empty; k = 0 where there are no pairs.

    Every round removes the least connected, so that k rises to the least number of partners that is left.
    """
    best = Core(0, 0, 0, 0)
    while len(users):
        user_partners, item_partners = np.bincount(users), np.bincount(items)
        k = int(min(user_partners[users].min(), item_partners[items].min()))
        best = Core(k, int((user_partners > 0).sum()), int((item_partners > 0).sum()), len(users))
        inside = k_core(users, items, k + 1)
        users, items = users[inside], items[inside]
    return best
