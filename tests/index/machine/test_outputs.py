"""An output that cannot be written is refused before the work, which may take hours, and nothing is written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from cli.app import app
from index.errors import DiskError, IndexingError
from index.machine.outputs import check_directory_writable, check_file_writable
from training.errors import TrainingError

WORK = (
    "training.data.dataset.load_dataset",
    "training.data_check.check.check_dataset",
    "training.events.retraining_inputs.freeze_inputs",
    "training.evaluation.fitted_run.FittedRun.load",
    "cli.online.served_run.ServedRun.load",
)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set, a run whose directories of results are files, and no command that may begin its work."""
    (tmp_path / "items.csv").write_text("item_id,title\na,one thing\nb,another thing\nc,a third\n")
    rows = [f"u{user},{item},{100 + at}" for user in range(4) for at, item in enumerate("abc")]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    for name in ("encoder", "embeddings", "train", "evaluation", "reindex", "retrain", "bundles"):
        (tmp_path / f"taken-{name}").mkdir()
        (tmp_path / f"taken-{name}" / name).write_text("in the way")
    (tmp_path / "run").mkdir()

    def begun(*_arguments: object, **_named: object) -> NoReturn:
        pytest.fail("the work began")

    for name in WORK:
        monkeypatch.setattr(name, begun)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("fit . --run items.csv/run", "items.csv/run"),
        ("fit . --run /proc/new", "/proc/new"),
        ("fit . --run taken-encoder", "taken-encoder/encoder"),
        ("fit . --run taken-embeddings", "taken-embeddings/embeddings"),
        ("fit-encoder . --run taken-encoder", "taken-encoder/encoder"),
        ("embed . --run taken-embeddings", "taken-embeddings/embeddings"),
        ("embed . --no-vlm --run taken-embeddings", "taken-embeddings/embeddings"),
        ("train . --run items.csv/run", "items.csv/run"),
        ("train . --run taken-train", "taken-train/train"),
        ("evaluate . --run run --json items.csv/figures.json", "items.csv/figures.json"),
        ("evaluate . --run run --json run", "run"),
        ("evaluate . --run run --save-ranks items.csv/ranks", "items.csv/ranks"),
        ("evaluate . --run taken-evaluation", "taken-evaluation/evaluation"),
        ("evaluate . --run taken-evaluation --split time", "taken-evaluation/evaluation"),
        ("report . --run run --out items.csv/page.html", "items.csv/page.html"),
        ("report . --run run --out run", "run"),
        ("data check . --json items.csv/report.json", "items.csv/report.json"),
        ("index build --run run --out items.csv/bundles", "items.csv/bundles"),
        ("index build --run taken-bundles", "taken-bundles/bundles"),
        ("index build --run run --publish items.csv/registry", "items.csv/registry"),
        ("index build --run run --publish items.csv", "items.csv"),
        ("index build --run run --publish /proc/new", "/proc/new"),
        ("reindex . --run run --registry /proc/new", "/proc/new"),
        ("reindex . --run taken-reindex --registry bundles", "taken-reindex/reindex"),
        ("reindex . --run run --registry bundles --json items.csv/record.json", "items.csv/record.json"),
        ("reindex . --run run --registry bundles --textfile items.csv/a.prom", "items.csv/a.prom"),
        ("retrain . --events run --registry /proc/new --run run", "/proc/new"),
        ("retrain . --events run --registry bundles --run taken-retrain", "taken-retrain/retrain"),
        ("retrain . --events run --registry bundles --run taken-bundles", "taken-bundles/bundles"),
    ],
)
def test_it_is_refused_before_the_work(shop: Path, words: str, named: str) -> None:
    before = sorted(shop.rglob("*"))
    result = CliRunner().invoke(app, words.split())
    said = result.output + str(result.exception)
    assert result.exit_code != 0
    assert isinstance(result.exception, TrainingError | IndexingError | SystemExit), result.exception
    assert f"{named}: " in said
    assert "cannot be written: " in said
    assert sorted(shop.rglob("*")) == before


@pytest.mark.parametrize("check", [check_directory_writable, check_file_writable])
def test_what_can_be_written_leaves_nothing(check: Callable[[Path], None], tmp_path: Path) -> None:
    check(tmp_path / "new")
    check(tmp_path / "not" / "yet" / "there")
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_may_be_replaced_and_a_stream_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("as it was")
    check_file_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "as it was"
    os.mkfifo(tmp_path / "pipe")
    check_file_writable(tmp_path / "pipe")  # opening it would wait for a reader


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text(""), "File exists"),
        (lambda path: path.symlink_to("nowhere"), "File exists"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_what_is_in_the_way_of_a_directory_is_named(
    make: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "out")
    with pytest.raises(DiskError, match=f"^{tmp_path}/out: cannot be written: {reason}"):
        check_directory_writable(tmp_path / "out")
    with pytest.raises(DiskError, match=f"^{tmp_path}/out/below: cannot be written: "):
        check_directory_writable(tmp_path / "out" / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(0o555)
    with pytest.raises(DiskError, match=r"closed: cannot be written: Permission denied.*owner and permissions"):
        check_directory_writable(tmp_path / "closed")
    with pytest.raises(DiskError, match=r"closed/new: cannot be written: Permission denied.*owner and permissions"):
        check_file_writable(tmp_path / "closed" / "new")
