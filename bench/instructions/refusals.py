"""Counts the processor instructions of a refusal in overload, from the bytes received to those written.

    python -m bench.instructions.refusals

Under Valgrind's callgrind the connection of the service gets requests of the serving bench while as many are in
progress as may be, without a socket: instructions of the event loop's own reading and writing are not counted. Prints
JSON: thousands of instructions of a refusal by library.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvloop
from uvicorn.server import ServerState

from bench.instructions.callgrind import Counting, under_callgrind
from bench.load.histories import user_id
from bench.load.open_loop import requests_of
from bench.serving.quality import K
from bench.serving.running import PATH
from service.http.admission import Admission
from service.http.config import GuardedConfig
from service.http.connections import ConnectionLimits, Connections
from service.http.protocol import GuardedProtocol
from service.telemetry.metrics import Metrics

_WARM = 200
_AT_ONCE = 16  # requests that the event loop reads in one turn


class Discarded(asyncio.Transport):
    """The transport of a connection whose responses nobody reads.

    Attributes:
        responses: so many were written.
        last: the last of them.
    """

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.responses = 0
        self.last = b""

    def write(self, data: Any) -> None:  # noqa: ANN401 - as in asyncio
        """Count a response."""
        self.responses += 1
        self.last = bytes(data)

    def is_closing(self) -> bool:
        """Never."""
        return False

    def pause_reading(self) -> None:
        """Nothing to pause."""

    def resume_reading(self) -> None:
        """Nothing to resume."""


def full_connection() -> tuple[GuardedProtocol, Discarded]:
    """A connection of a service in which as many requests are in progress as may be; needs a running event loop."""
    admission = Admission(2)
    for request in range(admission.bound):
        admission.enter(request)
    connections = Connections(
        ConnectionLimits(connections=64, request_s=10.0), retry_after_s=1, on_turned_away=Metrics().turned_away
    )
    config = GuardedConfig(_no_application, connections, admission, ws="none", lifespan="off", log_config=None)
    config.load()
    transport = Discarded()
    protocol = GuardedProtocol(config, ServerState(), {})
    protocol.connection_made(transport)
    return protocol, transport


async def _no_application(scope: object, receive: object, send: object) -> None:  # noqa: ARG001 - as ASGI has it
    raise RuntimeError("a request was let in, although none may be")


async def refuse(requests: int) -> None:
    """Refuse some requests uncounted, then, when a line was read, as many as asked for; print a line after both."""
    protocol, transport = full_connection()
    asked = requests_of(PATH, [json.dumps({"user_id": user_id(user), "k": K}).encode() for user in range(64)])
    for number in (_WARM, requests):
        before = transport.responses
        for turn in range(number):
            protocol.data_received(asked[turn % len(asked)])
            if turn % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)  # a turn of the event loop, after which the refusals are counted
        if transport.responses - before != number or not transport.last.startswith(b"HTTP/1.1 429 "):
            raise SystemExit(f"{transport.responses - before} of {number} requests were refused: {transport.last!r}")
        print("done", flush=True)
        sys.stdin.readline()


def counted(requests: int) -> dict[str, float]:
    """Library → thousands of instructions of a refusal; ``all``: their sum."""
    with tempfile.TemporaryDirectory(prefix="vlm2rec-bench-") as directory:
        out = Path(directory) / "callgrind"
        command = [*under_callgrind(out), sys.executable, "-m", "bench.instructions.refusals", "--refuse"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([*command, str(requests)], **pipes, text=True) as process:  # type: ignore[call-overload]
            _await_line(process)
            counting = Counting(process.pid, out)
            counting.start()
            _answer(process)
            _await_line(process)
            found, _ = counting.stop()
            _answer(process)
    cost = {name: round(count / 1000 / requests, 2) for name, count in found.items()}
    return {"all": round(sum(found.values()) / 1000 / requests, 2)} | dict(
        sorted(cost.items(), key=lambda one: -one[1])
    )


def _await_line(process: "subprocess.Popen[str]") -> None:
    if process.stdout is None or not process.stdout.readline():
        raise SystemExit(f"the counted process ended with exit code {process.wait()}")


def _answer(process: "subprocess.Popen[str]") -> None:
    if process.stdin is not None:
        process.stdin.write("\n")
        process.stdin.flush()


def main() -> None:
    """Count, and print the result; with ``--refuse`` be the process that is counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500, help="refused and counted")
    parser.add_argument("--refuse", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.refuse is not None:
        uvloop.run(refuse(options.refuse))
        return
    print(json.dumps(counted(options.requests), indent=1))


if __name__ == "__main__":
    main()
