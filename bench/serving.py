"""Closed-loop load on `POST /recommend` beside a bare FastAPI echo of the same body, in one run on one machine.

    python bench/serving.py --registry .demo/bundles

Prints and writes JSON: requests per second, p50/p90/p99 in milliseconds, errors, and the ratio to the echo. Compare
ratios within one file, never times across machines.
"""

import argparse
import asyncio
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from index.bundle import Bundle
from index.registry import Registry

HISTORY = 10
ECHO = """
import uvicorn
from fastapi import FastAPI
from service.schemas import RecommendRequest
app = FastAPI()
@app.post("/recommend")
async def echo(body: RecommendRequest) -> dict[str, object]:
    return {"items": [{"item_id": "i", "score": 0.5}] * body.k}
uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
"""


async def connection(port: int, requests: list[bytes], until: float, latencies: list[float], errors: list[int]) -> None:
    """Send one request after another over one kept-alive connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = 0
    while time.perf_counter() < until:
        started = time.perf_counter()
        writer.write(requests[number % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - started)
        if not head.startswith(b"HTTP/1.1 200"):
            errors.append(number)
        number += 1
    writer.close()


async def load(port: int, bodies: list[bytes], connections: int, seconds: float) -> dict[str, float]:
    """Requests per second and latencies of a closed loop, after a second of warm-up that is not counted."""
    head = "POST /recommend HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    requests = [head.format(len(body)).encode() + body for body in bodies]
    for counted, duration in ((False, 1.0), (True, seconds)):
        latencies: list[float] = []
        errors: list[int] = []
        started = time.perf_counter()
        shares = [requests[number:] + requests[:number] for number in range(connections)]
        await asyncio.gather(*(connection(port, share, started + duration, latencies, errors) for share in shares))
        if counted:
            p50, p90, p99 = np.percentile(np.array(latencies) * 1000, [50, 90, 99])
            rate = len(latencies) / (time.perf_counter() - started)
            return {"req_s": rate, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "errors": len(errors)}
    raise RuntimeError("unreachable")


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until the port takes connections."""
    for _ in range(300):
        probe = subprocess.run(
            [sys.executable, "-c", f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"],
            check=False, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if probe.returncode == 0:
            return
        if server.poll() is not None:
            sys.exit(f"the server on port {port} ended with exit code {server.returncode}")
        time.sleep(0.1)
    sys.exit(f"the server on port {port} did not start")


def measure(command: list[str], port: int, bodies: list[bytes], options: argparse.Namespace) -> dict[str, float]:
    """Start a server, load it, end it."""
    server = subprocess.Popen(command)
    try:
        wait_for(port, server)
        return asyncio.run(load(port, bodies, options.connections, options.seconds))
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Measure both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path, required=True, help="registry with a published bundle")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--port", type=int, default=8890, help="and the next one")
    parser.add_argument("--out", type=Path, default=Path("bench/results/serving.json"))
    options = parser.parse_args()
    registry = Registry(options.registry)
    current = registry.current()
    if current is None:
        sys.exit(f"no bundle is published in {options.registry}; run `make demo` first")
    bundle = Bundle.load(registry.path(current))
    rng = np.random.default_rng(0)
    picks = rng.integers(len(bundle), size=(256, HISTORY))
    bodies = [json.dumps({"items": [bundle.ids.id(int(row)) for row in rows], "k": 20}).encode() for rows in picks]
    serve = [sys.executable, "-m", "cli.main", "serve", "--registry", str(options.registry), "--embedded-redis"]
    serve += ["--port", str(options.port), "--log-level", "warning"]
    echo = [sys.executable, "-c", ECHO.replace("PORT", str(options.port + 1))]
    found: dict[str, Any] = {
        "echo": measure(echo, options.port + 1, bodies, options),
        "recommend": measure(serve, options.port, bodies, options),
    }
    found["ratio_to_echo"] = found["recommend"]["req_s"] / found["echo"]["req_s"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    found |= {
        "items": len(bundle),
        "index": bundle.manifest.index.kind,
        "history": HISTORY,
        "k": 20,
        "connections": options.connections,
        "seconds": options.seconds,
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("fastapi", "uvicorn", "faiss-cpu", "onnxruntime", "numpy")},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
