"""`vlm2rec report`, and the report that `vlm2rec train` writes, on a few items."""

from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.app import app
from index.errors import DiskError
from tests.support.tiny_model import TINY_VLM
from training.errors import ConfigError, EvaluationError

CONFIG = f"""{TINY_VLM}[train]
batch_size = 4
steps = 2
validate_every = 1
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set `data` and two runs on it, `joint` with embeddings and `image`, trained on pictures alone."""
    home = tmp_path_factory.mktemp("report")
    (home / "data" / "images").mkdir(parents=True)
    rows = ["item_id,title,image"]
    for item in range(6):
        Image.new("RGB", (8, 8), (40 * item, 0, 255 - 40 * item)).save(home / "data" / "images" / f"{item}.png")
        rows.append(f"i{item},thing number {item},images/{item}.png")
    (home / "data" / "items.csv").write_text("\n".join(rows) + "\n")
    events = [f"u{user},i{(user + step) % 6},{100 + step}" for user in range(5) for step in range(5)]
    (home / "data" / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *events]) + "\n")
    (home / "joint.toml").write_text(CONFIG)
    (home / "image.toml").write_text(CONFIG + 'modalities = ["image"]\n')
    for name in ("joint", "image"):
        said = vlm2rec("train", home / "data", "--run", home / name, "--config", home / f"{name}.toml", "--threads", 1)
        assert f"report: {home / name / 'report.html'}" in said
    vlm2rec("embed", home / "data", "--run", home / "joint", "--threads", 1)
    return home


def vlm2rec(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_training_leaves_a_report_without_what_comes_later(home: Path) -> None:
    page = (home / "image" / "report.html").read_text()
    assert "Trained on image alone" in page
    assert "2 of 2 steps" in page
    assert "<code>vlm2rec embed</code> first" in page
    assert "<img" not in page


def test_report_adds_neighbours_and_utilisation(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    options = ("--image-alone", home / "image", "--out", out)
    said = vlm2rec("report", home / "data", "--run", home / "joint", *options)
    assert "Utilisation of image: " in said or "Trained alone, image finds nothing" in said
    assert said.splitlines()[-1] == str(out)
    page = out.read_text()
    assert page.count("<img") == 6 * (1 + 5 + 5)
    assert "Is what each modality can teach used?" in page
    assert not list(out.parent.glob(".*"))


def test_a_run_that_was_done_already_keeps_its_report(home: Path) -> None:
    report = home / "joint" / "report.html"
    resume = ("train", home / "data", "--run", home / "joint", "--resume")
    report.write_text("one with utilisation")
    assert "report: " not in vlm2rec(*resume)
    assert report.read_text() == "one with utilisation"
    report.unlink()
    assert f"report: {report}" in vlm2rec(*resume)
    assert report.is_file()


def test_a_report_that_cannot_be_written_does_not_spoil_a_training(home: Path) -> None:
    report = home / "joint" / "report.html"
    report.unlink(missing_ok=True)
    report.mkdir()
    try:
        said = vlm2rec("train", home / "data", "--run", home / "joint", "--resume")
    finally:
        report.rmdir()
    assert "no report: " in said
    assert "cannot be written" in said


def test_clear_errors(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run directory; check --run"):
        vlm2rec("report", home / "data", "--run", tmp_path / "none")
    with pytest.raises(EvaluationError, match="must be trained on text, it was trained on image"):
        vlm2rec("report", home / "data", "--run", home / "joint", "--text-alone", home / "image")
    with pytest.raises(DiskError, match=r"page\.html: cannot be written: Not a directory"):
        vlm2rec("report", home / "data", "--run", home / "joint", "--out", home / "joint.toml" / "page.html")
