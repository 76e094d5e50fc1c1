"""Runs closed-loop load with wrk, else asyncio: each connection sends a request after the previous answer."""

import asyncio
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_SCRIPT = Path(__file__).with_name("closed_loop.lua")


def load_tool() -> str:
    """The load generator: ``wrk``, else ``asyncio``, which uses more CPU and so gives lower rates."""
    return "wrk" if shutil.which("wrk") else "asyncio"


def closed_loop(port: int, path: str, bodies: Path, connections: int, seconds: float) -> dict[str, Any]:
    """Load a server with a number of connections as fast as it answers.

    Args:
        port: of the server.
        path: of the route.
        bodies: a file with a JSON body a line.
        connections: how many.
        seconds: for how long; wrk takes whole seconds.

    Returns:
        ``good``, ``degraded`` and ``refused`` answers a second, ``errors``, p50, p90 and p99 in milliseconds, and
        ``client_cpu``, the cores that the load generator used.

    Raises:
        RuntimeError: the load could not be made.
    """
    if load_tool() == "wrk":
        duration = f"{max(1, round(seconds))}s"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}", "--latency", "-s", str(_SCRIPT)]
        command += [f"http://127.0.0.1:{port}{path}", "--", str(bodies)]
    else:
        command = [sys.executable, "-m", "bench.load.closed_loop", str(port), path, str(bodies)]
        command += [str(connections), str(seconds)]
    used, began = _cpu_of_children(), time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    client_cpu = (_cpu_of_children() - used) / (time.perf_counter() - began)
    if ran.returncode:
        raise RuntimeError(f"{command[0]} ended with {ran.returncode}: {ran.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found | {"connections": connections, "client_cpu": client_cpu}


def _cpu_of_children() -> float:
    """Seconds of processor time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


async def _connection(port: int, requests: list[bytes], until: float, found: list[tuple[float, int, bool]]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = 0
    while (started := time.perf_counter()) < until:
        writer.write(requests[number % len(requests)])
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        found.append((time.perf_counter() - started, int(head[9:12]), b'"degraded":"' in body))
        number += 1
    writer.close()


async def _by_asyncio(port: int, path: str, bodies: list[bytes], connections: int, seconds: float) -> dict[str, Any]:
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: "
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    found: list[tuple[float, int, bool]] = []
    until = time.perf_counter() + seconds
    starts = [number * len(requests) // connections for number in range(connections)]
    shares = [requests[start:] + requests[:start] for start in starts]
    ended = await asyncio.gather(*(_connection(port, s, until, found) for s in shares), return_exceptions=True)
    if not found:
        why = next((repr(end) for end in ended if isinstance(end, Exception)), "the time was too short")
        raise SystemExit(f"no request to {path} on port {port} was answered in {seconds} s: {why}")
    latency, status, degraded = (np.array(column) for column in zip(*found, strict=True))
    p50, p90, p99 = np.percentile(1000 * latency, [50, 90, 99]).tolist()
    refused = np.isin(status, (429, 503))
    return {
        "good": float(((status == 200) & ~degraded).sum()) / seconds,
        "degraded": float(((status == 200) & degraded).sum()) / seconds,
        "refused": float(refused.sum()) / seconds,
        "errors": int(((status != 200) & ~refused).sum()) + sum(isinstance(end, Exception) for end in ended),
        "p50_ms": p50,
        "p90_ms": p90,
        "p99_ms": p99,
    }


def main() -> None:
    """Make the load without wrk and print the figures."""
    port, path, bodies, connections, seconds = sys.argv[1:6]
    read = Path(bodies).read_bytes().splitlines()
    if not read or int(connections) < 1:
        raise SystemExit(f"{len(read)} bodies over {connections} connections: at least one of each is needed")
    print(json.dumps(asyncio.run(_by_asyncio(int(port), path, read, int(connections), float(seconds)))))


if __name__ == "__main__":
    main()
