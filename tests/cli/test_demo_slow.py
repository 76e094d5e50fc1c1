"""`make demo` as a process: a catalogue, a model trained from scratch, a served answer. Takes minutes."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.support.shops import eventually

pytestmark = pytest.mark.slow

MINIMUM_OVER_POPULARITY = {"served encoder": 2.5, "text only": 1.0, "image only": 1.0}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    home = tmp_path_factory.mktemp("demo") / "demo"
    command = [sys.executable, "-m", "cli.main", "demo", str(home), "--port", str(free_port()), "--exit-after-check"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return home, ran.stdout


def test_answers_once_with_an_exact_attribution(built: tuple[Path, str]) -> None:
    shown = built[1]
    answer = json.loads(shown[shown.index('{\n  "request_id"') :])
    assert (answer["strategy"], answer["degraded"], len(answer["items"])) == ("sequence", None, 3)
    for item in answer["items"]:
        assert sum(item["contributions"].values()) == pytest.approx(item["score"], abs=1e-5)


def test_beats_popularity_with_both_modalities_and_with_either_alone(built: tuple[Path, str]) -> None:
    (table,) = json.loads((built[0] / "run" / "evaluation.json").read_text())["tables"]
    rows = {row["name"]: row for row in table["rows"]}
    assert table["users"] >= 20_000
    for system, minimum in MINIMUM_OVER_POPULARITY.items():
        ratio = rows[system]["ndcg@10"] / rows["popularity"]["ndcg@10"]
        assert ratio >= minimum, (system, ratio)


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_start_builds_nothing_and_ends_what_it_started(built: tuple[Path, str], by: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "cli.main", "demo", str(built[0]), "--port", str(port)]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    lines: list[str] = []
    while not lines or "curl" not in lines[-1]:
        lines.append(demo.stdout.readline())
        assert lines[-1], "".join(lines)
    assert sum("already done" in line for line in lines) == sum(line.startswith("[") for line in lines)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=60) as ready:
        assert json.load(ready)["redis"] == "up"
    demo.send_signal(by)
    demo.wait(60)
    demo.stdout.close()
    eventually(lambda: not running_in(built[0]))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def running_in(home: Path) -> list[int]:
    """Processes whose command names the directory."""
    processes = psutil.process_iter(["cmdline"])
    return [process.pid for process in processes if any(str(home) in word for word in process.info["cmdline"] or ())]
