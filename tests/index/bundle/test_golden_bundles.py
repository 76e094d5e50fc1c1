"""Bundles made by earlier versions load and answer as was recorded when they were made.

``golden/format-2`` was built and answered by the last version that knew no item-to-item lists.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.bundle.manifest import MANIFEST_FILE, Manifest
from index.lists.list_query import ListQuery

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
