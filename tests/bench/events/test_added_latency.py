"""What is added to the latency of a recommendation: the differences by hand, and all of it at toy size."""

import json
import subprocess
import sys
from pathlib import Path

from bench.events.added_latency import medians, summary, table
from bench.index.catalogues import LAYOUT
from bench.index.encoder import MAX_HISTORY, record_of, shape
from tests.support.mean_encoder import write_mean_encoder

ROOT = Path(__file__).parents[3]


def test_differences_are_of_medians_of_one_round() -> None:
    rounds = [
        medians({"before": [4.0, 4.2, 9.0], "loop": [4.3, 4.1, 4.5]}),
        medians({"before": [2.0, 2.0, 2.0], "loop": [2.5, 2.5, 2.5]}),
        medians({"before": [3.0, 3.0, 3.0], "loop": [3.0, 3.0, 3.0]}),
    ]
    found = summary(rounds)
    assert found["compared_with"] == "before"
    assert found["p50_ms"] == {"before": 3.0, "loop": 3.0}
    middle, least, largest = found["added_ms"]["loop"]
    assert (round(middle, 9), round(least, 9), round(largest, 9)) == (0.1, 0.0, 0.5)
    *_, before, loop, _ = table(found)
    assert before == "| before | 3.00 ms |  |"
    assert loop == "| loop | 3.00 ms | +0.10 (+0.00 … +0.50) ms |"


def test_all_services_answer_at_toy_size_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    encoder = tmp_path / "encoder.onnx"  # kept from an earlier run; exporting one is a third of the work of this test
    write_mean_encoder(LAYOUT, MAX_HISTORY, encoder)
    record_of(encoder).write_text(json.dumps(shape()))
    command = [sys.executable, "-m", "bench.events.added_latency", "--items", "300", "--neighbours", "0"]
    command += ["--users", "40", "--requests", "5", "--pause-ms", "0", "--work", str(tmp_path), "--out", str(out)]
    subprocess.run([*command, "--rounds", "1"], check=True, cwd=ROOT, capture_output=True)
    first = json.loads(out.read_text())["measurements"]["round/1"]
    assert set(first["p50_ms"]) == {"plain", "types", "loop"}
    assert all(0 < p50 < 10_000 for p50 in first["p50_ms"].values())
    ran = subprocess.run([*command, "--rounds", "1"], check=True, cwd=ROOT, capture_output=True, text=True)
    assert json.loads(out.read_text())["measurements"]["round/1"] == first
    assert "| plain |" in ran.stdout
