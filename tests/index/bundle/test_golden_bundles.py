"""Bundles made by earlier versions load and answer as was recorded when they were made, or are refused.

``golden/format-2`` was built and answered by the last version that knew no item-to-item lists, ``golden/format-1`` by
the last one that recorded no reason for a missing modality.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.bundle.manifest import MANIFEST_FILE, Manifest
from index.bundle.registry import Registry
from index.errors import BundleInvalid
from index.lists.list_query import ListQuery
from tests.index.bundle.golden.make_bundle import REVISIONS

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("number", [2, 3])
def test_a_bundle_of_this_format_loads_and_answers_as_recorded(number):
    home = GOLDEN / f"format-{number}"
    path, answers = next(home.glob("2*Z-*")), json.loads((home / "answers.json").read_text())
    bundle = Bundle.load(path, verify="full")
    assert bundle.manifest.format == number
    assert bundle.id == path.name
    assert (bundle.list_scores is not None) == (number == 3)
    assert Manifest.read(path).to_json() == (path / MANIFEST_FILE).read_text()
    histories = [np.array(rows, dtype=np.int64) for rows in answers["histories"]]
    queries = bundle.encode(histories)
    np.testing.assert_allclose(queries, answers["queries"], atol=1e-6)
    lists = [ListQuery(rows) for rows in histories]
    for found in (bundle.search(queries, 5, histories=lists), bundle.exact(queries, 5, histories=lists)):
        assert found.rows.tolist() == answers["rows"]
        np.testing.assert_allclose(found.scores, answers["scores"], atol=1e-6)
        parts = bundle.contributions(queries, found.rows, lists)
        np.testing.assert_allclose(parts, answers["contributions"], atol=1e-6)
        np.testing.assert_allclose(parts.sum(axis=2), found.scores, atol=1e-5)
    assert bundle.popular(4).rows[0].tolist() == answers["popular"]


REFUSAL = "bundle format {}, this version reads 2 and 3; build the bundle again with this version"


def test_a_bundle_of_the_first_format_is_refused_with_what_to_do(tmp_path):
    path = next((GOLDEN / "format-1").glob("2*Z-*"))
    with pytest.raises(BundleInvalid, match=re.escape(REFUSAL.format(1))):
        Bundle.load(path)
    with pytest.raises(BundleInvalid, match=re.escape(REFUSAL.format(1))):
        Registry(tmp_path).publish(path)
    assert Registry(tmp_path).current() is None


@pytest.mark.parametrize("number", [4, 0, -1, "3", 2.0, True, None])
def test_a_format_of_another_version_is_refused(tmp_path, number):
    raw = json.loads((next((GOLDEN / "format-3").glob("2*Z-*")) / MANIFEST_FILE).read_text())
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(raw | {"format": number}))
    with pytest.raises(BundleInvalid, match=re.escape(REFUSAL.format(repr(number)))):
        Manifest.read(tmp_path)


def test_every_format_has_a_golden_bundle_and_a_revision_that_makes_it():
    assert {f"format-{number}" for number in REVISIONS} == {path.name for path in GOLDEN.glob("format-*")}


@pytest.mark.slow
@pytest.mark.parametrize("number", [*REVISIONS])
def test_what_an_earlier_revision_builds_now_is_loaded_or_refused_as_the_golden_one(tmp_path, number):
    known = subprocess.run(["git", "cat-file", "-e", REVISIONS[number]], cwd=GOLDEN, check=False, capture_output=True)
    if known.returncode:
        pytest.skip(f"git has no {REVISIONS[number]} here: a shallow clone, or no clone")
    command = [sys.executable, GOLDEN / "make_bundle.py", str(number), tmp_path]
    made = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
    if number == 1:
        with pytest.raises(BundleInvalid, match=re.escape(REFUSAL.format(1))):
            Bundle.load(made, verify="full")
        golden = next((GOLDEN / "format-1").glob("2*Z-*"))
        for name in ("items.parquet", "vectors.npy", "encoder.onnx"):
            assert (golden / name).read_bytes() == (made / name).read_bytes()
        return
    bundle = Bundle.load(made, verify="full")
    queries = bundle.encode([np.array([0, 1, 2])])
    assert bundle.search(queries, 5, histories=[ListQuery(np.array([0, 1, 2]))]).rows.shape == (1, 5)
