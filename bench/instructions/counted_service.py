"""Runs `vlm2rec serve` so that the instructions of a request can be counted.

    python -m bench.instructions.counted_service --registry …

A thread of the service asks for the interpreter's lock after a hundredth of a millisecond. Under an emulator that is
after a few instructions, so what would be counted is the passing of the lock. Here a thread asks after a second: the
lock changes hands where a thread lets go of it, as in FAISS, ONNX Runtime and numpy.
"""

import sys

import uvicorn

from cli.main import main as vlm2rec
from service.http import graceful_shutdown

_SWITCH_INTERVAL_S = 1.0
_NEVER_S = 1e6


def main() -> None:
    """Run `vlm2rec serve` with the remaining arguments."""
    started = uvicorn.Server.startup

    async def startup(self: uvicorn.Server, sockets: object = None) -> None:
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        await started(self, sockets)  # type: ignore[arg-type]

    uvicorn.Server.startup = startup  # type: ignore[assignment,method-assign]
    graceful_shutdown._BEAT_S = _NEVER_S  # type: ignore[misc]  # noqa: SLF001
    sys.argv.insert(1, "serve")
    vlm2rec()


if __name__ == "__main__":
    main()
