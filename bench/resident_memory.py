"""Measures the resident memory of a process (Linux)."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_EVERY_S = 0.05


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Filled at the end: the largest resident memory of this process, all of it and the anonymous part, in bytes."""
    peak = {"resident": 0, "anonymous": 0}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY_S):
            memory = memory_of(os.getpid())
            peak["resident"] = max(peak["resident"], memory["VmRSS"])
            peak["anonymous"] = max(peak["anonymous"], memory["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def memory_of(process: int) -> dict[str, int]:
    """Resident memory of a process in bytes: all of it, the anonymous and the file-backed part (Linux)."""
    lines = (line.split() for line in Path(f"/proc/{process}/status").read_text().splitlines())
    wanted = {"VmRSS:", "RssAnon:", "RssFile:"}
    return {words[0][:-1]: 1024 * int(words[1]) for words in lines if words and words[0] in wanted}
