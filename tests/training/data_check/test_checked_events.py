"""The check counts the events that training uses: the positive ones by events.toml."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from cli.app import app
from training.data.dataset import load_dataset
from training.data_check.check import check_dataset
from training.data_check.report import DatasetReport, Defect, Severity

TYPES = 'weight_by = "type"\n'
RATINGS = 'weight_by = "rating"\nrating_threshold = 4\n'
Shop = Callable[..., Path]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Four items, and rows of ``user,item,time,value`` whose last column has the given name."""

    def write(column: str, rows: list[str], rules: str | None) -> Path:
        (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Thing {n}\n" for n in range(4)))
        (tmp_path / "interactions.csv").write_text("\n".join([f"user_id,item_id,timestamp,{column}", *rows]) + "\n")
        if rules is not None:
            (tmp_path / "events.toml").write_text(rules)
        return tmp_path

    return write


def rows_of(users: int, values: list[str]) -> list[str]:
    """One event an item for each user, each with its value."""
    return [f"u{user},i{n},{1_700_000_000 + n},{value}" for user in range(users) for n, value in enumerate(values)]


def only(report: DatasetReport, kind: str) -> Defect:
    found = [defect for defect in report.defects if defect.kind == kind]
    assert len(found) == 1, [(defect.kind, defect.message) for defect in report.defects]
    return found[0]


def test_figures_are_of_the_positive_events(shop: Shop) -> None:
    """Of 12 rows 9 are positive; u2 keeps one event, so two of three users can be evaluated."""
    rows = rows_of(2, ["5", "4", "4", "5"]) + rows_of(3, ["5", "1", "2", "3.5"])[8:]
    report = check_dataset(shop("rating", rows, RATINGS))
    facts = report.interactions
    assert facts is not None
    dataset = load_dataset(shop("rating", rows, RATINGS))
    assert (facts.rows, facts.usable, facts.left_out) == (12, 9, {"below_threshold": 3})
    assert (facts.usable, facts.left_out) == (dataset.interactions.height, dataset.left_out)
    assert (facts.users, facts.long_enough, facts.lengths["min"]) == (3, 2, 1.0)


def test_the_command_names_what_is_not_positive(shop: Shop) -> None:
    rows = [*rows_of(3, ["view", "like", "view", "purchase"]), *["u0,i0,5,impression"] * 2]
    directory = shop("type", rows, TYPES)
    shown = CliRunner().invoke(app, ["data", "check", str(directory)])
    assert shown.exit_code == 0
    assert "14 in interactions.csv, 12 usable" in shown.stdout
    assert "2 impression" in shown.stdout


def test_the_check_accepts_what_the_loader_accepts(shop: Shop) -> None:
    """An impression of nobody and a bad time of an impression are left out before ids and times matter."""
    rows = [*rows_of(3, ["view", "view", "view", "view"]), ",i0,5,impression", "u0,i1,x,impression"]
    directory = shop("type", rows, TYPES)
    assert load_dataset(directory).interactions.height == 12
    assert check_dataset(directory).ok


def test_no_positive_event_is_an_error_that_says_why(shop: Shop) -> None:
    report = check_dataset(shop("type", rows_of(2, ["impression", "impression", "dislike"]), TYPES))
    defect = only(report, "no interactions")
    assert defect.severity is Severity.ERROR
    for words in ("4 impression", "2 negative", "events.toml"):
        assert words in defect.message
    report = check_dataset(shop("rating", rows_of(2, ["3", "3", "3"]), RATINGS))
    assert "6 below_threshold" in only(report, "no interactions").message


def test_types_that_the_table_lacks_are_named(shop: Shop) -> None:
    """`Dislike` counts as `default_type`, a view: positive."""
    rows = [*rows_of(3, ["view", "Dislike", "view", "rent"]), "u0,i0,5,"]
    defect = only(check_dataset(shop("type", rows, TYPES)), "unknown event types")
    assert (defect.severity, defect.count) == (Severity.WARNING, 6)
    for words in ("'Dislike'", "'rent'", "'view'", "[events.types]"):
        assert words in defect.message
    rows = rows_of(3, ["view", "like", "view", "view"])
    assert [one.kind for one in check_dataset(shop("type", rows, TYPES)).defects if "types" in one.kind] == []


@pytest.mark.parametrize("column", ["type", "rating", "weight"])
def test_a_column_that_would_decide_and_is_not_read_is_named(shop: Shop, column: str) -> None:
    report = check_dataset(shop(column, rows_of(3, ["1", "5", "2", "4"]), None))
    defect = only(report, "unread event column")
    assert (defect.severity, defect.count) == (Severity.NOTE, 1)
    assert repr(column) in defect.message
    assert "every row counts as positive" in defect.message
    assert "events.toml" in defect.message
    assert report.ok


def test_some_times_of_zero_are_named(shop: Shop) -> None:
    """0 stands for a missing time in many exports, and sorts the event first."""
    rows = [*rows_of(3, ["1", "1", "1", "1"]), "u0,i3,0,1", "u1,i2,0,1"]
    defect = only(check_dataset(shop("x", rows, None)), "timestamps of zero")
    assert (defect.severity, defect.count, defect.rows) == (Severity.WARNING, 2, [13, 14])
    assert "'0'" in defect.message


def test_times_in_float32_are_named(tmp_path: Path) -> None:
    """1,700,000,001 is 1,700,000,000 in float32: the order within two minutes is lost."""
    pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]}).write_parquet(tmp_path / "items.parquet")
    times = [1_700_000_000 + step for step in range(4)]
    events = pl.DataFrame({"user_id": ["u"] * 4, "item_id": ["a", "b"] * 2, "timestamp": times})
    for dtype, kinds in ((pl.Float32, ["coarse timestamps"]), (pl.Float64, [])):
        events.with_columns(pl.col("timestamp").cast(dtype)).write_parquet(tmp_path / "interactions.parquet")
        found = [one for one in check_dataset(tmp_path).defects if one.kind == "coarse timestamps"]
        assert [one.kind for one in found] == kinds
        assert all("Float32" in one.message and one.severity is Severity.WARNING for one in found)


@pytest.mark.parametrize("name", ["null", "None", "NaN", "undefined"])
def test_words_for_nobody_are_named(shop: Shop, name: str) -> None:
    rows = [*rows_of(3, ["1", "1", "1", "1"]), f"{name},i3,7,1", f"{name},i2,8,1"]
    defect = only(check_dataset(shop("x", rows, None)), "ids that mean none")
    assert (defect.severity, defect.count, defect.rows) == (Severity.WARNING, 2, [13, 14])
    assert f"'{name}'" in defect.message
