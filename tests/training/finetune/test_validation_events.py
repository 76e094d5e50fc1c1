"""Which held-out events are validated on, and among which items."""

import dataclasses

import numpy as np
import pytest

from training.data.sequences import Targets
from training.finetune.validation import ValidationEvents

USERS, ITEMS = 7, 40


@pytest.fixture
def targets() -> Targets:
    histories = [np.array([user, user + 1], dtype=np.int64) for user in range(USERS)]
    return Targets(histories, np.array([3, 9, 9, 20, 21, 30, 39]), [f"u{user}" for user in range(USERS)])


def choose(targets: Targets, **changes: int) -> ValidationEvents:
    return ValidationEvents.choose(targets, ITEMS, **{"users": 4, "items": 10, "seed": 0, **changes})


def test_evenly_spaced_events_among_as_many_items_as_allowed(targets: Targets) -> None:
    found = choose(targets)
    assert found.targets.tolist() == [3, 9, 21, 39]  # events 0, 2, 4, 6 of 7
    assert [history.tolist() for history in found.histories] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert len(found.items) == 10
    assert set(found.targets) <= set(found.items)
    assert (np.diff(found.items) > 0).all()


def test_where_few_are_allowed_every_target_still_competes(targets: Targets) -> None:
    assert choose(targets, users=100, items=2).items.tolist() == [3, 9, 20, 21, 30, 39]
    assert choose(targets, items=10_000).items.tolist() == list(range(ITEMS))


def test_the_same_events_are_distinguished_from_others(targets: Targets) -> None:
    found = choose(targets)
    assert found.same_as(choose(targets))
    assert not found.same_as(choose(targets, users=3))
    assert not found.same_as(choose(targets, items=11))
    assert not found.same_as(choose(targets, seed=1))  # other items compete
    assert choose(targets, items=100).same_as(choose(targets, items=100, seed=1))  # all of them do
    other = dataclasses.replace(targets, histories=[*targets.histories[:-1], np.array([6, 8])])
    assert not found.same_as(choose(other))
    other = dataclasses.replace(targets, targets=np.array([3, 9, 10, 20, 21, 30, 39]))
    assert not found.same_as(choose(other, items=100))
