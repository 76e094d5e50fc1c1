"""`vlm2rec reindex` for schedulers and monitors: exit codes, summaries, metrics, and dry runs."""

import http.server
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from training.runs.lock import run_lock

if TYPE_CHECKING:
    from conftest import Shop

PREFIX = "vlm2rec_reindex_"


def figures(text: str) -> dict[str, float]:
    """Samples by name without the prefix, and label if there is one."""
    return {
        "/".join([sample.name.removeprefix(PREFIX), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_the_gate_refuses_and_the_pointer_stays(nightly: "Shop", tmp_path: Path) -> None:
    before = nightly.registry.current()
    nightly.set(0, text="another text")
    bound = ("--bound", "latency_p99_ms=0.000001")  # no search is that fast
    result = nightly.invoke("--json", tmp_path / "summary.json", "--textfile", tmp_path / "job.prom", *bound)
    assert result.exit_code == 1
    assert re.search(r"refused: .*latency_p99_ms\.plain \d", result.output)
    assert nightly.registry.current() == before
    assert len(nightly.registry.list()) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["outcome"], summary["exit_code"], summary["items"]["changed"]) == ("refused", 1, 1)
    written = figures((tmp_path / "job.prom").read_text())
    assert (written["exit_status"], written[f"bundle_info/{before}"]) == (1, 1)
    built = Path(summary["built"])
    assert nightly.reindex(*bound, code=1)["built"] == str(built)  # it is not built again …
    assert nightly.reindex(*bound, "--force")["bundle"] == built.name  # … and can be published as it is
    assert nightly.bundle().manifest.forced
    assert not built.exists()


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda shop: (shop.data / "items.csv").unlink(), "items.csv"),
        (lambda shop: (shop.run / "encoder" / "fit.json").unlink(), "fit-encoder"),
        (lambda shop: (shop.run / "encoder" / "fit.json").write_text("{}"), "fit-encoder` again"),
        (lambda shop: (shop.run / "encoder" / "probes.npz").write_bytes(b"PK"), "fit-encoder` again"),
        (lambda shop: (shop.run / "train" / "model" / "vlm2rec.json").unlink(), "vlm2rec train"),
        (lambda shop: (shop.run / "train" / "model" / "vlm2rec.json").write_text('{"format": 1}'), "train again"),
        (lambda shop: (shop.run / "config.toml").write_text("vlm = 3"), "vlm"),
        (lambda shop: (shop.run / "evaluation.json").write_text("["), "evaluate"),
        (lambda shop: shop.registry.pointer.write_text("{"), "pointer.json"),
        (lambda shop: shop.run.rename(shop.home / "elsewhere"), "cannot be locked"),
    ],
)
def test_bad_input_is_one_clear_line(nightly: "Shop", break_it: object, says: str) -> None:
    assert callable(break_it)
    break_it(nightly)
    result = nightly.invoke()
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert says in line
    assert "Traceback" not in result.output


def test_another_model_than_the_encoder_was_fitted_on_is_refused(nightly: "Shop") -> None:
    """Its vectors would lie in another space than the projection expects."""
    path = nightly.run / "train" / "model" / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"image_mean"', '"image_mean" '))
    summary = nightly.reindex(code=2)
    assert "another model (preprocessing" in summary["error"]
    assert "`vlm2rec fit-encoder`" in summary["error"]


def test_features_without_a_model_are_refused(nightly: "Shop") -> None:
    path = nightly.run / "encoder" / "table" / "table.json"
    path.write_text(path.read_text().replace('"kind": "vlm"', '"kind": "no-vlm"'))
    summary = nightly.reindex(code=2)
    assert "cannot be embedded alone" in summary["error"]
    assert "embed --no-vlm" in summary["error"]


def test_a_missing_projection_is_named_before_anything_is_published(nightly: "Shop") -> None:
    (nightly.run / "encoder" / "projection.safetensors").unlink()
    assert "fit-encoder" in nightly.reindex(code=2)["error"]


