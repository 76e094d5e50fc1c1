from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.data.sequences import Targets
from training.errors import EvaluationError
from training.ranking.metrics import Ranks, gains
from training.ranking.natural_mix import natural_mix
from training.ranking.ranking import TargetRanks
from training.ranking.saved_ranks import RankedTable, read_ranks, save_ranks, targets_fingerprint

ITEMS = 9
TARGETS = Targets([np.array([1, 2]), np.array([3])], np.array([4, 5]), ["u", "v"])


def ranked(name: str = "test", systems: tuple[str, ...] = ("a", "b")) -> RankedTable:
    lists = np.array([[*range(9), -1], [*range(9)[::-1], -1]])
    rankings = {
        system: TargetRanks(
            Ranks(np.array([number, np.inf]), np.array([3.0, 0])),
            Ranks(np.array([0, number]), np.array([1.0, 0])),
            lists,
        )
        for number, system in enumerate(systems)
    }
    return RankedTable(name, TARGETS, ITEMS, rankings, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_ranks(tmp_path / "new" / "r.parquet", [ranked(), ranked("cold items", ("a",))])
    return tmp_path / "new" / "r.parquet"


def test_what_is_written_is_read(path: Path) -> None:
    found = read_ranks(path, "test", TARGETS, ITEMS)
    assert list(found) == ["a", "b"]
    for name, ranking in ranked().rankings.items():
        for read, written in ((found[name].full, ranking.full), (found[name].sampled, ranking.sampled)):
            np.testing.assert_array_equal(read.ahead, written.ahead)
            np.testing.assert_array_equal(read.tied, written.tied)
        np.testing.assert_array_equal(found[name].lists, ranking.lists)
    assert list(read_ranks(path, "cold items", TARGETS, ITEMS)) == ["a"]
    assert read_ranks(path, "validation", TARGETS, ITEMS) == {}


def test_a_file_without_ties_is_read_as_before(path: Path) -> None:
    """Earlier versions stored mean ranks alone, in which a tie counts half."""
    pl.read_parquet(path).drop("full_tied", "sampled_tied").write_parquet(path)
    found = read_ranks(path, "test", TARGETS, ITEMS)["b"]
    np.testing.assert_array_equal(found.full.ahead, [2.5, np.inf])
    np.testing.assert_array_equal(found.sampled.ahead, [0.5, 1])
    np.testing.assert_array_equal([found.full.tied, found.sampled.tied], np.zeros((2, 2)))
    np.testing.assert_allclose(gains(found.full, 10), [1 / np.log2(4.5), 0])


@pytest.mark.parametrize(
    "other",
    [
        replace(TARGETS, histories=[np.array([1, 2]), np.array([3, 3])]),
        replace(TARGETS, histories=[np.array([1]), np.array([2, 3])]),
        replace(TARGETS, targets=np.array([4, 6])),
        replace(TARGETS, users=["u", "w"]),
        Targets(TARGETS.histories[:1], TARGETS.targets[:1], ["u"]),
    ],
)
def test_other_targets_are_refused(path: Path, other: Targets) -> None:
    with pytest.raises(EvaluationError, match="'a' was ranked on other test targets"):
        read_ranks(path, "test", other, ITEMS)
    assert targets_fingerprint(other, ITEMS) != targets_fingerprint(TARGETS, ITEMS)


def test_repeats_are_misses_in_saved_ranks_too(path: Path) -> None:
    """An earlier version, or another library, may have given them a rank."""
    repeated = Targets([np.array([1, 4]), np.array([3])], np.array([4, 5]), ["u", "v"])
    save_ranks(path, [replace(ranked(systems=("a",)), targets=repeated)])
    found = read_ranks(path, "test", repeated, ITEMS)["a"]
    np.testing.assert_array_equal(found.full.means, [np.inf, np.inf])
    np.testing.assert_array_equal(found.sampled.means, [np.inf, 0])


def test_ranks_with_seen_items_are_of_other_targets(path: Path) -> None:
    with pytest.raises(EvaluationError, match="interactions, exclude_seen, share"):
        read_ranks(path, "test", TARGETS, ITEMS, exclude_seen=False)
    save_ranks(path, [replace(ranked(), exclude_seen=False)])
    assert list(read_ranks(path, "test", TARGETS, ITEMS, exclude_seen=False)) == ["a", "b"]
    with pytest.raises(EvaluationError, match="on other test targets"):
        ranked().joined(path, None)


def test_another_catalogue_is_refused(path: Path) -> None:
    with pytest.raises(EvaluationError, match="other test targets"):
        read_ranks(path, "test", TARGETS, ITEMS + 1)


def test_a_label_separates_equal_names(path: Path) -> None:
    assert list(ranked(systems=("c",)).joined(path, None).rankings) == ["c", "a", "b"]
    assert list(ranked().joined(path, "x").rankings) == ["a", "b", "a (x)", "b (x)"]
    with pytest.raises(EvaluationError, match="a row 'b' already"):
        ranked(systems=("b", "c")).joined(path, None)
    save_ranks(path, [ranked(systems=("popularity", "a"))])
    assert list(ranked().joined(path, "x").rankings) == ["a", "b", "a (x)"]


def test_a_table_says_which_rows_were_added(path: Path) -> None:
    assert ranked().measured().added == ()
    warm = ranked().joined(path, "x").joined(path, "y")
    assert warm.measured().added == ("a (x)", "b (x)", "a (y)", "b (y)")
    cold = ranked("cold items", ("a", "b")).joined(path, "y")
    assert natural_mix(warm, cold, 0.1).added == ("a (y)",)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: frame.drop("first"), "no file of ranks"),
        (lambda frame: frame.with_columns(pl.col("full").cast(pl.Float32)), "has the columns"),
        (lambda frame: frame.with_columns(user=None), "has the columns"),
        (lambda frame: frame.with_columns(user=pl.lit(None, pl.String)), "without nulls"),
        (lambda frame: frame.with_columns(full=pl.lit(-1.0)), "must be 0 or more"),
        (lambda frame: frame.with_columns(full_tied=pl.lit(-1.0)), "must be 0 or more"),
        (lambda frame: frame.with_columns(full_tied=pl.lit(np.nan)), "must be 0 or more"),
        (lambda frame: frame.with_columns(full_tied=pl.lit(1_000.0)), "must be 0 or more"),
        (lambda frame: frame.with_columns(sampled_tied=pl.col("sampled_tied").cast(pl.Int64)), "has the columns"),
        (lambda frame: frame.with_columns(sampled=pl.lit(np.nan)), "must be 0 or more"),
        (lambda frame: frame.with_columns(first=pl.col("first").list.head(9)), "must be 0 or more"),
        (lambda frame: frame.with_columns(first=pl.col("first").list.eval(pl.element() + 1)), "must be 0 or more"),
        (lambda frame: frame.with_columns(first=pl.col("first").list.eval(pl.element() - 1)), "must be 0 or more"),
        (lambda frame: frame.with_columns(first=pl.lit([None] * 10, pl.List(pl.Int64))), "must be 0 or more"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused(
    path: Path, spoil: Callable[[pl.DataFrame], pl.DataFrame], message: str
) -> None:
    spoil(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(EvaluationError, match=message):
        read_ranks(path, "test", TARGETS, ITEMS)


def test_garbage_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"PAR1 and no more PAR1")
    for name in ("x", "none"):
        with pytest.raises(EvaluationError, match="no file of ranks"):
            read_ranks(tmp_path / name, "test", TARGETS, ITEMS)
