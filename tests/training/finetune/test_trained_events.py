"""The newest event that decides the weights of a model."""

from collections.abc import Callable
from pathlib import Path

import pytest

from training.data.dataset import Dataset, load_dataset
from training.encoder.job import split_dataset
from training.finetune.trained_events import newest_event
from training.ranking.cold_items import cold_mask

Write = Callable[[list[tuple[str, str, int]]], Dataset]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(events: list[tuple[str, str, int]]) -> Dataset:
        (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},thing {n}\n" for n in range(6)))
        rows = [f"{user},{item},{time}" for user, item, time in events]
        (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
        return load_dataset(tmp_path)

    return write


def test_held_out_events_do_not_count_unless_validation_chooses_the_weights(write: Write) -> None:
    dataset = write([("u", "i0", 10), ("u", "i1", 40), ("u", "i2", 70), ("u", "i3", 90), ("v", "i0", 30)])
    split = split_dataset(dataset, 0.0)
    assert newest_event(dataset, split, validated=False) == 40
    assert newest_event(dataset, split, validated=True) == 70


def test_a_user_of_whom_nothing_is_held_out_counts_whole(write: Write) -> None:
    dataset = write([("u", "i0", 10), ("u", "i1", 40), ("u", "i2", 70), ("v", "i0", 30), ("v", "i4", 95)])
    assert newest_event(dataset, split_dataset(dataset, 0.0), validated=False) == 95


def test_events_of_cold_items_do_not_count(write: Write) -> None:
    ids = [f"i{n}" for n in range(6)]
    cold = cold_mask(ids, 0.5)
    known, new = ([name for name, is_cold in zip(ids, cold, strict=True) if is_cold == kind] for kind in (False, True))
    assert known
    events = [("u", known[n % len(known)], 10 * n) for n in range(1, 6)]
    dataset = write([*events, ("u", new[0], 35), ("v", new[0], 99)])
    assert newest_event(dataset, split_dataset(dataset, 0.5), validated=False) == 30
    assert newest_event(dataset, split_dataset(dataset, 1.0), validated=False) == 0, "all items are cold"
