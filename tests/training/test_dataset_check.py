"""The check of dirty datasets: each defect is found, counted, placed and named."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from cli.data import check
from training.dataset import load_dataset
from training.dataset_check import check_dataset
from training.dataset_report import DatasetReport, Defect, Severity
from training.errors import DatasetError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ITEMS = "item_id,title,image\n" + "".join(f"i{n},Thing {n},i{n}.png\n" for n in range(4))
EVENTS = "user_id,item_id,timestamp\n" + "".join(f"u{u},i{i},{u * 10 + i}\n" for u in range(3) for i in range(4))

Check = Callable[..., DatasetReport]


@pytest.fixture
def checked(tmp_path: Path) -> Check:
    """Write a dataset with four readable pictures (unless other files are given) and check it."""

    def run(items: str | bytes = ITEMS, events: str | bytes = EVENTS, suffix: str = "csv") -> DatasetReport:
        for name, content in ((f"items.{suffix}", items), ("interactions.csv", events)):
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        for n in range(4):
            if not (tmp_path / f"i{n}.png").exists():
                Image.new("RGB", (3, 2), (n, 0, 0)).save(tmp_path / f"i{n}.png")
        return check_dataset(tmp_path, now=NOW)

    return run


def only(report: DatasetReport, kind: str) -> Defect:
    found = [defect for defect in report.defects if defect.kind == kind]
    assert len(found) == 1, [defect.kind for defect in report.defects]
    return found[0]


def test_a_clean_dataset_has_no_defects_and_the_right_numbers(checked: Check) -> None:
    report = checked()
    assert report.ok
    assert report.defects == []
    assert report.items is not None
    assert (report.items.items, report.items.with_text) == (4, 4)
    assert report.images is not None
    assert (report.images.named, report.images.readable, report.images.duplicates) == (4, 4, 0)
    facts = report.interactions
    assert facts is not None
    assert (facts.rows, facts.usable, facts.users, facts.items, facts.long_enough) == (12, 12, 3, 4, 3)
    assert (facts.time_unit, facts.first, facts.last) == (
        "seconds",
        "1970-01-01T00:00:00+00:00",
        "1970-01-01T00:00:23+00:00",
    )
    assert facts.lengths == dict.fromkeys(("min", "10%", "25%", "median", "75%", "90%", "99%", "max"), 4.0)
    assert (facts.five_core.pairs, facts.largest_core.k, facts.largest_core.pairs) == (0, 3, 12)


@pytest.mark.parametrize(
    ("items", "kind", "severity", "count", "rows"),
    [
        ("item_id,title\ni0,a\ni1,b\ni0,c\ni0,d\n", "duplicate item ids", "error", 2, [3, 4]),
        ("item_id,title\ni0,a\n,b\n" + "x" * 300 + ",c\n", "bad item ids", "error", 2, [2, 3]),
        ('item_id,title\ni0,a\n"i\n1",b\n', "bad item ids", "error", 1, [2]),
        ("item_id,title\ni0,a\ni1 ,b\n", "item ids with outer spaces", "warning", 1, [2]),
        ("item_id,popularity\ni0,1\ni1,2\n", "reserved column", "error", 1, []),
        ("item_id,title\n", "too few items", "error", 1, []),
        ("item_id,title\ni0,a\n", "too few items", "warning", 1, []),
        ("item_id,title,image\ni0,a,i0.png\ni1, ,i1.png\n", "items without text", "warning", 1, [2]),
        ("item_id,image\ni0,i0.png\ni1,i1.png\n", "items without text", "note", 2, []),
        ("item_id,title\ni0,a\ni1,\n", "items without text and image", "warning", 1, [2]),
        ("item_id,title,image\ni0,a,i0.png\ni1,b,\n", "items without image", "note", 1, [2]),
        ("item_id,title\ni0,a\ni1,b\n", "items without image", "note", 2, []),
        ("item_id,title,image\ni0,a,i0.png\ni1,b,no.png\n", "missing images", "warning", 1, [2]),
        ("item_id,title,image\ni0,a,i0.png\ni1,b,../x.png\n", "images outside the dataset", "warning", 1, [2]),
        ("item_id,title,image\ni0,a,items.csv\ni1,b,i1.png\n", "unreadable images", "warning", 1, [1]),
        ("item_id,title,image\ni0,a,i0.png\ni1,b,i0.png\n", "duplicate images", "warning", 1, [2]),
        ("id\ni0\n", "unusable items file", "error", 1, []),
        ("item_id,title\ni0,caf\xe9\n".encode("latin-1"), "unusable items file", "error", 1, []),
        ("item_id,title\ni0,a,b\n", "unusable items file", "error", 1, []),
    ],
)
def test_defects_of_items(
    checked: Check, items: str | bytes, kind: str, severity: str, count: int, rows: list[int]
) -> None:
    report = checked(items=items)
    defect = only(report, kind)
    assert (defect.severity, defect.count, defect.rows) == (severity, count, rows)
    assert "items.csv" in defect.message
    assert "\n" not in defect.message
    assert report.ok == (all(other.severity != "error" for other in report.defects))


@pytest.mark.parametrize(
    ("events", "kind", "severity", "count", "rows"),
    [
        ("u,i0,abc\nu,i1,NaN\nu,i1,-3\nu,i2,\nu,i3,5\n", "bad timestamps", "error", 4, [1, 2, 3, 4]),
        ("u,i0,1700000000\nu,i1,1700000001\nu,i2,1700000002000\n", "mixed time units", "error", 1, [3]),
        ("u,i0,1700000000000\nu,i1,17\nu,i2,1700000002000\n", "mixed time units", "error", 1, [2]),
        ("u,i0,2026-01-01\nu,i1,17\nu,i2,2026-01-02\n", "mixed time units", "error", 1, [2]),
        ("u,i0,1\nu,i1,2\nu,i2,99999999999\n", "timestamps in the future", "warning", 1, [3]),
        (",i0,1\nu,i1,2\n", "missing user ids", "error", 1, [1]),
        ("u,,1\nu,i1,2\n", "missing item ids", "error", 1, [1]),
        ("u" * 300 + ",i0,1\nu,i1,2\n", "bad user ids", "warning", 1, [1]),
        ("u,i0,1\nu,zz,2\nu,yy,2\n", "orphan interactions", "warning", 2, [2, 3]),
        ("u,zz,2\n", "orphan interactions", "error", 1, [1]),
        ("", "no interactions", "error", 1, []),
        ("u,i0,1\nu,i1,2\nu,i0,1\n", "duplicate interactions", "warning", 1, [3]),
        ("u,i0,1\nu,i1,1\nu,i2,2\n", "tied timestamps", "note", 1, []),
        ("u,i0,1\nu,i1,2\n", "items never touched", "note", 2, []),
        ("u,i0,1\nu,i1,2\nw,i1,2\n", "no user to evaluate", "error", 1, []),
    ],
)
def test_defects_of_interactions(
    checked: Check, events: str, kind: str, severity: str, count: int, rows: list[int]
) -> None:
    defect = only(checked(events="user_id,item_id,timestamp\n" + events), kind)
    assert (defect.severity, defect.count, defect.rows) == (severity, count, rows)
    assert "interactions.csv" in defect.message
    assert "\n" not in defect.message


def test_only_what_is_more_than_a_day_ahead_lies_in_the_future(checked: Check) -> None:
    soon, later = (int(NOW.timestamp()) + hours * 3600 for hours in (12, 36))
    report = checked(events=f"user_id,item_id,timestamp\nu,i0,{later}\nu,i1,{soon}\nu,i2,{soon - 1}\n")
    assert only(report, "timestamps in the future").rows == [1]


def test_all_defects_of_a_file_are_told_at_once(checked: Check) -> None:
    report = checked(
        items="item_id,title,image\ni0,,x.png\ni0,a,\n", events="user_id,item_id,timestamp\n,i0,1\nu,i0,x\nu,q,3\n"
    )
    kinds = {defect.kind for defect in report.defects}
    assert {
        "duplicate item ids",
        "missing images",
        "missing user ids",
        "bad timestamps",
        "orphan interactions",
    } <= kinds
    severities = [defect.severity for defect in report.defects]
    assert severities == sorted(severities, key=list(Severity).index)


def test_an_unreadable_items_file_still_lets_the_interactions_be_checked(checked: Check) -> None:
    report = checked(items="", events="user_id,item_id,timestamp\nu,i0,x\nu,i1,1\n")
    assert report.items is None
    assert report.interactions is not None
    assert only(report, "bad timestamps").rows == [1]
    assert not [defect for defect in report.defects if defect.kind == "orphan interactions"]


def test_an_unreadable_interactions_file_still_lets_the_items_be_checked(checked: Check) -> None:
    report = checked(events="user,item\n")
    assert report.items is not None
    assert only(report, "unusable interactions file").severity == "error"


def test_metadata_types_and_almost_numbers(checked: Check) -> None:
    rows = "".join(f"i{n},{n}.5,{n},true,{'?' if n == 7 else n}\n" for n in range(20))
    report = checked(items="item_id,price,stock,sale,size\n" + rows)
    assert report.items is not None
    assert {column.name: column.kind for column in report.items.metadata} == {
        "price": "number",
        "stock": "integer",
        "sale": "bool",
        "size": "string",
    }
    defect = only(report, "almost numbers")
    assert defect.rows == [8]
    assert "'?'" in defect.message


def test_lists_dates_and_structs_in_json_lines_and_parquet(checked: Check, tmp_path: Path) -> None:
    report = checked(items='{"item_id": "i0", "tags": ["a"], "size": {"w": 1}}\n{"item_id": "i1"}\n', suffix="jsonl")
    assert report.items is not None
    kinds = {column.name: (column.kind, column.missing) for column in report.items.metadata}
    assert kinds["tags"] == ("list of string", 1)
    assert only(report, "unusable column").severity == "error"
    (tmp_path / "items.jsonl").unlink()
    frame = pl.DataFrame({"item_id": ["i0", "i1"], "since": [NOW, NOW], "code": [b"x", b"y"]})
    frame.write_parquet(tmp_path / "items.parquet")
    report = check_dataset(tmp_path, now=NOW)
    assert report.items is not None
    assert [column.kind for column in report.items.metadata] == ["date", "Binary"]
    assert "'code' holds Binary" in only(report, "unusable column").message


def test_pictures_of_hostile_kinds_are_unreadable_not_fatal(checked: Check, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "whole.png")
    (tmp_path / "i0.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    (tmp_path / "i1.png").write_bytes(b"")
    (tmp_path / "i2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff" * 100)
    report = checked()
    assert only(report, "unreadable images").rows == [1, 2, 3]
    assert report.ok
    assert report.images is not None
    assert report.images.readable == 1


def test_paths_that_no_file_can_have_are_missing(checked: Check, tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    lines = [{"item_id": f"i{n}", "image": image} for n, image in enumerate(["a\0b", "loop.png", "x" * 5000, "i3.png"])]
    report = checked(items="\n".join(json.dumps(line) for line in lines), suffix="jsonl")
    assert only(report, "missing images").rows == [1, 2, 3]


def test_progress_rises_to_one_in_every_step(checked: Check, tmp_path: Path) -> None:
    checked()
    told: dict[str, list[float]] = {}
    check_dataset(tmp_path, progress=lambda step, share: told.setdefault(step, []).append(share))
    assert set(told) == {"items", "images", "interactions"}
    assert all(shares == sorted(shares) and shares[-1] == 1.0 for shares in told.values())


def test_a_missing_directory_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is none at this path"):
        check_dataset(tmp_path / "nowhere")


CELL = st.sampled_from(["i0", "i1", "i2", "", " ", "7", "x" * 300, "\x01", "ü", '"a,b"'])
TIME = st.sampled_from(["1", "2", "2026-01-01", "nan", "-1", "x", "", "1700000000000"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.tuples(CELL, CELL), max_size=4), st.lists(st.tuples(CELL, CELL, TIME), max_size=6))
def test_the_check_and_the_loader_agree(
    tmp_path: Path, items: list[tuple[str, str]], events: list[tuple[str, str, str]]
) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{a},{b}\n" for a, b in items))
    lines = "".join(f"{user},{item},{time}\n" for user, item, time in events)
    (tmp_path / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{lines}")
    report = check_dataset(tmp_path, now=NOW)
    errors = {defect.kind for defect in report.defects if defect.severity is Severity.ERROR}
    if errors <= {"no user to evaluate"}:
        assert load_dataset(tmp_path).interactions.height > 0
    else:
        with pytest.raises(DatasetError):
            load_dataset(tmp_path)


@pytest.fixture
def run() -> Callable[..., tuple[int, str]]:
    """Run the command and give its exit code and output."""
    import typer

    app = typer.Typer()
    app.command()(check)

    def invoke(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return invoke


def test_the_command_prints_facts_and_ends_with_0(
    checked: Check, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    checked()
    code, output = run(tmp_path)
    assert code == 0
    assert "no defects" in output
    assert "k = 3" in output


def test_the_command_prints_one_line_a_defect_and_ends_with_1(
    checked: Check, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    checked(items="item_id,title,tag\ni0,a,\ni0,[red]b[/red],2\n")
    report = tmp_path / "report.json"
    code, output = run(tmp_path, "--json", report)
    assert code == 1
    line = next(line for line in output.splitlines() if "item_id is repeated" in line)
    assert line.split()[:2] == ["error", "1"]
    assert "row 2 ('i0')" in line
    assert "correct the errors before training" in output
    written = json.loads(report.read_text())
    assert written["ok"] is False
    assert {"kind": "duplicate item ids", "severity": "error"}.items() <= written["defects"][0].items()
    assert written["interactions"]["five_core"]["k"] == 5


def test_the_command_shows_what_it_can_of_a_hopeless_dataset(
    checked: Check, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    checked(items="", events="user_id,item_id,timestamp\n")
    code, output = run(tmp_path)
    assert code == 1
    assert "the file is empty" in output
    checked(events="user_id,item_id,timestamp\nu,zz,1\n")
    code, output = run(tmp_path, "--interactions", tmp_path / "none.csv")
    assert code == 1
    assert "no such file" in output


def test_a_report_that_cannot_be_written_is_bad_input(
    checked: Check, tmp_path: Path, run: Callable[..., tuple[int, str]]
) -> None:
    checked()
    with pytest.raises(DatasetError, match="cannot be written"):
        run(tmp_path, "--json", tmp_path / "no" / "where.json")
