"""Jobs of minutes make the same of a data set in an object store as of the same files in a directory."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from index.bundle.registry import Registry
from index.event_export.directory import ExportDirectory
from tests.support.stores.s3_server import S3Server
from tests.support.stores.stored_data import URL, upload
from tests.support.stores.stream_entries import stream_entry
from tests.support.tiny_model import TINY_VLM
from training.config.encoder_config import EncoderConfig

DAY = 86_400
START = 1_790_000_000


def vlm2rec(*words: object) -> None:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output


def made(home: Path) -> dict[str, bytes]:
    """The vectors, lists and weights below a directory, but those of bundles and of the nightly job.

    Names of bundles are times; the nightly job names its lists after a hash of ``fit.json``, which holds seconds.
    """
    found = {}
    for path in home.rglob("*"):
        name = path.relative_to(home)
        if path.suffix in {".npy", ".npz", ".safetensors"} and name.parts[0] not in {"bundles", "reindex"}:
            found[name.as_posix()] = path.read_bytes()
    return found


def bundle(registry: Path) -> dict[str, bytes]:
    """The same of the current bundle."""
    found = Registry(registry)
    current = found.current()
    assert current is not None
    return made(found.path(current))


def export_events(directory: Path) -> None:
    """Three more steps of 40 users around the ring."""
    export = ExportDirectory.open_or_create(directory)
    entries = []
    for step in range(3):
        for user in range(40):
            at = START + step * DAY
            event = {"user_id": f"u{user}", "item_id": f"r{(user + step) % 12}", "timestamp": str(at), "type": ""}
            entries.append(stream_entry(at * 1000, user, event))
    export.commit([export.write_entries(0, entries)])


@pytest.mark.slow
@pytest.mark.usefixtures("cache", "quick_export")
def test_train_embed_evaluate_reindex_and_retrain(
    s3: S3Server, ring_directory: Path, small_config: EncoderConfig, tmp_path: Path
) -> None:
    upload(s3, ring_directory)
    export_events(tmp_path / "export")
    values = small_config.model_copy(update={"epochs": 1}).model_dump(mode="json")
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    config = tmp_path / "own.toml"
    config.write_text(f"{TINY_VLM}[train]\nbatch_size = 4\n[encoder]\n" + "\n".join(lines) + "\n")
    found: list[tuple[dict[str, bytes], ...]] = []
    for data, name in ((URL, "stored"), (ring_directory, "local")):
        run, registry = tmp_path / name, tmp_path / f"{name}-bundles"
        vlm2rec("train", data, "--run", run, "--config", config, "--steps", 2, "--threads", 1)
        vlm2rec("embed", data, "--run", run)
        vlm2rec("fit-encoder", data, "--run", run)
        vlm2rec("evaluate", data, "--run", run)
        vlm2rec("reindex", data, "--run", run, "--registry", registry, "--threads", 1)
        first = bundle(registry)
        where = ("--events", tmp_path / "export", "--registry", registry, "--run", run)
        vlm2rec("retrain", data, *where, "--measure-days", 1.5, "--threads", 1, "--bound", "recall=0.5", "--force")
        pages = {path.name: path.read_bytes() for path in (run / "evaluation").glob("*.md")}
        found.append((made(run), first, bundle(registry), pages))
    for stored, local in zip(*found, strict=True):
        assert sorted(name for name in stored.keys() | local.keys() if stored.get(name) != local.get(name)) == []
    run_files, first, second, pages = found[0]
    assert {"train/model/model.safetensors", "encoder/table/vectors.npy"} <= run_files.keys()
    assert first["vectors.npy"] != second["vectors.npy"]
    assert pages.keys() == {"test.md"}
    assert not Path("s3:").exists()
