"""Makes training pairs: every event of a training history after its first, in a seeded random order.

A pair is encoded as a window of consecutive events that ends with it. One pass over a window's prompt gives the
vectors of all its prefixes (`training.backbones.prompts`), so each later event of the window can be a pair of the batch
at little cost (our reading; the paper has one pair per prompt). Then no other item of the user is a negative.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.sequences import Sequences
from training.errors import DatasetError


@dataclass(frozen=True)
class Window:
    """Consecutive events of one user, read as one or several pairs.

    Attributes:
        rows: (length,) int64 item rows of the history, oldest first.
        lengths: (pairs,) int64, how many of these rows come before the next item of each pair.
        targets: (pairs,) int64, the next item of each pair.
        own: item rows of this user that must not be negatives.
    """

    rows: NDArray[np.int64]
    lengths: NDArray[np.int64]
    targets: NDArray[np.int64]
    own: NDArray[np.int64]


@dataclass(frozen=True)
class TrainingPairs:
    """All pairs (history, next item) of some histories.

    Attributes:
        sequences: training histories.
        users: (n,) int64, the user of each pair.
        places: (n,) int64 ≥ 1, place of the next item in the user's history.
    """

    sequences: Sequences
    users: NDArray[np.int64]
    places: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Sequences) -> "TrainingPairs":
        """Every pair.

        Raises:
            DatasetError: no history has two events.
        """
        lengths = np.diff(sequences.offsets)
        counts = np.maximum(lengths - 1, 0)
        if not counts.sum():
            raise DatasetError(
                "training needs a user with at least 2 training events (4 in all, as the last two are held out); "
                "there is none"
            )
        users = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        return cls(sequences, users, np.arange(len(users), dtype=np.int64) - first + 1)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.users)

    def windows(self, numbers: NDArray[np.int64], max_history: int, *, every: bool) -> list[Window]:
        """The windows that end with these pairs.

        Args:
            numbers: (B,) int64 pair numbers.
            max_history: longest history.
            every: read every event of a window after its first as a pair, not only the last one.
        """
        found = []
        for user, place in zip(self.users[numbers].tolist(), self.places[numbers].tolist(), strict=True):
            rows = self.sequences.of(user)
            seen = rows[max(0, place - max_history) : place + 1]
            first = 1 if every else len(seen) - 1
            own = np.unique(rows) if every else rows[:place]
            found.append(Window(seen[:-1], np.arange(first, len(seen), dtype=np.int64), seen[first:], own))
        return found

    def batches(self, batch_size: int, seed: int, first_step: int = 0) -> Iterator[NDArray[np.int64]]:
        """Endless batches of pair numbers; each pass over the pairs is a fresh permutation.

        Args:
            batch_size: pairs a batch; a pass that does not fill its last batch is topped up by the next pass.
            seed: of the order.
            first_step: batches to skip, for a resumed run.

        Yields:
            (batch_size,) int64. The order depends on the seed and the step alone.
        """
        step = first_step
        permutations: dict[int, NDArray[np.int64]] = {}
        while True:
            numbers = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
            passes = numbers // len(self)
            wanted = set(passes.tolist())
            permutations = {
                number: permutations[number] if number in permutations else self._permutation(seed, number)
                for number in wanted
            }
            yield np.array(
                [
                    permutations[number][place]
                    for number, place in zip(passes.tolist(), numbers % len(self), strict=True)
                ]
            )
            step += 1

    def _permutation(self, seed: int, number: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, number]).permutation(len(self)).astype(np.int64)
