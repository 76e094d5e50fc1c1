"""The benchmarks run at toy size, where their timings mean nothing but their checks of results must pass."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


def run(tmp_path, script, *options):
    out = tmp_path / "result.json"
    command = [sys.executable, f"bench/{script}", *options, "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(out.read_text())


def test_filters(tmp_path):
    result = run(
        tmp_path, "index/filters.py", "--rows", "3000", "--kind", "ivf", "--queries", "50", "--work", str(tmp_path)
    )
    lines = {line["filter"]: line for line in result["filters"]}
    assert all(line["complete"] for line in lines.values())
    assert lines["random 0.001"]["path"] == "gather"
    assert lines["random 0.001"]["allowed"] in {2, 3}  # one item in a thousand has no slot
    assert min(line["recall@20"] for line in lines.values()) >= 0.93
    again = run(
        tmp_path, "index/filters.py", "--rows", "3000", "--kind", "ivf", "--queries", "50", "--work", str(tmp_path)
    )
    assert again["build_s"] is None  # the bundle was there already


def test_list_cost(tmp_path):
    options = ("--items", "2000", "--neighbours", "20", "--rounds", "2", "--work", str(tmp_path))
    result = run(tmp_path, "index/list_cost.py", *options)
    for kind in ("like each other", "random"):
        assert result[kind]["batch 1"]["without_us"] > 0
        assert result[kind]["batch 16"]["ratio"] > 0


def test_encoder_cost(tmp_path):
    result = run(tmp_path, "index/encoder_cost.py", "--rounds", "2")
    for batch in ("batch 1", "batch 4", "batch 16"):
        assert set(result["microseconds_an_answer"][batch]) == {"2 x 128", "2 x 64", "1 x 64"}
        assert min(result["microseconds_an_answer"][batch].values()) > 0


def test_gpu_index_on_the_cpu(tmp_path):
    result = run(tmp_path, "gpu/gpu_index.py", "--rows", "5000", "--device", "cpu", "--queries", "20")
    assert result["failures"] == []
    assert result["device"] == "cpu"
    assert {line["path"] for line in result["flat"]["filters"]} == {"index", "scan", "gather", "none"}
