"""The event loop's own pool of threads, for `asyncio.to_thread`: few, named, and all there from the start.

By default asyncio makes one of up to 32 threads, by the cores it sees, a thread at a time as load has it: in a
container that sees the cores of its host these would compete for the few that it may use.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

THREADS = 4
"""Diversity, filters and what the watcher reads; all of it holds a core or waits for a disk."""
_START_S = 10.0


def started_pool(threads: int = THREADS) -> ThreadPoolExecutor:
    """A pool whose threads all run already, so that a count of threads that rises later means a leak.

    Args:
        threads: how many, at least 1.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="event-loop-pool")
    together = threading.Barrier(threads)
    for started in [pool.submit(together.wait, _START_S) for _ in range(threads)]:
        started.result()
    return pool
