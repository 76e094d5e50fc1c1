"""Runs the `vlm2rec` command.

Exit codes: 0 success, 1 a check or the gate failed, 2 wrong usage or bad input, 75 another job works on the run, 130
interrupted.
"""

import os
import signal
import sys
from types import FrameType

from cli.code_loading import loading_code

_EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line; an interrupt at any moment ends it with exit code 130 and no traceback."""
    # Waiting OpenMP threads sleep instead of spinning: spinning is many times slower when another process uses the
    # same cores. The variable is read when the library is loaded, so it is set before a command loads torch or FAISS.
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    on_interrupt = signal.getsignal(signal.SIGINT)
    # An exception during an import may be swallowed or end as a traceback. No work has started, so the process can
    # exit directly. Interrupts that are ignored, as in the background of a shell, stay ignored.
    if on_interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    try:
        with loading_code():
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
