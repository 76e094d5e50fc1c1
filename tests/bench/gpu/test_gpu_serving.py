"""The search for the highest rate on made answers; a run on the CPU is a slow test of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.gpu.gpu_serving import good_enough, highest_rate

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("most", [62, 63, 100, 999, 1_000, 1_024, 1_999, 2_000, 7_777, 64_000])
def test_the_highest_rate_is_found_to_a_twentieth(most: int) -> None:
    tried: list[int] = []
    found = highest_rate(lambda rate: tried.append(rate) or rate <= most, 1_000)
    assert most / 1.05 - 1 <= found <= most
    assert found in tried
    assert len(tried) == len(set(tried)) <= 16


def test_where_nothing_holds_it_is_0() -> None:
    tried: list[int] = []
    assert highest_rate(lambda rate: bool(tried.append(rate)), 1_000) == 0
    assert tried == [1_000, 500, 250, 125, 62]


@pytest.mark.parametrize(
    ("good", "p99_ms", "holds"), [(1_000, 49.9, True), (1_000, 50.0, False), (989, 10.0, False), (990, 10.0, True)]
)
def test_a_rate_holds_by_its_p99_and_by_whole_answers(good: float, p99_ms: float, holds: bool) -> None:
    assert good_enough({"offered": 1_000.0, "good": good, "p99_ms": p99_ms}) == holds


def test_a_rate_without_any_answer_does_not_hold() -> None:
    assert not good_enough({"offered": 1_000.0, "good": 0.0})


@pytest.mark.slow
def test_it_runs_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu.gpu_serving", "--device", "cpu", "--rows", "1000", "--rate", "40"]
    command += ["--seconds", "1", "--out", str(tmp_path / "r.json"), "--work", str(tmp_path / "work")]
    for _ in range(2):  # the second run finds everything measured
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["settings"]["device"] == "cpu"
    assert {"1000/start", "1000/open 40", "1000/highest"} <= found["measurements"].keys()
    assert found["measurements"]["1000/open 40"]["offered"] > 0
