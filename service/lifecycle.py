"""Starts and stops the objects of a service, and loads the bundle that it starts with."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from service.bundles.loader import BundleLoader
from service.bundles.startup import START_TIMEOUT_S, Startup, load_first, read_operator_state
from service.container import Container, open_operator_state
from service.errors import StartError
from service.settings.load import Settings
from service.stores.redis_operator_state import RedisOperatorState

THREADS = 4
"""Threads of the event loop's pool, for diversity, filters and the watcher; each call keeps a core or a disk busy."""
_THREAD_START_S = 10.0


def load_current(settings: Settings) -> Startup:
    """Load and warm up the desired bundle; if it is refused, the newest good one before it.

    Raises:
        StartError: nothing is published, and `wait_for_bundle` is off.
        BundleRefused: every bundle is refused, and `wait_for_bundle` is off.
        IndexingError: the registry cannot be read.
    """
    state = read_operator_state(
        lambda: open_operator_state(settings, RedisOperatorState(settings.redis, timeout_s=START_TIMEOUT_S))
    )
    return replace(load_first(BundleLoader(settings.bundles), state.pin), operator_state=state)


def started_pool(threads: int = THREADS) -> ThreadPoolExecutor:
    """A pool whose threads run already, so that a rising number of threads means a leak.

    By default asyncio makes a pool of up to 32 threads, depending on the cores it sees, and starts them one by one. In
    a container that sees all cores of its host, these threads would compete for the few cores that it may use.

    Args:
        threads: how many, at least 1.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="event-loop-pool")
    together = threading.Barrier(threads)
    for started in [pool.submit(together.wait, _THREAD_START_S) for _ in range(threads)]:
        started.result()
    return pool


async def start(container: Container, startup: Startup) -> None:
    """Activate the first bundle, if there is one, and watch for others.

    Raises:
        StartError: the Redis URL names a node of a cluster.
    """
    redis = await container.histories.alive()
    if redis and await container.histories.is_cluster_node():
        raise StartError(
            "redis_url names a node of a Redis Cluster, which refuses the keys of an event: clusters are not "
            "supported; name a single Redis"
        )
    await container.watcher.start(startup)
    if startup.bundle is None:
        container.log.warning("waiting for a bundle", redis=redis)
        return
    container.log.info("ready", bundle=startup.bundle.id, items=len(startup.bundle), redis=redis)


async def stop(container: Container) -> None:
    """Refuse new requests, save the operator state, and end all background work."""
    container.active_bundle.drain()
    await container.online_recall.close()
    await container.watcher.stop()
    await container.operator_state.close()
    await container.histories.close()
    container.batcher.close()
    container.executor.close()
    container.metrics_page.close()
