"""Impressions that were not followed, by the event that they come before."""

from pathlib import Path

import pytest

from training.data.dataset import Dataset, load_dataset
from training.data.impressions import read_impressions, shown_before
from training.errors import DatasetError

DAY = 86_400
T = 1_790_000_000
ROWS = [
    ("u", "a", T, "view"),
    ("u", "b", T + 10, "impression"),
    ("u", "c", T + 20, "impression"),
    ("u", "d", T + 30, "impression"),  # followed below
    ("u", "gone", T + 35, "impression"),
    ("u", "d", T + 40, "purchase"),
    ("v", "c", T + 25, "impression"),
    ("v", "a", T + 50, "view"),
    ("u", "a", T + 60, "impression"),  # followed two days later, which is too late
    ("u", "b", T + 2 * DAY + 61, ""),
    ("u", "a", T + 2 * DAY + 70, "view"),
    ("u", "c", T + 3 * DAY, "impression"),  # no event comes after it
    ("u", "", T + 50, "impression"),
]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{item},{item}\n" for item in "abcd"))
    lines = [",".join(map(str, row)) for row in ROWS if row[1]]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,type", *lines]) + "\n")
    (tmp_path / "events.toml").write_text('weight_by = "type"\n')
    return load_dataset(tmp_path)


@pytest.mark.parametrize("most", [1, 3])
def test_an_event_has_the_newest_impressions_before_it_that_were_not_followed(dataset: Dataset, most: int) -> None:
    impressions = read_impressions(dataset)
    assert impressions.height == 6, "that of an item outside the catalogue is left out"
    shown = shown_before(dataset.interactions, impressions, dataset.item_ids(), most)
    assert dataset.interactions["item_id"].to_list() == ["a", "d", "b", "a", "a"]
    whole = [[-1, -1, -1], [2, 1, -1], [0, -1, -1], [-1, -1, -1], [2, -1, -1]]
    assert shown.tolist() == [row[:most] for row in whole]


def test_fractions_of_a_second_say_which_impression_is_the_newest(dataset: Dataset) -> None:
    rows = [f"w,b,{T}.7,impression", f"w,c,{T}.2,impression", f"w,a,{T + 9},view"]
    (dataset.directory / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,type", *rows]) + "\n")
    again = load_dataset(dataset.directory)
    shown = shown_before(again.interactions, read_impressions(again), again.item_ids(), 2)
    assert shown.tolist() == [[1, 2]]


def test_without_types_no_impression_is_known(dataset: Dataset) -> None:
    (dataset.directory / "events.toml").unlink()
    with pytest.raises(DatasetError, match=r"impression_negatives needs events of several types; add events\.toml"):
        read_impressions(load_dataset(dataset.directory))
