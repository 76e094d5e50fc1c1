"""The simulated users of the bench of impressions: views follow categories, and a small run prints every row."""

import sys
from pathlib import Path

import polars as pl
import pytest

from bench.method import impressions as bench
from training.data.dataset import load_dataset
from training.encoder.job import split_dataset


def test_items_are_viewed_as_often_as_their_category_says(tmp_path: Path) -> None:
    shown, viewed = bench.write_shop(tmp_path, users=200, items=300, seed=3)
    frame = pl.read_csv(tmp_path / "interactions.csv")
    counts = dict(frame["type"].value_counts().rows())
    assert counts == {"impression": shown, "view": viewed}
    assert shown == 200 * bench.SHOWN
    # A tenth of the categories is preferred; popularity does not depend on the category by more than its first items.
    share = bench.PREFERRED / bench.CATEGORIES
    expected = share * bench.VIEWED_PREFERRED + (1 - share) * bench.VIEWED_OTHER
    assert viewed / shown == pytest.approx(expected, rel=0.1)
    split = split_dataset(load_dataset(tmp_path), 0.0, impressions=5)
    assert split.parts.train.shown is not None
    followed = split.parts.train.shown == split.parts.train.rows[:, None]
    assert not followed.any(), "an item that was viewed is no negative of its own view"


def test_a_row_for_each_softmax_and_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = ["--users", "60", "--items", "150", "--epochs", "1", "--seeds", "1", "--negatives", "0", "2"]
    monkeypatch.setattr(sys, "argv", ["impressions", *small, "--out", str(tmp_path / "out.json")])
    assert bench.main() == 0
    _, *rows = printed = capsys.readouterr().out.splitlines()
    assert [row.partition(":")[0] for row in rows] == [
        f"{kind} softmax, {count} impressions" for kind in ("full", "sampled") for count in (0, 2)
    ]
    monkeypatch.setattr(bench, "fit", None)  # every fit is in the file
    assert bench.main() == 0
    assert capsys.readouterr().out.splitlines() == printed
