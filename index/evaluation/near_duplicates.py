"""Near-duplicate pictures: items whose image slots point almost the same way, gathered in groups."""

from collections.abc import Iterator
from dataclasses import dataclass

from index.evaluation.neighbours import Neighbours

COSINE = 0.995
"""From this cosine on two pictures count as the same.

With the demo's VLM, 40 copies saved again as JPEG of quality 60 or at 80 % of their size lie at 0.9956 to 0.9999, and
no two of its 594 pictures with different contents do.
"""


@dataclass(frozen=True)
class NearDuplicates:
    """What the sample says about repeated pictures.

    Attributes:
        pictured: items with an image slot.
        sampled: how many of them were compared with all the others.
        repeated: how many of the sampled have a near-duplicate.
        groups: (rows, size), the largest first; ``rows`` are the named members, ascending, ``size`` how many items the
            group has at least.
    """

    pictured: int
    sampled: int
    repeated: int
    groups: tuple[tuple[tuple[int, ...], int], ...]

    @property
    def share(self) -> float:
        """Share of the pictured items that have a near-duplicate, as the sample says, 0 … 1."""
        return self.repeated / self.sampled


def near_duplicates(neighbours: Neighbours, pictured: int) -> NearDuplicates:
    """Gather what is close into groups: items linked through the lowest rows that are close to them.

    Args:
        neighbours: by the image slot, with :data:`COSINE` as the bound.
        pictured: items with an image slot.
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
    found = [(tuple(rows), max(len(rows), *(size.get(row, 0) for row in rows))) for rows in groups.members()]
    found.sort(key=lambda group: (-group[1], group[0]))
    return NearDuplicates(pictured, neighbours.sample.shape[0], len(size), tuple(found))


class _Groups:
    """Disjoint sets of rows (union by lower row, path halving; Tarjan, 1975)."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def join(self, one: int, other: int) -> None:
        """Put both into one set."""
        low, high = sorted((self._lowest(one), self._lowest(other)))
        self._above[high] = low

    def members(self) -> Iterator[list[int]]:
        """The sets, each ascending."""
        sets: dict[int, list[int]] = {}
        for row in sorted(self._above):
            sets.setdefault(self._lowest(row), []).append(row)
        yield from sets.values()

    def _lowest(self, row: int) -> int:
        above = self._above
        above.setdefault(row, row)
        while above[row] != row:
            above[row] = above[above[row]]
            row = above[row]
        return row
