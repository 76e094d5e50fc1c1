"""The advice of the dataset check matches the jobs: repeated items as configured, and pictures named by address."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.offline.data.check import check
from training.data_check.check import check_dataset
from training.data_check.report import DatasetReport, Defect, Severity

EVENTS = "user_id,item_id,timestamp\n" + "".join(
    f"u{u},i{i},{1_700_000_000 + u * 10 + i}\n" for u in range(3) for i in range(3)
)
ITEMS = "item_id,title\ni0,a\ni1,b\ni2,c\n"

Write = Callable[..., DatasetReport]


@pytest.fixture
def checked(tmp_path: Path) -> Write:
    """Write a data set and check it."""

    def run(items: str = ITEMS, events: str = EVENTS, *, exclude_seen: bool = True) -> DatasetReport:
        (tmp_path / "items.csv").write_text(items)
        (tmp_path / "interactions.csv").write_text(events)
        return check_dataset(tmp_path, exclude_seen=exclude_seen)

    return run


def only(report: DatasetReport, kind: str) -> Defect:
    found = [defect for defect in report.defects if defect.kind == kind]
    assert len(found) == 1, [defect.kind for defect in report.defects]
    return found[0]


def test_repeated_items_are_reported_as_configured(checked: Write, tmp_path: Path) -> None:
    events = EVENTS + "u0,i0,1700000100\n"
    plain = only(checked(events=events), "repeated items")
    chosen = only(checked(events=events, exclude_seen=False), "repeated items")
    assert plain.message.endswith("set exclude_seen = false under [encoder] in the configuration")
    assert chosen.message.endswith("exclude_seen = false lets the service answer them, and `evaluate` counts them")
    assert plain.rows == chosen.rows
    assert plain.count == chosen.count == 1
    (tmp_path / "run.toml").write_text("[encoder]\nexclude_seen = false\n")
    app = typer.Typer()
    app.command()(check)
    output = CliRunner().invoke(app, [str(tmp_path), "--config", str(tmp_path / "run.toml")]).output
    assert chosen.message in output


def test_addresses_in_place_of_pictures_are_reported(checked: Write) -> None:
    report = checked(
        "item_id,title,image\ni0,a,https://x.example/0.jpg\ni1,b, HTTP://x.example/1.jpg\ni2,c,http/no.png\n"
    )
    assert only(report, "missing images").rows == [3]
    defect = only(report, "addresses as images")
    assert (defect.severity, defect.rows) == (Severity.WARNING, [1, 2])
    assert "rename the column to image_url and run `vlm2rec data fetch-images`" in defect.message
    assert report.images is not None
    assert (report.images.missing, report.images.readable) == (3, 0)


def test_a_catalogue_without_pictures_is_advised_to_fetch_them(checked: Write) -> None:
    without = only(checked("item_id,price\ni0,1\ni1,2\ni2,3\n"), "items without image")
    assert without.message == "items.csv: no item names a picture"  # and there is no text to train on either
    assert only(checked(), "items without image").message.endswith("; only texts can be trained on")
    named = checked("item_id,title,image_url\ni0,a,https://x.example/0.jpg\ni1,b,\ni2,c,\n")
    assert "`vlm2rec data fetch-images` fetches those that image_url names" in (
        only(named, "items without image").message
    )
