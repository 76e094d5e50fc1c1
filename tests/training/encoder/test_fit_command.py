"""`vlm2rec fit`: features without a VLM, both fits and the lists in one command that resumes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.offline.encoder import fit_encoder
from cli.offline.evaluate import evaluate
from cli.offline.fit import fit
from cli.offline.train import embed
from training.config.encoder_config import EncoderConfig
from training.embedding.store import Embeddings
from training.encoder import job
from training.encoder.refit import refit
from training.errors import EmbeddingsError

Run = tuple[Path, dict[str, Any]]

runner = CliRunner()
app = typer.Typer()
app.command("evaluate")(evaluate)
app.command("fit")(fit)
app.command("embed")(embed)
app.command("fit-encoder")(fit_encoder)


class Killed(BaseException):
    """Ends a command as a signal would."""


@pytest.fixture
def shop(
    quick_export: None,
    ring_directory: Path,
    small_config: EncoderConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A directory with the ring as ``shop`` and ``two.toml``, two epochs and a refit."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ring_directory, tmp_path / "shop")
    values = small_config.model_copy(update={"epochs": 2, "refit": True}).model_dump(mode="json")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    (tmp_path / "two.toml").write_text("[encoder]\n" + "\n".join(lines) + "\n")
    return tmp_path / "shop"


def test_one_command_makes_what_two_make(shop: Path) -> None:
    result = runner.invoke(app, ["fit", "shop", "--config", "two.toml"])
    assert result.exit_code == 0, result.output
    assert "embedded 12 items" in result.output
    assert "of 2 epochs" in result.output
    assert "refitted on all 360 events for " in result.output
    assert result.output.splitlines()[-1] == "next: vlm2rec index build --run runs/shop --publish bundles/"
    run = Path("runs/shop")
    for words in (["embed", "shop", "--run", "two", "--no-vlm"], ["fit-encoder", "shop", "--run", "two"]):
        more = ["--config", "two.toml"] if words[0] == "fit-encoder" else []
        assert runner.invoke(app, [*words, *more]).exit_code == 0
    one, two = (
        {p.relative_to(run): p.read_bytes() for p in run.rglob("*") if p.is_file()} for run in (run, Path("two"))
    )
    assert one.keys() == two.keys()
    assert [path for path in one if one[path] != two[path]] in ([], [Path("encoder/fit.json")])  # only the seconds


def test_texts_without_a_word_leave_pictures_and_behaviour(shop: Path) -> None:
    """Titles and texts of punctuation alone are none: in the features, the lists and the baselines of evaluate."""
    header, *rows = (shop / "items.csv").read_text().splitlines()
    cells = [row.split(",") for row in rows]
    lines = [header, *(",".join([item, "—", "...", *rest]) for item, _, _, *rest in cells)]
    (shop / "items.csv").write_text("\n".join(lines) + "\n")
    result = runner.invoke(app, ["fit", "shop", "--config", "two.toml"])
    assert result.exit_code == 0, result.output
    assert "no item has a text with a letter or digit in it: pictures and behaviour alone recommend" in result.output
    assert "readable picture: texts" not in result.output
    assert not Embeddings.load(Path("runs/shop/embeddings")).vectors["text"].any()
    result = runner.invoke(app, ["evaluate", "shop", "--run", "runs/shop"])
    assert result.exit_code == 0, result.output


def test_a_killed_command_goes_on_where_it_was(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_arguments: object, **_more: object) -> None:
        raise Killed

    words = ["fit", "shop", "--run", "own", "--config", "two.toml"]
    monkeypatch.setattr(job, "refit", kill)
    with pytest.raises(Killed):
        runner.invoke(app, words, catch_exceptions=False)
    monkeypatch.setattr(job, "refit", refit)
    assert Path("own/encoder/checkpoints").is_dir()
    assert not Path("own/encoder/fit.json").exists()
    monkeypatch.setattr(
        "training.embedding.baseline_job.embed_without_vlm", lambda *_arguments, **_more: pytest.fail("embedded again")
    )
    trained = job.fit

    def resumed(*arguments: Any, **more: Any) -> Any:
        return trained(*arguments, **more | {"report": lambda line: pytest.fail(f"epoch {line['epoch']} again")})

    monkeypatch.setattr(job, "fit", resumed)
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "embedded" not in result.output
    assert json.loads(Path("own/encoder/fit.json").read_text())["refit"]["events"] == 360


def test_a_changed_text_or_picture_is_embedded_again(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.offline.fit.fit_and_print", lambda *_arguments: None)

    def embedded() -> bool:
        result = runner.invoke(app, ["fit", "shop"])
        assert result.exit_code == 0, result.output
        return "embedded 12 items" in result.output

    assert embedded()
    assert not embedded()
    items = shop / "items.csv"
    items.write_text(items.read_text().replace("word4 ", "another "))
    assert embedded()
    shutil.copyfile(shop / "images" / "1.png", shop / "images" / "2.png")
    assert embedded()
    (shop / "images" / "2.png").unlink()
    assert embedded()
    assert not embedded()


@pytest.mark.usefixtures("shop")
def test_vectors_of_a_model_are_not_replaced(ring_run: Run) -> None:
    made = Embeddings.load(ring_run[0] / "embeddings")
    Embeddings(made.item_ids, dict(made.vectors), {"kind": "vlm"}).save(Path("runs/shop/embeddings"))
    result = runner.invoke(app, ["fit", "shop"])
    assert isinstance(result.exception, EmbeddingsError)
    assert "made by a vision-language model" in str(result.exception)
    assert "fit-encoder" in str(result.exception)


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("kind", ["vlm", "no-vlm"])
def test_embeddings_that_cannot_be_read_are_not_replaced(ring_run: Run, kind: str) -> None:
    made = Embeddings.load(ring_run[0] / "embeddings")
    directory = Path("runs/shop/embeddings")
    Embeddings(made.item_ids, dict(made.vectors), {"kind": kind}).save(directory)
    next(directory.glob("text-*.npy")).write_bytes(b"damaged")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    result = runner.invoke(app, ["fit", "shop"])
    assert isinstance(result.exception, EmbeddingsError)
    assert "embeddings cannot be read" in str(result.exception)
    assert "`vlm2rec embed` with the model of the run, `vlm2rec embed --no-vlm` without one" in str(result.exception)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert runner.invoke(app, ["embed", "shop", "--run", "runs/shop", "--no-vlm"]).exit_code == 0
    assert Embeddings.load(directory).model["kind"] == "no-vlm"


@pytest.mark.usefixtures("shop")
def test_a_run_with_a_model_is_not_fitted_without_it() -> None:
    Path("runs/shop/train/model").mkdir(parents=True)
    result = runner.invoke(app, ["fit", "shop"])
    assert isinstance(result.exception, EmbeddingsError)
    assert "runs/shop: has a trained model and no embeddings" in str(result.exception)
    assert not Path("runs/shop/embeddings").exists()
