"""Histories and the leave-one-out split, compared with splits by hand and by plain lists."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.sequences import Sequences, last_item, leave_one_out, popularity
from training.errors import DatasetError

SCHEMA = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}


def sequences_of(histories: dict[str, list[int]]) -> Sequences:
    lengths = [len(rows) for rows in histories.values()]
    rows = [row for history in histories.values() for row in history]
    return Sequences(list(histories), np.cumsum([0, *lengths]), np.array(rows, dtype=np.int64))


def test_rows_follow_users_and_time() -> None:
    frame = pl.DataFrame(
        [("u2", "c", 9), ("u1", "b", 5), ("u1", "a", 1), ("u2", "a", 9), ("u1", "b", 7)], schema=SCHEMA, orient="row"
    )
    sequences = Sequences.from_interactions(frame, ["a", "b", "c"])
    assert sequences.user_ids == ["u2", "u1"]
    assert [sequences.of(user).tolist() for user in range(len(sequences))] == [[2, 0], [0, 1, 1]]
    assert sequences.rows.dtype == sequences.offsets.dtype == np.int64


def test_ids_may_be_a_column_and_most_of_them_unused() -> None:
    frame = pl.DataFrame([("u", "d", 1), ("u", "b", 2), ("v", "d", 3)], schema=SCHEMA, orient="row")
    ids = ["a", "b", "c", "d"]
    for column in (ids, pl.Series("item_id", ids)):
        sequences = Sequences.from_interactions(frame, column)
        assert sequences.rows.tolist() == [3, 1, 3]
        assert sequences.rows.dtype == np.int64


def test_no_interactions_give_no_sequences() -> None:
    sequences = Sequences.from_interactions(pl.DataFrame(schema=SCHEMA), ["a"])
    assert len(sequences) == 0
    assert len(leave_one_out(sequences).train) == 0
    assert len(last_item(sequences)) == 0


def test_an_unknown_item_is_refused() -> None:
    frame = pl.DataFrame([("u", "a", 1), ("u", "x", 2)], schema=SCHEMA, orient="row")
    with pytest.raises(DatasetError, match="1 interactions name unknown items, first 'x'"):
        Sequences.from_interactions(frame, ["a"])


def test_leave_one_out_by_hand() -> None:
    split = leave_one_out(sequences_of({"long": [4, 2, 7, 1], "three": [0, 5, 3], "two": [6, 6], "one": [8]}))
    assert split.train.user_ids == ["long", "three", "two", "one"]
    assert [split.train.of(user).tolist() for user in range(4)] == [[4, 2], [0], [6, 6], [8]]
    assert split.validation.users == split.test.users == ["long", "three"]
    assert [history.tolist() for history in split.validation.histories] == [[4, 2], [0]]
    assert split.validation.targets.tolist() == [7, 5]
    assert [history.tolist() for history in split.test.histories] == [[4, 2, 7], [0, 5]]
    assert split.test.targets.tolist() == [1, 3]


def test_last_item_drops_users_with_one_event() -> None:
    targets = last_item(sequences_of({"a": [1], "b": [2, 3], "c": [4, 5, 6]}))
    assert targets.users == ["b", "c"]
    assert [history.tolist() for history in targets.histories] == [[2], [4, 5]]
    assert targets.targets.tolist() == [3, 6]


def test_popularity_counts_training_events_of_every_item() -> None:
    counts = popularity(sequences_of({"a": [1, 1, 3], "b": [3]}), 5)
    assert counts.tolist() == [0, 2, 0, 2, 0]
    assert counts.dtype == np.int64


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=8))
def test_the_split_loses_and_leaks_nothing(histories: list[list[int]]) -> None:
    sequences = sequences_of({f"u{n}": rows for n, rows in enumerate(histories)})
    split = leave_one_out(sequences)
    held_out = dict(zip(split.test.users, range(len(split.test)), strict=True))
    for user, rows in enumerate(histories):
        trained = split.train.of(user).tolist()
        place = held_out.get(f"u{user}")
        if len(rows) < 3:
            assert place is None
            assert trained == rows
            continue
        assert place is not None
        assert [*trained, split.validation.targets[place], split.test.targets[place]] == rows
        assert split.validation.histories[place].tolist() == trained
        assert split.test.histories[place].tolist() == rows[:-1]
    assert popularity(split.train, 10).sum() == sum(len(rows) - 2 * (len(rows) >= 3) for rows in histories)
