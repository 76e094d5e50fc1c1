"""Starts a program that ends with the process that started it, however that ends, also by SIGKILL (Linux)."""

import os
import sys
from collections.abc import Sequence

# Runs between fork and the program: asks the kernel for SIGTERM when the parent ends for any reason (Linux only;
# elsewhere the program goes on). A changed parent id shows that the parent has already ended.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def bound_command(command: Sequence[str]) -> list[str]:
    """A command that gets SIGTERM when the thread that starts it ends; start it from the main thread.

    Args:
        command: path of the program, and its arguments.
    """
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
