"""Counts the threads that a statement starts."""

import subprocess
import sys

_SCRIPT = """
import os, sys
import polars, pyarrow.dataset, pyarrow.parquet
polars.Series([1]).sort()
{setup}
before = len(os.listdir("/proc/self/task"))
{statement}
print(len(os.listdir("/proc/self/task")) - before)
"""


def started_threads(setup: str, statement: str, *arguments: str) -> int:
    """Run a statement in a process of its own.

    Args:
        setup: what comes before, imports among it.
        statement: what is counted; both see the arguments as ``sys.argv[1:]``.
        arguments: of the process.

    Returns:
        How many more threads there are after the statement.
    """
    script = _SCRIPT.format(setup=setup, statement=statement)
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
