"""Commands read a data set in an object store, and make the same of it as of the same files in a directory."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.offline.data.check import check
from cli.offline.evaluate import evaluate
from cli.offline.fit import fit
from tests.support.stores.s3_server import S3Server
from tests.support.stores.stored_data import URL, put, upload
from training.config.encoder_config import EncoderConfig

runner = CliRunner()
app = typer.Typer()
app.command("fit")(fit)
app.command("evaluate")(evaluate)
app.command("check")(check)


def made(run: str) -> dict[str, bytes]:
    """The vectors, lists and weights of a run; tables of its pictures have their times."""
    files = [path for path in Path(run).rglob("*") if path.suffix in {".npy", ".npz", ".safetensors"}]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


@pytest.mark.usefixtures("quick_export", "cache")
def test_fit_and_evaluate(
    s3: S3Server, ring_directory: Path, small_config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    upload(s3, ring_directory)
    values = small_config.model_copy(update={"epochs": 2, "refit": False}).model_dump(mode="json")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    Path("two.toml").write_text("[encoder]\n" + "\n".join(lines) + "\n")
    for data, run in ((URL, "runs/data"), (str(ring_directory), "local")):
        more = [] if data == URL else ["--run", run]  # the run is named after the last part of the URL
        fitted = runner.invoke(app, ["fit", data, "--config", "two.toml", *more])
        assert fitted.exit_code == 0, fitted.output
        measured = runner.invoke(app, ["evaluate", data, "--run", run])
        assert measured.exit_code == 0, measured.output
    found, expected = made("runs/data"), made("local")
    assert {"embeddings/image-000001.npy", "encoder/table/vectors.npy", "encoder/lists/co-rows.npy"} <= expected.keys()
    assert found == expected
    pages = [[page.read_text() for page in (Path(run) / "evaluation").glob("*.md")] for run in ("runs/data", "local")]
    assert len(pages[0]) == 1
    assert pages[0] == pages[1]
    assert not Path("s3:").exists()


@pytest.mark.usefixtures("stored")
def test_the_check_prints_the_url_and_ends_with_1_for_a_broken_table(s3: S3Server) -> None:
    found = runner.invoke(app, ["check", URL])
    assert (found.exit_code, URL in found.output) == (0, True)
    put(s3, "interactions.csv", b"user_id,item_id\nu,i01\n", day=2)
    found = runner.invoke(app, ["check", URL])
    assert found.exit_code == 1
    assert f"{URL}/interactions.csv: column 'timestamp' is missing" in " ".join(found.output.split())
