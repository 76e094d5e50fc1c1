"""Recipes measured on events after a cut-off."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from training.errors import EvaluationError
from training.evaluation.recipes import compare_recipes, cutoff_of, events_before, targets_after

ITEMS = ["a", "b", "c", "d"]


def interactions(*rows: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def test_the_first_event_after_the_cutoff_is_the_target_and_all_before_it_the_history() -> None:
    targets = targets_after(
        interactions(
            ("anna", "a", 1),
            ("anna", "b", 9),
            ("anna", "c", 10),  # at the cut-off
            ("anna", "d", 11),
            ("bob", "a", 12),  # nothing is known of bob before
            ("carl", "a", 2),  # nothing after
            ("dora", "d", 3),
            ("dora", "d", 30),
        ),
        ITEMS,
        10,
    )
    assert targets.users == ["anna", "dora"]
    assert targets.targets.tolist() == [2, 3]
    assert [history.tolist() for history in targets.histories] == [[0, 1], [3]]


def test_no_event_after_the_cutoff_is_no_target() -> None:
    assert len(targets_after(interactions(("anna", "a", 1)), ITEMS, 10)) == 0
    with pytest.raises(EvaluationError, match="give more --measure-days"):
        compare_recipes({}, targets_after(interactions(("anna", "a", 1)), ITEMS, 10), 0)


class NextItem:
    """An encoder whose query is the newest item, turned by one where it is a good one."""

    max_history = 5

    def __init__(self, step: int) -> None:
        self.step = step

    def encode(self, histories: Any) -> Any:
        return np.stack([np.roll(history[-1], self.step) for history in histories])


def run(step: int) -> Any:
    table = SimpleNamespace(vectors=np.eye(4, dtype=np.float32), popularity=np.array([4, 3, 2, 1]))

    class Table(SimpleNamespace):
        def __len__(self) -> int:
            return 4

    return SimpleNamespace(table=Table(**vars(table)), encoder=NextItem(step), lists=None, exclude_seen=True)


def test_the_better_recipe_has_the_higher_figure() -> None:
    walks = [(f"u{n}", ITEMS[(n + step) % 4], step * 10) for n in range(8) for step in (0, 1)]
    targets = targets_after(interactions(*walks), ITEMS, 10)
    table = compare_recipes({"new recipe": run(1), "served recipe": run(2)}, targets, len(targets))
    assert [row.name for row in table.rows] == ["popularity", "new recipe", "served recipe"]
    assert table.row("new recipe").values["ndcg@10"] == pytest.approx(1.0)
    assert table.ratio("served recipe", "new recipe", "ndcg@10").high < 1


def test_the_cutoff_leaves_the_last_days_and_something_before_them() -> None:
    day = 86_400
    frame = interactions(("anna", "a", day), ("anna", "b", 3 * day), ("bob", "c", 10 * day))
    assert cutoff_of(frame, 7) == 3 * day
    for days in (1e300, math.inf):
        assert cutoff_of(frame, days) < -day
    assert events_before(frame, 3 * day)["item_id"].to_list() == ["a"]
    with pytest.raises(EvaluationError, match="all 3 interactions are held out"):
        events_before(frame, day)