def test_a_defect_of_the_program_has_a_code_of_its_own(nightly: "Shop", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.nightly.reindex.metadata_digest", lambda _table: 1 / 0)
    result = nightly.invoke()
    assert result.exit_code == 70
    assert "error: division by zero" in result.output


def test_a_full_disk_is_said(nightly: "Shop", monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.nightly.item_updates.ContentHashes.save", full)
    nightly.set(0, title="x")
    assert "No space left" in nightly.reindex(code=2)["error"]
    monkeypatch.undo()
    assert nightly.reindex()["outcome"] == "published"


@pytest.mark.parametrize("option", ["--json", "--textfile"])
def test_a_place_that_cannot_be_written_is_refused_at_once(nightly: "Shop", tmp_path: Path, option: str) -> None:
    nightly.set(0, title="x")
    result = nightly.invoke(option, tmp_path / "nowhere" / "file")
    assert result.exit_code == 2
    assert "existing directory" in result.output
    assert len(nightly.registry.list()) == 1


def test_while_another_job_holds_the_run(nightly: "Shop", tmp_path: Path) -> None:
    with run_lock(nightly.run):
        assert nightly.reindex("--textfile", tmp_path / "job.prom", code=75)["outcome"] == "busy"
        assert nightly.reindex("--dry-run", code=75)["outcome"] == "busy"
    assert figures((tmp_path / "job.prom").read_text())["exit_status"] == 75
    with run_lock(nightly.run, shared=True):
        assert nightly.reindex("--dry-run")["outcome"] == "dry run"
    assert nightly.reindex()["outcome"] == "nothing to do"


def test_a_dry_run_changes_nothing(nightly: "Shop") -> None:
    nightly.set(0, text="another text")
    nightly.edit(lambda rows: [*rows[:-1], {"item_id": "new", "title": "", "text": "n", "image": ""}])
    before = nightly.files()
    result = nightly.invoke("--dry-run")
    assert result.exit_code == 0, result.output
    assert "would embed 2 of 30 items" in result.output
    assert "1 new, 1 changed, 28 unchanged, 1 deleted" in result.output
    assert "would build a bundle and publish it" in result.output
    assert nightly.files() == before
    nightly.reindex()
    before = nightly.files()
    assert "would publish nothing" in nightly.invoke("--dry-run").output
    assert nightly.files() == before


def test_a_dry_run_before_the_first_publication(own: "Shop") -> None:
    before = own.files()
    assert own.reindex("--dry-run")["why"] == ["nothing is published yet"]
    assert own.files() == before


def test_metrics_of_a_success_and_of_the_failure_after_it(nightly: "Shop", tmp_path: Path) -> None:
    textfile = tmp_path / "job.prom"
    nightly.set(0, text="another text")
    summary = nightly.reindex("--textfile", textfile)
    good = figures(textfile.read_text())
    assert {name: good[f"items/{name}"] for name in ("new", "changed", "unchanged", "deleted", "unreadable")} == {
        "new": 0, "changed": 1, "unchanged": 29, "deleted": 0, "unreadable": 1
    }  # fmt: skip
    assert (good["exit_status"], good["embedded_items"], good[f"bundle_info/{summary['bundle']}"]) == (0, 1, 1)
    assert good["saved_ratio"] == pytest.approx(29 / 30)
    assert 0 <= good["last_run_timestamp_seconds"] - good["last_success_timestamp_seconds"] < good["duration_seconds"]
    (nightly.data / "items.csv").unlink()
    nightly.reindex("--textfile", textfile, code=2)
    bad = figures(textfile.read_text())
    assert bad["exit_status"] == 2
    assert bad["last_success_timestamp_seconds"] == good["last_success_timestamp_seconds"]
    assert bad["last_run_timestamp_seconds"] > good["last_run_timestamp_seconds"]
    assert bad[f"bundle_info/{summary['bundle']}"] == 1
    assert [path.name for path in tmp_path.iterdir() if "prom" in path.name] == ["job.prom"]


@pytest.fixture
def gateway() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A Pushgateway as far as a client sees it: address, and body by path."""
    taken: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            taken[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_metrics_are_pushed(nightly: "Shop", gateway: tuple[str, dict[str, bytes]]) -> None:
    nightly.reindex("--pushgateway", gateway[0])
    ((path, body),) = gateway[1].items()
    assert path == "/metrics/job/vlm2rec_reindex/run/run"
    assert figures(body.decode())["exit_status"] == 0


@pytest.mark.parametrize("address", ["127.0.0.1:9", "http://[nonsense"])
def test_a_gateway_that_is_not_there_is_only_a_warning(nightly: "Shop", address: str) -> None:
    result = nightly.invoke("--pushgateway", address)
    assert result.exit_code == 0
    assert "warning: " in result.output
    assert "cannot be pushed" in result.output


def test_a_catalogue_that_lost_every_item_of_before(nightly: "Shop") -> None:
    """No probe is left; the bundle is built all the same."""
    nightly.edit(lambda rows: [{**row, "item_id": f"n{number}"} for number, row in enumerate(rows)])
    events = nightly.data / "interactions.csv"
    events.write_text(re.sub(r",i(\d\d),", lambda found: f",n{int(found[1])},", events.read_text()))
    summary = nightly.reindex("--bound", "deleted=none")
    assert (summary["items"]["new"], summary["items"]["deleted"]) == (30, 30)
    assert len(nightly.bundle().evaluation_queries) == 0


def test_a_catalogue_without_anything_to_embed_is_refused(nightly: "Shop") -> None:
    before = nightly.registry.current()
    nightly.edit(lambda rows: [{**row, "title": "", "text": "", "image": ""} for row in rows])
    assert "name none" in nightly.reindex(code=1)["error"]
    assert "nothing can be embedded" in nightly.reindex("--force", code=2)["error"]
    assert nightly.registry.current() == before


def test_trusted_times_on_the_command_line(nightly: "Shop") -> None:
    """The same size and time with other bytes is not seen with the option, and is without it."""
    picture = nightly.data / "images" / "9.png"
    status, content = picture.stat(), bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(content)
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert nightly.reindex("--trust-times")["outcome"] == "nothing to do"
    assert nightly.reindex()["items"]["changed"] == 1
