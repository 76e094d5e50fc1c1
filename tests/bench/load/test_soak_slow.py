"""The soak at toy size: it runs to its end, swaps, kills Redis, and finds nothing that it did not expect."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_half_a_minute(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "soak.json"
    command = [sys.executable, "-m", "bench.load.soak", "--minutes", "0.5", "--items", "600", "--rate", "40"]
    command += ["--workers", str(workers), "--work", str(tmp_path), "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(out.read_text())
    assert found["complete"], ended.stderr[-2000:]
    assert found["verdict"]["holds"] is None  # too short to be judged, and so exit code 1
    assert ended.returncode == 1
    assert found["failures"] == []
    assert (found["verdict"]["errors_logged"], found["verdict"]["alive"]) == (0, True)
    assert len(found["swaps_at_s"]) >= 4
    assert len(found["redis_killed_at_s"]) >= 2
    assert {"recommend", "events", "history", "bad", "availability"} <= set(found["statuses"])
    assert len(found["samples"]["rss"]) >= 5
    assert min(found["samples"]["blocks"][1:]) > 100_000 * workers
    assert found["verdict"]["worker_deaths"] == 0
    assert out.with_suffix(".svg").read_text().startswith("<?xml")
