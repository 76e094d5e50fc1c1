"""The nightly job on a data set in an object store; some ten seconds beside those of its fixtures."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from tests.support.stores.s3_server import S3Server
from tests.support.stores.stored_data import PREFIX, URL, put, upload

if TYPE_CHECKING:
    from conftest import Shop


def reindex(shop: "Shop", summary: Path, code: int = 0) -> dict[str, Any]:
    """The summary of a job that reads the shop's data set from the store."""
    words = [URL if word == str(shop.data) else word for word in shop.words("--json", summary)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(summary.read_text())
    return found


@pytest.mark.slow
def test_it_makes_the_bundle_of_the_same_files_in_a_directory_and_names_the_store(
    s3: S3Server, nightly: "Shop", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(tmp_path / "cache"))
    upload(s3, nightly.data)
    assert reindex(nightly, tmp_path / "1.json")["outcome"] == "nothing to do"
    picture = s3.objects[f"{PREFIX}images/2.png"][0]
    put(s3, "images/0.png", picture, day=2)
    local = type(nightly)(Path(shutil.copytree(nightly.home, tmp_path / "local")))
    (local.data / "images" / "0.png").write_bytes(picture)
    assert reindex(nightly, tmp_path / "2.json")["outcome"] == local.reindex()["outcome"] == "published"
    assert nightly.rows() == local.rows()
    assert nightly.lists() == local.lists()
    for key in [key for key in s3.objects if key.endswith(".png")]:
        del s3.objects[key]
    said = reindex(nightly, tmp_path / "3.json", code=1)["error"]
    assert said.startswith(f"{URL}: ")
    assert "--bound missing_files=none" in said
