"""A data set with large losses is refused before anything is embedded or published; restored data costs nothing."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from index.bundle.gate import DATA_BOUNDS
from index.bundle.manifest import Manifest
from index.items.modality_status import ModalityStatus
from training.errors import ConfigError
from training.nightly.volume_bounds import VolumeBounds

if TYPE_CHECKING:
    from conftest import Shop

Encoded = list[list[int]]


def cut(path: Path, lines: int) -> None:
    """Keep the first lines of a file, as a download that was broken off does."""
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


def refused(shop: "Shop", bound: str, *more: object) -> str:
    """The message of a job that is refused by a bound, after a look at what it left alone."""
    before, vectors = shop.registry.current(), shop.run / "embeddings" / "embeddings.json"
    stamp = vectors.stat().st_mtime_ns
    dry = shop.invoke("--dry-run", *more)
    summary = shop.reindex(*more, code=1)
    assert (summary["outcome"], summary["exit_code"]) == ("refused", 1)
    assert f"--bound {bound}=none" in summary["error"]
    assert summary["lost"][bound] > 0
    assert shop.registry.current() == before
    assert vectors.stat().st_mtime_ns == stamp  # nothing was embedded
    assert dry.exit_code == 1
    assert f"refused: {summary['error']}" in dry.output
    return str(summary["error"])


def test_pictures_that_are_not_found_are_refused_and_cost_nothing_when_they_are_back(
    nightly: "Shop", encoded: Encoded
) -> None:
    (nightly.data / "images").rename(nightly.data / "elsewhere")
    said = refused(nightly, "missing_files")
    assert re.search(r"27 of 27 items that had a picture in the current bundle \S+ name a file that is not found", said)
    assert "such as 'images/0.png' (100.0%, bound missing_files: at most 0.02)" in said
    items = nightly.reindex(code=1)["items"]  # the one that could not be decoded before is not there either
    assert (items["not_found"], items["unreadable"]) == (28, 0)
    assert nightly.reindex("--bound", "missing_files=none")["items"]["not_found"] == 28
    image = nightly.bundle().layout.names.index("image")
    assert np.count_nonzero(nightly.bundle().missing[:, image] == ModalityStatus.NOT_FOUND) == 28
    (nightly.data / "elsewhere").rename(nightly.data / "images")
    summary = nightly.reindex()
    assert encoded == [[5]]  # its picture cannot be read, so that no vector of it can be kept
    assert (summary["embedding"]["needed"], summary["embedding"]["reused"]) == (1, 27)
    assert np.count_nonzero(nightly.bundle().missing[:, image] == ModalityStatus.PRESENT) == 27


def test_a_gate_that_refuses_a_night_throws_no_vector_away(nightly: "Shop", encoded: Encoded) -> None:
    (nightly.data / "images").rename(nightly.data / "elsewhere")
    summary = nightly.reindex("--bound", "missing_files=none", "--bound", "missing.image=0.5", code=1)
    assert "missing.image" in summary["error"]
    (nightly.data / "elsewhere").rename(nightly.data / "images")
    assert nightly.reindex()["outcome"] == "nothing to do"
    nightly.set(0, title="another title")
    assert nightly.reindex()["embedding"]["reused"] == 27
    assert encoded == [[5]]


def test_a_picture_that_the_system_does_not_give_counts_as_missing(
    nightly: "Shop", monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstat

    def broken(number: int) -> os.stat_result:
        if "/images/" in str(Path(f"/proc/self/fd/{number}").readlink()):
            raise OSError(5, "Input/output error")
        return real(number)

    monkeypatch.setattr("training.embedding.content_hashes.os.fstat", broken)
    assert "27 of 27" in refused(nightly, "missing_files")


def test_a_cut_export_is_refused(nightly: "Shop") -> None:
    cut(nightly.data / "items.csv", 7)
    said = refused(nightly, "deleted")
    assert re.search(r"24 of 30 items of the current bundle \S+ are not in the catalogue \(80.0%, bound deleted", said)
    assert refused(nightly, "deleted", "--bound", "deleted=0.79")
    assert nightly.reindex("--bound", "deleted=0.8")["items"]["deleted"] == 24
    assert len(nightly.bundle()) == 6


def test_force_publishes_it_and_says_so(nightly: "Shop") -> None:
    cut(nightly.data / "items.csv", 7)
    result = nightly.invoke("--force")
    assert result.exit_code == 0, result.output
    assert "warning: published by force: 24 of 30 items" in result.output


def test_lost_interactions_are_refused_by_the_count_of_the_last_build(nightly: "Shop") -> None:
    events = nightly.data / "interactions.csv"
    every = len(events.read_text().splitlines()) - 1
    recorded = Manifest.read(nightly.bundle().path).model["volume"]
    assert recorded == {"events": every}
    whole = events.read_text()
    cut(events, every // 2 + 1)
    said = refused(nightly, "lost_events")
    assert f"{every - every // 2} of {every} interactions that the current bundle" in said
    assert nightly.reindex("--bound", "lost_events=none")["outcome"] == "published"
    events.write_text(whole)
    assert nightly.reindex()["outcome"] == "published"  # more is never too much


def test_events_of_items_that_are_gone_are_not_lost(nightly: "Shop") -> None:
    cut(nightly.data / "items.csv", 26)
    summary = nightly.reindex()
    assert summary["lost"]["lost_events"] == 0
    assert summary["lost"]["deleted"] == round(5 / 30, 6)


def test_a_bundle_that_recorded_no_interactions_is_compared_by_its_training_events(
    nightly: "Shop", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.nightly.reindex.VOLUME", "unknown to an earlier version")
    nightly.set(0, title="x")
    nightly.reindex()
    monkeypatch.undo()
    cut(nightly.data / "interactions.csv", 60)
    assert "interactions that the current bundle" in refused(nightly, "lost_events")


@pytest.mark.parametrize(("column", "bound"), [("text", "lost_texts"), ("image", "lost_pictures")])
def test_a_column_that_is_lost_is_refused(nightly: "Shop", column: str, bound: str) -> None:
    others = {"text": "title", "image": "image"}
    nightly.edit(lambda rows: [{**row, column: "", others[column]: ""} for row in rows])
    assert " 100.0%" in refused(nightly, bound).replace("(", " ")


def test_pictures_that_were_cut_short_are_refused_and_their_vectors_kept(nightly: "Shop", encoded: Encoded) -> None:
    pictures = sorted((nightly.data / "images").iterdir())
    contents = {path: path.read_bytes() for path in pictures}
    for path in pictures:
        path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    before = nightly.registry.current()
    summary = nightly.reindex(code=1)
    assert "--bound unreadable_files=none" in summary["error"]
    assert "27 of 27 items that had a picture" in summary["error"]
    assert nightly.registry.current() == before
    encoded.clear()
    for path, content in contents.items():
        path.write_bytes(content)
    assert nightly.reindex()["outcome"] == "nothing to do"
    assert [row for rows in encoded for row in rows] == []


def test_a_job_that_has_nothing_to_do_is_never_refused(nightly: "Shop") -> None:
    assert nightly.reindex("--bound", "deleted=0")["outcome"] == "nothing to do"


def test_a_damaged_bundle_is_compared_by_the_run_s_own_table(nightly: "Shop") -> None:
    manifest = nightly.registry.path(str(nightly.registry.current())) / "manifest.json"
    manifest.chmod(0o644)
    manifest.write_text("{}")
    cut(nightly.data / "items.csv", 7)
    assert "of the run's last item table" in refused(nightly, "deleted")


def test_bounds_of_the_data_from_a_file_and_from_options(tmp_path: Path) -> None:
    file = tmp_path / "bounds.toml"
    file.write_text('deleted = 0.5\nmissing_files = "none"\nrecall = 0.9\n')
    found = VolumeBounds.read(file, ["lost_events=0.1", "coverage=0.2", "deleted = none"])
    assert (found.deleted, found.missing_files, found.lost_events) == (None, None, 0.1)
    assert VolumeBounds.names() == DATA_BOUNDS
    assert VolumeBounds.read(None, []) == VolumeBounds(0.2, 0.2, 0.2, 0.2, 0.02, 0.5)
    for wrong in ("deleted=2", "deleted=x", "missing_files=nan", "lost_events=-1"):
        with pytest.raises(ConfigError, match=rf"bound {wrong.partition('=')[0]} must be a number, 0 … 1"):
            VolumeBounds.read(None, [wrong])
    file.write_text("\ufeffdeleted = 0.3")  # `index build` reads such a file of bounds, too
    assert VolumeBounds.read(file, []).deleted == 0.3
    for text, rule in (("deleted = true", "must be a number"), ("deleted = " + "[" * 5_000, "not usable as bounds")):
        file.write_text(text)
        with pytest.raises(ConfigError, match=rule):
            VolumeBounds.read(file, [])
    with pytest.raises(ConfigError, match="not usable as bounds"):
        VolumeBounds.read(tmp_path / "none.toml", [])


def test_the_same_file_of_bounds_serves_the_index_and_the_job(nightly: "Shop", tmp_path: Path) -> None:
    file = tmp_path / "bounds.toml"
    file.write_text("deleted = 0.9\nrecall = 0.5\n")
    cut(nightly.data / "items.csv", 7)
    summary = nightly.reindex("--bounds", file)
    assert summary["outcome"] == "published"
    assert json.loads((nightly.bundle().path / "report.json").read_text())["gate"]["bounds"]["recall"] == 0.5
