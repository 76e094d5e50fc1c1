"""An open-loop client: requests leave at random moments of a constant rate, whatever the answers do meanwhile."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_HEAD = "POST /recommend HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
_FRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One request: which body, when it was due (perf_counter), seconds from then to the answer, status, body."""

    number: int
    due: float
    seconds: float
    status: int
    body: bytes


async def open_loop(port: int, bodies: Sequence[bytes], rate: float, seconds: float, seed: int = 0) -> list[Answered]:
    """Send bodies at random, each at its moment, over as many kept-alive connections as it takes.

    Latency counts from the moment a request was due, so a server that stalls is charged for all that waited; status 0
    is a connection that failed.
    """
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1 / rate, int(rate * seconds * 1.5) + 100).cumsum()
    idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
    answered: list[Answered] = []
    started = time.perf_counter() + 0.1

    async def send(number: int, due: float) -> None:
        status, body = 0, b""
        try:
            # The server closes a connection that was idle for some seconds, maybe just when it is used again.
            while idle and time.perf_counter() - idle[0][0] > _FRESH_S:
                idle.pop(0)[2].close()
            _, reader, writer = idle.pop() if idle else (0.0, *await asyncio.open_connection("127.0.0.1", port))
            writer.write(_HEAD.format(len(bodies[number])).encode() + bodies[number])
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            status = int(head.split()[1])
            idle.append((time.perf_counter(), reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        answered.append(Answered(number, due, time.perf_counter() - due, status, body))

    async with asyncio.TaskGroup() as group:
        for gap in gaps[gaps < seconds]:
            await asyncio.sleep(max(started + gap - time.perf_counter(), 0))
            group.create_task(send(int(rng.integers(len(bodies))), started + gap))
    for *_, writer in idle:
        writer.close()
        await writer.wait_closed()
    return answered
