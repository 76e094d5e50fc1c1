"""The `vlm2rec` command: loads the command line and runs it.

Exit codes: 0 fine, 1 a check or a gate said no, 2 wrong usage or bad input, 75 another job is at work on the run,
130 interrupted.
"""

import os
import signal
import sys
from types import FrameType

_EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line; an interrupt at any moment of it is exit code 130 and no traceback."""
    # OpenMP's threads sleep while they wait: spinning ones are many times slower as soon as another process wants the
    # same cores. It is read when the library is loaded, so it is set before any command loads torch or FAISS.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    on_interrupt = signal.getsignal(signal.SIGINT)
    # An exception in the middle of an import may be swallowed, or end as a traceback. Nothing has begun yet, so the
    # process may simply end. Where interrupts are ignored, as in the background of a shell, that stays so.
    if on_interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    try:
        from cli.app import run
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(_EXIT_INTERRUPTED)


def _end(_signal: int, _frame: FrameType | None) -> None:
    os._exit(_EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
