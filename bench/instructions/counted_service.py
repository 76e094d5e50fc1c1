"""Runs `vlm2rec serve` so that the instructions of a request can be counted.

    python -m bench.instructions.counted_service --registry …

Under an emulator time passes fifty times as fast, and what is done once in a time would be most of what is counted:

- A thread of the service asks for the interpreter's lock after a hundredth of a millisecond; here after a second. The
  lock changes hands where a thread lets go of it, as in FAISS, ONNX Runtime and numpy.
- The event loop measures its own lateness and checks its connections at the start only.
- Counts of outcomes are not stored, as a second has few requests.
- The files of the bundle are not hashed in a thread, and Redis is not asked how far the events are exported.
"""

import asyncio
import sys

import uvicorn

from cli.main import main as vlm2rec
from index.bundle.bundle import Bundle
from service.http import graceful_shutdown
from service.outcomes import outcomes
from service.telemetry.export_metrics import ExportPolling

_SWITCH_INTERVAL_S = 1.0
_SIGNAL_PAUSE_S = 1.0
_NEVER_S = 1e6


def main() -> None:
    """Run `vlm2rec serve` with the remaining arguments."""
    started = uvicorn.Server.startup

    async def startup(self: uvicorn.Server, sockets: object = None) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        await started(self, sockets)  # type: ignore[arg-type]

    async def main_loop(self: uvicorn.Server) -> None:
        while not self.should_exit:
            await asyncio.sleep(_SIGNAL_PAUSE_S)

    uvicorn.Server.startup = startup  # type: ignore[assignment,method-assign]
    uvicorn.Server.main_loop = main_loop  # type: ignore[method-assign]
    graceful_shutdown._BEAT_S = _NEVER_S  # type: ignore[misc]  # noqa: SLF001
    outcomes._FLUSH_S = _NEVER_S  # type: ignore[misc]  # noqa: SLF001
    Bundle.verify_in_full = lambda *_: True  # type: ignore[method-assign]
    ExportPolling.start = lambda _: None  # type: ignore[method-assign]
    sys.argv.insert(1, "serve")
    vlm2rec()


if __name__ == "__main__":
    main()
