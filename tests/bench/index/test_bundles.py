"""Bundles of the benches are found where they are."""

import json
from dataclasses import asdict
from pathlib import Path

from bench.index.bundles import Published, published


def test_a_bundle_whose_folder_was_moved_is_found_there(tmp_path: Path) -> None:
    there = Published(
        100, "/elsewhere/registry", "/elsewhere/registry/20260101T000000Z-abcdef", "flat", 1.0, 1.0, 1, 1, {}
    )
    home = tmp_path / "catalogue-100"
    home.mkdir()
    (home / "published.json").write_text(json.dumps(asdict(there)))
    found = published(100, tmp_path, tmp_path / "encoder.onnx", lambda *_: None)
    assert found.registry == str(home / "registry")
    assert found.bundle == str(home / "registry" / "20260101T000000Z-abcdef")
    assert (found.kind, found.rows) == ("flat", 100)
