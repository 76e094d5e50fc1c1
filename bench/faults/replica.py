"""Runs `vlm2rec serve` so that a signal ends the threads of its engine in the middle of their work.

    python -m bench.faults.replica serve --registry DIR --redis URL --port 8000

The service is unchanged: the interpreter raises `SystemExit` in a thread at its next step. Worker processes inherit the
handler, and ignore the signals that `vlm2rec serve` handles itself, so it is another one.
"""

import ctypes
import signal
import threading

from cli.main import main

END_THREADS = signal.SIGRTMIN
_ENGINE = "engine"  # the name of the threads that encode and search


def _end_threads(*_: object) -> None:
    for thread in threading.enumerate():
        if thread.name.startswith(_ENGINE) and thread.ident is not None:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))


if __name__ == "__main__":
    signal.signal(END_THREADS, _end_threads)
    main()
