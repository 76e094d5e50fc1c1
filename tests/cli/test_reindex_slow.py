"""The nightly job through the real commands: a trained model, changed data, one command, a served new item."""

import csv
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_model import TINY_VLM

pytestmark = pytest.mark.slow

CONFIG = f"""{TINY_VLM}[train]
batch_size = 4
steps = 2
[encoder]
epochs = 2
"""


def vlm2rec(*arguments: object) -> str:
    command = [sys.executable, "-m", "cli.main", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_an_item_of_today_is_served_tonight(tmp_path: Path) -> None:
    data, run, bundles = tmp_path / "data", tmp_path / "run", tmp_path / "bundles"
    (tmp_path / "own.toml").write_text(CONFIG)
    vlm2rec("data", "make-demo", data, "--items", 60, "--users", 200, "--evaluation-users", 0)
    vlm2rec("train", data, "--run", run, "--config", tmp_path / "own.toml")
    vlm2rec("embed", data, "--run", run)
    vlm2rec("fit-encoder", data, "--run", run)
    vlm2rec("index", "build", "--run", run, "--publish", bundles)
    job = ("reindex", data, "--run", run, "--registry", bundles, "--json", tmp_path / "summary.json")
    assert "the current bundle" in vlm2rec(*job)
    with (data / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with (data / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(
            [*rows, {**rows[0], "item_id": "today", "title": "Dunmere cork bottle", "text": "A bottle of cork."}]
        )
    said = vlm2rec(*job)
    assert "61 items: 1 new, 0 changed, 60 unchanged, 0 deleted" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["embedding"]["encoded"] == 1
    assert "nothing to do" in vlm2rec(*job)
    command = [sys.executable, "-m", "cli.main", "serve", "--registry", str(bundles), "--embedded-redis", "--port", "0"]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        url = next(word for word in service.stdout.readline().split() if word.startswith("http"))
        answer = post(f"{url}/similar", {"item_id": "today", "k": 5})
        assert answer["bundle"] == summary["bundle"]
        assert len(answer["items"]) == 5
        found = post(f"{url}/recommend", {"items": ["today"], "k": 60})
        assert found["strategy"] == "sequence"
    finally:
        service.send_signal(signal.SIGTERM)
        assert service.wait(60) == 0
        assert service.stdout is not None
        service.stdout.close()
