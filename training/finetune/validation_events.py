"""ValidationEvents: the held-out events that a model is measured on while it trains, and the items that compete."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.sequences import Targets, evenly_spaced


@dataclass(frozen=True)
class ValidationEvents:
    """A fixed part of the held-out events; the same arguments choose the same one.

    Attributes:
        histories: for each event int64 item rows, everything before it.
        targets: (n,) int64 item row of each event.
        items: (m,) int64 item rows that are ranked, ascending, every target among them.
    """

    histories: list[NDArray[np.int64]]
    targets: NDArray[np.int64]
    items: NDArray[np.int64]

    @classmethod
    def choose(cls, targets: Targets, catalogue: int, *, users: int, items: int, seed: int) -> "ValidationEvents":
        """Choose events and items.

        Args:
            targets: held-out events; evenly spaced ones where there are more than ``users``.
            catalogue: number of items.
            users: at most so many events.
            items: at most so many items compete, drawn at random beside the targets.
            seed: of the drawing.
        """
        chosen = evenly_spaced(targets, users)
        rows = chosen.targets
        order = np.random.default_rng(seed).permutation(catalogue)
        others = order[~np.isin(order, rows)]
        competing = np.union1d(rows, others[: max(0, items - len(np.unique(rows)))])
        return cls(list(chosen.histories), rows, competing)

    def same_as(self, other: "ValidationEvents") -> bool:
        """Whether the same events are ranked among the same items."""
        return (
            len(self.histories) == len(other.histories)
            and np.array_equal(self.targets, other.targets)
            and np.array_equal(self.items, other.items)
            and all(np.array_equal(own, its) for own, its in zip(self.histories, other.histories, strict=True))
        )
