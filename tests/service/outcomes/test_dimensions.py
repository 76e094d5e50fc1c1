"""The values by which outcomes are counted: dominant slots, labels of positions, hours."""

import numpy as np
import pytest

from service.outcomes.breakdown import Period
from service.outcomes.counts import position_label
from service.outcomes.sent_answers import dominant_slots
from service.stores.outcomes.answer_records import slot_of

PARTS = np.array([[0.1, 0.3, 0.2], [0.5, 0.1, 0.0], [-1.0, -0.2, 0.0]], dtype=np.float32)


def test_the_dominant_slot_adds_most() -> None:
    assert dominant_slots([PARTS]) == [[1, 0, -1]]
    assert dominant_slots([PARTS[1:], PARTS[:0], PARTS[:1]]) == [[0, -1], [], [1]]
    assert [slot_of(mark) for mark in (0, 8 + 7, 31 << 3)] == ["none", "text", "other"]


def test_answers_of_bundles_with_other_slots_are_compared_apart() -> None:
    assert dominant_slots([PARTS[:1], PARTS[:2, :1], PARTS[1:2, 1:]]) == [[1], [0, 0], [0]]


@pytest.mark.parametrize(
    ("position", "label"), [(1, "1"), (20, "20"), (21, "21-50"), (50, "21-50"), (100, "51-100"), (101, "over 100")]
)
def test_positions_have_few_labels(position: int, label: str) -> None:
    assert position_label(position) == label


def test_a_period_is_of_whole_hours() -> None:
    assert (Period.of(3600, 7200).first, Period.of(3600, 7200).last) == (1, 1)
    assert (Period.of(3601, 7201).start, Period.of(3601, 7201).end) == (3600, 10_800)
    assert Period.of(3600, 3600.5).end == 7200
