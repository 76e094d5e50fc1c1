"""Computes how visual and how textual a user is from the items that the user took next (docs/method.md, point 4).

Our own definition: every step of a history has a query, the encoder's output for all items before it, and a target, the
item taken next. A slot's share is the mean over the steps of max(0, its contribution to the target's score), divided by
the sum over the slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from index.bundle.bundle import Bundle
from index.lists.list_query import ListQuery

MAX_STEPS = 64
"""The newest steps that count; as many as the encoder takes in one batch."""


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
    """The profile of a history; items that the bundle lacks, or that have no slot in it, are left out.

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
