"""The dataset check finds, counts, locates and names each defect."""

import json
import struct
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.training.data_check.conftest import NOW, Check
from training.data.dataset import load_dataset
from training.data.thumbnails import make_thumbnails
from training.data_check.check import check_dataset
from training.data_check.report import DatasetReport, Defect, Severity
from training.embedding.baseline_features import embed_without_vlm
from training.encoder.job import split_dataset
from training.errors import DatasetError


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
        "2023-11-14T22:13:20+00:00",
        "2023-11-14T22:13:43+00:00",
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
        ("item_id,title,image\ni0,a,i0.png\ni1,—,i1.png\n", "items without text", "warning", 1, [2]),
        ("item_id,title,image\ni0,...,i0.png\ni1,!!!,i1.png\n", "items without text", "warning", 2, [1, 2]),
        ("item_id,title\ni0,7\ni1,—\n", "items without text and image", "warning", 1, [2]),
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


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a\0b", "control characters"),
        ("a\x1bb", "control characters"),
        ("\x93Best\x94 hat", "control characters of Latin-1"),
        ("caf\ufffd", "characters that were lost"),
    ],
)
def test_control_and_replacement_characters_are_reported(checked: Check, text: str, kind: str) -> None:
    report = checked(items=f"item_id,title,colour\ni0,{text},red\ni1,Bücher 😀\tok,blue\ni2,,{text}\n")
    found = [defect for defect in report.defects if defect.kind == kind]
    assert [(defect.severity, defect.rows) for defect in found] == [("warning", [1]), ("warning", [3])]
    lines = [{"item_id": "i0", "tags": [None, text]}, {"item_id": "i1", "tags": ["b", "c"]}, {"item_id": "i2"}]
    defect = only(checked(items="\n".join(map(json.dumps, lines)), suffix="jsonl"), kind)
    assert defect.rows == [1]
    assert "'tags'" in defect.message


def test_look_alike_columns_are_reported(checked: Check) -> None:
    report = checked(items="item_id,title,Title,, \ni0,a,b,c,d\ni1,b,c,d,e\n")
    assert "'Title' looks like 'title'" in only(report, "look-alike column").message
    defect = only(report, "column without a name")
    assert (defect.severity, defect.count) == ("warning", 2)
    assert "columns 4, 5" in defect.message
    assert report.items is not None
    assert [column.name for column in report.items.metadata] == ["Title"]


def test_texts_without_a_word_are_nothing_to_train_on(checked: Check) -> None:
    report = checked(items="item_id,title\ni0,.\ni1,!!!\ni2,-\ni3,—\n")
    assert only(report, "items without text and image").rows == [1, 2, 3, 4]
    assert only(report, "nothing to train on").severity is Severity.ERROR
    assert not report.ok


def test_only_times_more_than_a_day_ahead_are_in_the_future(checked: Check) -> None:
    soon, later = (int(NOW.timestamp()) + hours * 3600 for hours in (12, 36))
    report = checked(events=f"user_id,item_id,timestamp\nu,i0,{later}\nu,i1,{soon}\nu,i2,{soon - 1}\n")
    assert only(report, "timestamps in the future").rows == [1]


def test_all_defects_of_a_file_are_reported_at_once(checked: Check) -> None:
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


def test_repeats_are_counted_as_evaluation_counts_them(checked: Check, tmp_path: Path) -> None:
    """u0 ends with a repeat; u1 has one in between; u2 has too few events; u3's repeat is the earlier in time."""
    events = [("u0", 0), ("u0", 1), ("u0", 0), ("u1", 1), ("u1", 1), ("u1", 2), ("u2", 3), ("u2", 3)]
    rows = [f"{user},i{item},{place + 10}" for place, (user, item) in enumerate(events)]
    rows += ["u3,i1,9", "u3,i2,8", "u3,i1,7", "u4,i1,1", "u4,i2,2", "u4,i1,2"]
    report = checked(events="\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    assert report.interactions is not None
    split = split_dataset(load_dataset(tmp_path), 0.0)
    repeats = dict(zip(split.parts.test.users, split.parts.test.repeats.tolist(), strict=True))
    assert repeats == {"u0": True, "u1": False, "u3": True, "u4": True}
    assert (report.interactions.long_enough, report.interactions.repeats) == (4, 3)
    note = only(report, "repeated items")
    assert (note.severity, note.count) == (Severity.NOTE, 3)
    assert "3 of 4 users' last events (75%)" in note.message
    assert "exclude_seen = false under [encoder]" in note.message


def test_pictures_are_read_as_the_jobs_read_them(checked: Check, tmp_path: Path) -> None:
    """The first two were called readable and then dropped by the jobs, the other two although they are good."""
    Image.new("1", (11_000, 10_000)).save(tmp_path / "i0.png")
    Image.new("1", (20_000, 50)).save(tmp_path / "i1.png")
    Image.new("I;16", (640, 480)).save(tmp_path / "i2.png")
    unit = struct.pack(
        "<HHHIIHHIIIII", 2, 274, 3, 1, 6, 296, 5, 1, 38, 0, 1, 2
    )  # turned, and a unit that is a fraction
    Image.new("RGB", (40, 20)).save(tmp_path / "i3.png", exif=b"Exif\0\0II*\0\x08\0\0\0" + unit)
    report = checked()
    defect = only(report, "unreadable images")
    assert defect.rows == [1, 2]
    assert "'i0.png', 'i1.png'" in defect.message
    assert "a picture may have at most 100,000,000 pixels, got 11000 × 10000; make it smaller" in defect.message
    assert report.images is not None
    assert report.images.readable == 2
    dataset = load_dataset(tmp_path)
    assert list(embed_without_vlm(dataset).unreadable) == ["i0", "i1"]
    made = make_thumbnails(dataset, tmp_path / "thumbnails.npy")
    assert (made.made, made.unreadable) == (2, 2)


def test_paths_that_no_file_can_have_are_missing(checked: Check, tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    lines = [{"item_id": f"i{n}", "image": image} for n, image in enumerate(["a\0b", "loop.png", "x" * 5000, "i3.png"])]
    report = checked(items="\n".join(json.dumps(line) for line in lines), suffix="jsonl")
    assert only(report, "missing images").rows == [1, 2, 3]


def test_progress_rises_to_one_in_every_step(checked: Check, tmp_path: Path) -> None:
    checked()
    reported: dict[str, list[float]] = {}
    check_dataset(tmp_path, progress=lambda step, share: reported.setdefault(step, []).append(share))
    assert set(reported) == {"items", "images", "interactions"}
    assert all(shares == sorted(shares) and shares[-1] == 1.0 for shares in reported.values())


def test_a_missing_directory_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is none at this path"):
        check_dataset(tmp_path / "nowhere")
    (tmp_path / "items.csv").write_text("item_id\n")
    with pytest.raises(DatasetError, match="is a file; a dataset is a directory"):
        check_dataset(tmp_path / "items.csv")


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
    if errors <= {"no user to evaluate", "nothing to train on"}:
        assert load_dataset(tmp_path).interactions.height > 0
    else:
        with pytest.raises(DatasetError):
            load_dataset(tmp_path)
