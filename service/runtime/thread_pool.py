"""Starts the event loop's thread pool, for `asyncio.to_thread`: few threads, named, all started at once.

By default asyncio makes a pool of up to 32 threads, depending on the cores it sees, and starts them one by one. In a
container that sees all cores of its host, these threads would compete for the few cores that the container may use.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

THREADS = 4
"""For diversity, filters and the watcher; each call keeps a core busy or waits for a disk."""
_START_S = 10.0


def started_pool(threads: int = THREADS) -> ThreadPoolExecutor:
    """A pool whose threads run already, so that a rising number of threads means a leak.

    Args:
        threads: how many, at least 1.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="event-loop-pool")
    together = threading.Barrier(threads)
    for started in [pool.submit(together.wait, _START_S) for _ in range(threads)]:
        started.result()
    return pool
