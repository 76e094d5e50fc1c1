"""The whole bench of the method at toy size, killed and started again."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.method.method_plan import SMOKE
from bench.method.method_unit import UnitPlace

ROOT = Path(__file__).parents[3]
_PATIENCE_S = 1_800.0
"""A bound on hanging, not on time: a unit takes seconds, or minutes where others want the cores too."""


def start(work: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.method.method", "--smoke", "--jobs", "2", "--work", str(work)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def done(work: Path) -> dict[str, int]:
    """Unit → when its result was written, of those that are done."""
    places = {unit.name: UnitPlace.of(work, unit) for unit in SMOKE.units()}
    return {
        name: (place.path / "result.json").stat().st_mtime_ns
        for name, place in places.items()
        if place.result() is not None
    }


@pytest.mark.slow
def test_killed_with_its_children_it_goes_on_and_does_nothing_twice(tmp_path: Path) -> None:
    first = start(tmp_path)
    deadline = time.monotonic() + _PATIENCE_S
    while len(done(tmp_path)) < 3 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(first.pid).children() if first.poll() is None else []
    first.kill()
    first.communicate()
    assert children
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    before = done(tmp_path)
    assert 3 <= len(before) < len(list(SMOKE.units()))
    second = start(tmp_path)
    try:
        said, _ = second.communicate(timeout=_PATIENCE_S)
    finally:
        second.kill()
    assert second.returncode == 0, said
    after = done(tmp_path)
    assert set(after) == {unit.name for unit in SMOKE.units()}
    assert {name: after[name] for name in before} == before
    table = json.loads((tmp_path / "method.json").read_text())
    assert table["units"]["missing"] == []
    (catalogue,) = table["catalogues"]
    assert [row["seeds"] for row in catalogue["rows"]] == [[0, 1]] * 7
    assert all(row["ndcg@10"] for row in catalogue["rows"])
    assert "14 of 14 runs done" in (tmp_path / "method.md").read_text()


@pytest.mark.slow
def test_a_unit_that_fails_says_why_and_is_no_obstacle(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.method.method", "--smoke", "--work", str(tmp_path), "--only"]
    ran = subprocess.run([*command, "smoke/nobody/0"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "--only must be one of smoke/frozen/0, " in ran.stderr
    name = "smoke/sft-concat/0"
    place = UnitPlace.of(tmp_path, next(unit for unit in SMOKE.units() if unit.name == name))
    with place.claimed():
        ran = subprocess.run([*command, name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 75
    assert f"{name} is being done by another process" in ran.stdout
    # Whatever a training run cannot go on from: its own message, and exit code 1.
    place.train.mkdir()
    (place.train / "checkpoints").write_text("no directory")
    ran = subprocess.run([*command, name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
