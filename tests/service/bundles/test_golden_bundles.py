"""A service answers from the golden bundles of the formats that it reads, and stays with its bundle at another one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from index.bundle.pointer import Pointer
from index.bundle.registry import Registry
from tests.support.shops import OpenClient, eventually, serving

GOLDEN = Path(__file__).parents[2] / "index" / "bundle" / "golden"


def golden(number: int) -> Path:
    return next((GOLDEN / f"format-{number}").glob("2*Z-*"))


@pytest.mark.parametrize("number", [2, 3])
def test_it_answers_as_was_recorded(open_shop: OpenClient, tmp_path: Path, number: int) -> None:
    registry = Registry(tmp_path / "golden")
    registry.publish(golden(number))
    recorded = json.loads((GOLDEN / f"format-{number}" / "answers.json").read_text())
    ids = [f"i{row}" for row in range(12)]
    with open_shop(registry=str(registry.root)) as client:
        for history, rows, scores in zip(recorded["histories"], recorded["rows"], recorded["scores"], strict=True):
            items = [ids[row] for row in history]
            asked = {"items": items, "k": 5, "exclude_seen": False}
            answer = client.post("/recommend", json=asked).json()
            assert (answer["bundle"], answer["degraded"]) == (golden(number).name, None)
            assert [item["item_id"] for item in answer["items"]] == [ids[row] for row in rows]
            np.testing.assert_allclose([item["score"] for item in answer["items"]], scores, atol=1e-4)


def test_a_bundle_of_a_format_that_it_does_not_read_changes_nothing(open_shop: OpenClient, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "golden")
    good = registry.publish(golden(3))
    with open_shop(registry=str(registry.root)) as client:
        shutil.copytree(golden(1), registry.root / golden(1).name)
        Pointer(golden(1).name, (good,), (good, golden(1).name)).write(registry.pointer)
        (refused,) = eventually(lambda: client.get("/bundle").json()["swap"]["refused"])
        assert (refused["bundle"], refused["reason"]) == (golden(1).name, "invalid")
        assert serving(client) == good
