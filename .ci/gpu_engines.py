#!/usr/bin/env python3
"""Checks the GPU path as far as it goes without a GPU: the wheels of the extra `gpu`, in an environment of their own.

    .venv/bin/python .ci/gpu_engines.py     # installs about 2 GB into .venvs/gpu, then takes a minute or two

Both libraries are imported and must be built for CUDA. With `VLM2REC_DEVICE=cuda` the service must end with one error,
and the CPU must not take over. With `VLM2REC_DEVICE=auto` it must answer from the CPU and say so. `bench/gpu` runs at
toy size on the CPU, but for `gpu_training.py`, which needs PyTorch. Prints what came of each check. Exit codes: 0 all
passed, 1 one failed or the packages cannot be installed. Where there is a GPU, run the benches of `bench/gpu`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Final

from python_versions import ROOT, install, ran, requirements, say

HOME: Final = ROOT / ".venvs" / "gpu"
PYTHON: Final = str(HOME / "bin/python")
EXTRAS: Final = ("gpu", "bench", "demo")
CONSTRAINTS: Final = "constraints/gpu.txt"
INSTALL_S: Final = 1800
CHECK_S: Final = 600
END_S: Final = 60.0
GPUS: Final = Path("/proc/driver/nvidia/gpus")
NO_REDIS: Final = ("--redis", "unix:///nonexistent/redis.sock")
IMPORTS: Final = """
import faiss, onnxruntime as ort
from index.search.encoder import has_cuda_provider
from index.search.vector_index import has_gpu_support
assert has_cuda_provider(), ort.get_available_providers()
assert has_gpu_support(), "faiss has no GPU resources"
print("faiss", faiss.__version__, "onnxruntime", ort.__version__, *ort.get_available_providers())
"""


def imports(_work: Path) -> str:
    """Import both libraries, which must be built for CUDA."""
    return passed([PYTHON, "-c", IMPORTS])


def serving_bench(work: Path) -> str:
    """Build a toy bundle, serve it on the CPU and measure it."""
    passed([sys.executable, "-m", "bench.index.encoder", str(work / "encoder.onnx")])  # needs PyTorch
    rates = ("--rows", "1000", "--rate", "40", "--seconds", "1")
    bench = [PYTHON, "-m", "bench.gpu.gpu_serving", "--device", "cpu", *rates]
    return passed([*bench, "--work", str(work), "--out", str(work / "serving.json")])


def index_bench(work: Path) -> str:
    """Measure the index on the CPU."""
    bench = [PYTHON, "bench/gpu/gpu_index.py", "--rows", "20000", "--device", "cpu"]
    return passed([*bench, "--out", str(work / "index.json")])


def absence(work: Path) -> str:
    """With `VLM2REC_DEVICE=cuda` the service ends with one error.

    Raises:
        AssertionError: it serves, ends with a traceback, or says something else.
    """
    code, output = ran(["env", "VLM2REC_DEVICE=cuda", *serve(work)], CHECK_S)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    if code == 0 or len(errors) != 1 or "device 'cuda'" not in errors[0] or "Traceback" in output:
        raise AssertionError(f"exit code {code}: {output[-2000:]}")
    return f"exit code {code}, {errors[0]}"


def automatic(work: Path) -> str:
    """With `VLM2REC_DEVICE=auto` the CPU answers, and the log says so.

    Raises:
        AssertionError: it does not.
    """
    variables = {**os.environ, "VLM2REC_DEVICE": "auto"}
    command = serve(work)
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            try:
                said = process.stdout.readline() if process.stdout is not None else ""
                found = re.search(r"http://\S+", said)
                status = 0 if found is None else status_of(f"{found[0]}/readyz")
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=END_S)
            finally:
                process.kill()  # else the wait for it at the end of the block may not end
        errors.seek(0)
        log = errors.read()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    chosen = {line["device"] for line in lines if line["event"] == "device chosen"}
    if status != 200 or chosen != {"cpu"}:
        raise AssertionError(f"/readyz {status}, devices {chosen}: {said}{log[-2000:]}")
    return "/readyz 200, device chosen: cpu"


def status_of(url: str) -> int:
    """The status of the answer to a GET request."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310 - our own service
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def serve(work: Path) -> list[str]:
    """The command that serves the toy bundle, on a free port and without a Redis."""
    (registry,) = work.glob("*/registry")
    return [PYTHON, "-m", "cli.main", "serve", "--registry", str(registry), "--port", "0", *NO_REDIS]


def passed(command: list[str]) -> str:
    """The last line of a command's output.

    Raises:
        AssertionError: it failed.
        subprocess.TimeoutExpired: it takes too long.
    """
    code, output = ran(command, CHECK_S)
    if code:
        raise AssertionError(f"exit code {code}: {output[-2000:]}")
    return (output.strip().splitlines() or ["no output"])[-1]


CHECKS: Final[tuple[Callable[[Path], str], ...]] = (imports, serving_bench, index_bench, absence, automatic)
WITHOUT_GPU: Final = (absence, automatic)


def main() -> int:
    """Install and run every check, also after one that failed; 1 where something failed."""
    try:
        failed = install(sys.executable, HOME, requirements(EXTRAS, torch=False), CONSTRAINTS, INSTALL_S)
    except subprocess.TimeoutExpired as late:
        failed = str(late)
    if failed is not None:
        say(f"{failed}\nthe extra gpu cannot be installed here, see above")
        return 1
    has_gpu = GPUS.is_dir() and any(GPUS.iterdir())
    failures = 0
    with tempfile.TemporaryDirectory(prefix="vlm2rec-gpu-") as directory:
        for check in CHECKS:
            if has_gpu and check in WITHOUT_GPU:
                say(f"not run: {check.__name__}: there is a GPU here")
                continue
            try:
                say(f"passed: {check.__name__}: {check(Path(directory))}")
            except (AssertionError, OSError, ValueError, subprocess.SubprocessError) as error:
                failures += 1
                say(f"FAILED: {check.__name__}: {error}")
    say("not run: bench/gpu/gpu_training.py: it needs PyTorch")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
