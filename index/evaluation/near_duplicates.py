"""Finds groups of near-duplicate pictures: items whose image slots have nearly the same direction."""

from collections.abc import Iterator
from dataclasses import dataclass

from index.evaluation.neighbours import Neighbours

COSINE = 0.995
"""Least cosine of near-duplicate pictures.

With the demo's VLM, 40 copies saved again as JPEG of quality 60 or at 80 % of their size have cosines of 0.9956 to
0.9999; none of its 594 different pictures do.
"""


@dataclass(frozen=True)
class NearDuplicates:
    """Near-duplicate pictures of a sample of the items.

    Attributes:
        pictured: number of items with an image slot.
        sampled: number of those that were compared with all others.
        repeated: number of sampled items that have a near-duplicate.
        groups: (rows, size), the largest first; ``rows`` are the known members, ascending, ``size`` is a lower bound of
            the number of members.
    """

    pictured: int
    sampled: int
    repeated: int
    groups: tuple[tuple[tuple[int, ...], int], ...]

    @property
    def share(self) -> float:
        """Share of the sampled items that have a near-duplicate, 0 … 1."""
        return self.repeated / self.sampled


def near_duplicates(neighbours: Neighbours, pictured: int) -> NearDuplicates:
    """Group near-duplicates: an item joins the group of each of the lowest rows close to it.

    Args:
        neighbours: neighbours by the image slot, with :data:`COSINE` as the bound.
        pictured: number of items with an image slot.
    """
    groups = _Groups()
    size: dict[int, int] = {}
    for row, close, others in zip(
        neighbours.sample.tolist(), neighbours.close.tolist(), neighbours.first_close.tolist(), strict=True
    ):
        if close:
            size[row] = 1 + close
            for other in others[:close]:
                if other >= 0:
                    groups.join(row, other)
    sized = [(tuple(rows), max(len(rows), *(size.get(row, 0) for row in rows))) for rows in groups.members()]
    sized.sort(key=lambda group: (-group[1], group[0]))
    return NearDuplicates(pictured, neighbours.sample.shape[0], len(size), tuple(sized))


class _Groups:
    """Disjoint sets of rows (union by lower row, path halving; Tarjan, 1975)."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def join(self, first: int, second: int) -> None:
        """Merge the sets of two rows."""
        low, high = sorted((self._lowest(first), self._lowest(second)))
        self._parent[high] = low

    def members(self) -> Iterator[list[int]]:
        """The sets, each ascending."""
        sets: dict[int, list[int]] = {}
        for row in sorted(self._parent):
            sets.setdefault(self._lowest(row), []).append(row)
        yield from sets.values()

    def _lowest(self, row: int) -> int:
        parent = self._parent
        parent.setdefault(row, row)
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row
