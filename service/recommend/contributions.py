"""Computes what each slot contributes: to the scores of one answer or of several together, and to a user's history."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.lists.list_query import ListQuery
from index.search.scoring import FoundVectors
from service.recommend.slot_scales import scales_of, weighs_below_one

_MOST_TOGETHER: Final = 16
"""More answers in a call save little and need more memory."""

MAX_STEPS: Final = 64
"""The newest steps of a history that count; as many as the encoder takes in one batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Contributions:
    """What the slots contribute to the scores of one answer, computed when it is called; it keeps the bundle in memory.

    Attributes:
        bundle: that answered.
        query: (Σd,) float32, slot weights multiplied in.
        rows: (k,) int64 of the items.
        lists: the history whose item-to-item lists added to the scores; None: no list did.
        slot_weights: by slot name, of the request.
        vectors: those that came with the rows; None: the bundle has them.
    """

    bundle: Bundle
    query: NDArray[np.float32]
    rows: NDArray[np.int64]
    lists: ListQuery | None
    slot_weights: Mapping[str, float] | None = None
    vectors: FoundVectors | None = None

    def __call__(self) -> NDArray[np.float32]:
        """(k, slots) float32; each row sums to its score."""
        query, rows = self.query[None], self.rows[None]
        parts: NDArray[np.float32] = self.bundle.contributions(query, rows, [self.lists], self.vectors)[0]
        if self.slot_weights is None or not weighs_below_one(self.slot_weights):
            return parts
        by_slots = self.bundle.contributions(query, rows, None, self.vectors)[0]
        scales = scales_of(self.bundle, self.rows, self.slot_weights)
        parts += by_slots * (scales - 1)[:, None]  # what a list adds is not scaled
        return parts

    def of(self, places: slice | NDArray[np.int64]) -> "Contributions":
        """Those to the scores of the items at some places, counted from 0."""
        return replace(self, rows=self.rows[places])

    @property
    def is_plain(self) -> bool:
        """Whether they may be computed with those of other answers from the same bundle."""
        return self.vectors is None and (self.slot_weights is None or not weighs_below_one(self.slot_weights))


def computed(contributions: Sequence[Callable[[], NDArray[np.float32]]]) -> list[NDArray[np.float32]]:
    """What the slots contribute to the scores of several answers, in a few calls of each bundle.

    Each is bit for bit what a call of its own returns.
    """
    found: dict[int, NDArray[np.float32]] = {}
    groups: dict[Bundle, list[tuple[int, Contributions]]] = {}
    for number, one in enumerate(contributions):
        if isinstance(one, Contributions) and one.is_plain:
            groups.setdefault(one.bundle, []).append((number, one))
        else:
            found[number] = one()
    for bundle, members in groups.items():
        for start in range(0, len(members), _MOST_TOGETHER):
            some = members[start : start + _MOST_TOGETHER]
            parts = _together(bundle, [one for _, one in some])
            found.update((number, own) for (number, _), own in zip(some, parts, strict=True))
    return [found[number] for number in range(len(contributions))]


def _together(bundle: Bundle, some: Sequence[Contributions]) -> list[NDArray[np.float32]]:
    if len(some) == 1:
        return [some[0]()]
    lengths = [len(one.rows) for one in some]
    rows = np.full((len(some), max(lengths)), -1, dtype=np.int64)
    for line, one, length in zip(rows, some, lengths, strict=True):
        line[:length] = one.rows
    parts = bundle.contributions(np.stack([one.query for one in some]), rows, [one.lists for one in some])
    return [own[:length] for own, length in zip(parts, lengths, strict=True)]


@dataclass(frozen=True, slots=True)
class ModalityProfile:
    """The share of each slot in a user's history.

    Attributes:
        steps: steps that count.
        shares: by slot name, each 0 … 1, summing to 1; None without a step, or if no slot contributed to any target.
    """

    steps: int
    shares: dict[str, float] | None


def profile_of(bundle: Bundle, item_ids: Sequence[str]) -> ModalityProfile:
    """How visual and how textual a user is, from the items that the user took next (docs/method.md, point 4).

    Our own definition: every step of a history has a query, the encoder's output for all items before it, and a target,
    the item taken next. A slot's share is the mean over the steps of max(0, its contribution to the target's score),
    divided by the sum over the slots. Items that the bundle lacks, or that have no slot in it, are left out.

    Args:
        bundle: its encoder and vectors are used.
        item_ids: oldest first.

    Raises:
        EncoderError: the encoder fails on this history.
    """
    rows, _ = bundle.ids.rows(item_ids)
    rows = rows[bundle.indexed[rows]]
    steps = range(max(1, len(rows) - MAX_STEPS), len(rows))
    if not steps:
        return ModalityProfile(0, None)
    queries = bundle.encode([rows[max(0, step - bundle.max_history) : step] for step in steps])
    histories = [ListQuery(rows[:step]) for step in steps]
    parts = bundle.contributions(queries, rows[steps.start :, None], histories)[:, 0]
    means = np.maximum(parts, 0.0).mean(axis=0, dtype=np.float64)
    total = float(means.sum())
    if total <= 0:
        return ModalityProfile(len(steps), None)
    return ModalityProfile(len(steps), dict(zip(bundle.layout.names, (means / total).tolist(), strict=True)))
