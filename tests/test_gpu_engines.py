"""What the check of the GPU path accepts as the error of `VLM2REC_DEVICE=cuda` on a machine without a GPU."""

import http.server
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
ERROR = "error: device 'cuda' cannot be used: CUDAExecutionProvider failed to start; check the driver\n"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    spec = importlib.util.spec_from_file_location("gpu_engines", ROOT / ".ci" / "gpu_engines.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "catalogue-1000" / "registry").mkdir(parents=True)
    return module


def test_one_error_that_names_the_device_passes(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(script, "ran", lambda command, _limit_s: asked.append(command) or (1, f"{{}}\n{ERROR}"))
    assert script.absence(tmp_path) == f"exit code 1, {ERROR.strip()}"
    assert asked[0][:2] == ["env", "VLM2REC_DEVICE=cuda"]
    assert str(tmp_path / "catalogue-1000" / "registry") in asked[0]


@pytest.mark.parametrize(
    ("code", "output"),
    [(0, ERROR), (1, ERROR * 2), (1, f"Traceback (most recent call last):\n{ERROR}"), (1, "error: no bundle\n")],
)
def test_anything_else_fails(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, output: str
) -> None:
    monkeypatch.setattr(script, "ran", lambda _command, _limit_s: (code, output))
    with pytest.raises(AssertionError, match=f"exit code {code}"):
        script.absence(tmp_path)


@pytest.mark.parametrize(
    ("code", "fails"),
    [
        ("print('http://127.0.0.1:1', flush=True); time.sleep(600)", "refused"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('starting', flush=True); time.sleep(600)", "timed out"),
        ("print('x\\n' * 100_000, file=sys.stderr); print('no address')", "readyz 0"),
    ],
)
def test_a_service_that_does_not_answer_fails_and_is_ended(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, fails: str
) -> None:
    command = [sys.executable, "-c", f"import signal, sys, time; {code}"]
    monkeypatch.setattr(script, "serve", lambda _work: command)
    monkeypatch.setattr(script, "END_S", 1.0)
    with pytest.raises((AssertionError, OSError, subprocess.TimeoutExpired), match=fails):
        script.automatic(tmp_path)


def test_the_status_of_a_service_that_is_not_ready_is_reported(script: ModuleType) -> None:
    class NotReady(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), NotReady) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert script.status_of(f"http://127.0.0.1:{server.server_port}/readyz") == 503
