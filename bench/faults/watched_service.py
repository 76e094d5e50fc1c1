"""Runs `vlm2rec` with a thread that records the interpreter's memory and the delay of the event loop.

    python -m bench.faults.watched_service WITNESS.jsonl serve --registry …

Of several worker processes each has such a thread. A line every few seconds: process id, blocks of memory that the
interpreter's allocator has given out, and the longest time since the line before that the event loop took to answer
this thread, in milliseconds. The collector's objects are not counted: `gc.get_objects` holds tuples that another thread
is still making, which then fail with a SystemError.
"""

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path

import uvicorn

from cli.main import main as vlm2rec

EVERY_S = 5.0
_PROBE_S = 0.02


def _watch(witness: Path, loop: asyncio.AbstractEventLoop) -> None:
    """Measure the delay of the event loop periodically and write each sample."""
    lag_ms, due = 0.0, time.monotonic()
    while True:
        asked, answered = time.perf_counter(), threading.Event()
        try:
            loop.call_soon_threadsafe(answered.set)
        except RuntimeError:
            return  # the loop has ended
        answered.wait(10.0)
        lag_ms = max(lag_ms, 1000 * (time.perf_counter() - asked))
        if time.monotonic() >= due:
            due += EVERY_S
            line = {
                "pid": os.getpid(),
                "blocks": sys.getallocatedblocks(),
                "lag_ms": round(lag_ms, 2),
            }
            lag_ms = 0.0
            with witness.open("a") as out:
                out.write(json.dumps(line) + "\n")
        time.sleep(_PROBE_S)


def main() -> None:
    """Run `vlm2rec` with the remaining arguments, and a watching thread beside every event loop."""
    witness = Path(sys.argv.pop(1))
    started = uvicorn.Server.startup

    async def startup(self: uvicorn.Server, sockets: object = None) -> None:
        # Not before: a process that forks workers may have no thread.
        threading.Thread(target=_watch, args=(witness, asyncio.get_running_loop()), daemon=True).start()
        await started(self, sockets)  # type: ignore[arg-type]

    uvicorn.Server.startup = startup  # type: ignore[method-assign]
    vlm2rec()


if __name__ == "__main__":
    main()
