"""Represents histories as rows of the catalogue and splits them for training and evaluation.

The protocol is leave-one-out (docs/method.md, "Evaluation protocol"): a user's last event is the test target, the one
before it the validation target, the rest is training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.items.item_table import ITEM_ID
from training.data.dataset import USER_ID, in_order, row_numbers
from training.data.event_weights import WEIGHT
from training.errors import DatasetError

_LEAST_EVENTS = 3


@dataclass(frozen=True)
class Sequences:
    """Users' histories, compressed into one array.

    Attributes:
        user_ids: user ids.
        offsets: (users + 1,) int64; user u owns ``rows[offsets[u] : offsets[u + 1]]``.
        rows: (events,) int64 item rows, a user's oldest first.
        weights: (events,) float32, above 0, with the mean 1; None: all weigh the same.
        shown: (events, k) int64 item rows that the user saw before the event and did not follow, −1 for none; None: not
            known.
    """

    user_ids: list[str]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    shown: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    def of(self, user: int) -> NDArray[np.int64]:
        """(length,) int64 item rows of user ``user``, oldest first; a view."""
        return self.rows[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(users,) int64 events per user."""
        return np.diff(self.offsets)

    @classmethod
    def from_interactions(cls, interactions: pl.DataFrame, item_ids: Sequence[str] | pl.Series) -> "Sequences":
        """Histories of a frame of interactions.

        Args:
            interactions: ``user_id``, ``item_id``, ``timestamp`` and, if there are, ``weight``; in any order, ties keep
                the order given.
            item_ids: the catalogue's ids in row order.

        Raises:
            DatasetError: an interaction names an item that is not in ``item_ids``.
        """
        ordered = in_order(interactions)
        rows = row_numbers(item_ids, ordered[ITEM_ID])
        if rows.null_count():
            unknown = ordered[ITEM_ID].filter(rows.is_null())[0]
            raise DatasetError(f"{rows.null_count():,} interactions name unknown items, first {unknown!r}; drop them")
        runs = ordered[USER_ID].rle()
        offsets = np.zeros(len(runs) + 1, dtype=np.int64)
        np.cumsum(runs.struct.field("len").to_numpy(), out=offsets[1:])
        weights = None
        if WEIGHT in ordered.columns:
            given = ordered[WEIGHT].to_numpy()
            weights = (given / given.mean()).astype(np.float32)
        users = runs.struct.field("value").to_list()
        return cls(users, offsets, rows.to_numpy().astype(np.int64, copy=False), weights)

    def only(self, kept: NDArray[np.bool_], offsets: NDArray[np.int64]) -> "Sequences":
        """Some of the events of the same users.

        Args:
            kept: (events,) bool.
            offsets: (users + 1,) int64 of the kept events.
        """
        weights = None if self.weights is None else self.weights[kept]
        shown = None if self.shown is None else self.shown[kept]
        return Sequences(self.user_ids, offsets, self.rows[kept], weights, shown)


@dataclass(frozen=True)
class Targets:
    """Held-out events with their histories.

    Attributes:
        histories: for each target (length ≥ 1,) int64 item rows, the whole prior history, oldest first.
        targets: (n,) int64 the item row taken next; it may also occur in the history (a repeated purchase).
        users: user id per target.
    """

    histories: list[NDArray[np.int64]]
    targets: NDArray[np.int64]
    users: list[str]

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.users)

    @property
    def repeats(self) -> NDArray[np.bool_]:
        """(n,) bool, targets that occur in their own history."""
        pairs = zip(self.histories, self.targets.tolist(), strict=True)
        return np.array([bool((history == target).any()) for history, target in pairs], dtype=np.bool_)

    def only(self, chosen: NDArray[np.bool_]) -> "Targets":
        """Some of the targets, in their order.

        Args:
            chosen: (n,) bool.
        """
        places = np.flatnonzero(chosen).tolist()
        return Targets([self.histories[n] for n in places], self.targets[chosen], [self.users[n] for n in places])


@dataclass(frozen=True)
class LeaveOneOut:
    """One split: training histories, validation targets and test targets."""

    train: Sequences
    validation: Targets
    test: Targets


def evenly_spaced(targets: Targets, most: int | None) -> Targets:
    """An evenly spaced selection of targets that includes the first and the last.

    Args:
        targets: held-out events.
        most: largest number of targets, at least 1; None keeps all.
    """
    if most is None or most >= len(targets):
        return targets
    chosen = np.linspace(0, len(targets) - 1, most).astype(np.int64)
    users, histories = targets.users, targets.histories
    return Targets(
        [histories[n] for n in chosen.tolist()], targets.targets[chosen], [users[n] for n in chosen.tolist()]
    )


def leave_one_out(sequences: Sequences) -> LeaveOneOut:
    """Split users with at least 3 events: last = test, the one before = validation, the rest = training.

    The history of a test target includes the validation item. All events of a user with fewer than 3 are training.
    """
    lengths = sequences.lengths
    split = lengths >= _LEAST_EVENTS
    kept = lengths - 2 * split
    offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum(kept, out=offsets[1:])
    position = np.arange(len(sequences.rows)) - np.repeat(sequences.offsets[:-1], lengths)
    train = sequences.only(position < np.repeat(kept, lengths), offsets)
    users = np.flatnonzero(split)
    return LeaveOneOut(train, _held_out(sequences, users, back=2), _held_out(sequences, users, back=1))


def last_item(sequences: Sequences) -> Targets:
    """The last event of each user with at least 2 events, with its history; for users that training never saw."""
    return _held_out(sequences, np.flatnonzero(sequences.lengths >= _LEAST_EVENTS - 1), back=1)


def popularity(train: Sequences, items: int) -> NDArray[np.int64]:
    """Training events per item; where they have weights, their sum, rounded, and at least 1 for an item with an event.

    Args:
        train: training histories only.
        items: size of the catalogue.

    Returns:
        (items,) int64.
    """
    events = np.bincount(train.rows, minlength=items).astype(np.int64)
    if train.weights is None:
        return events
    weighed = np.rint(np.bincount(train.rows, train.weights, items)).astype(np.int64)
    return np.maximum(weighed, np.minimum(events, 1))


def _held_out(sequences: Sequences, users: NDArray[np.intp], *, back: int) -> Targets:
    """The ``back``-th event from the end of each of these users, with its history."""
    starts, places = sequences.offsets[users], sequences.offsets[users + 1] - back
    spans = zip(starts.tolist(), places.tolist(), strict=True)
    histories = [sequences.rows[start:place] for start, place in spans]
    return Targets(histories, sequences.rows[places], [sequences.user_ids[user] for user in users.tolist()])
