"""Starts and stops the objects of a service, and loads the bundle that it starts with."""

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from service.bundles.startup import START_TIMEOUT_S, Startup, load_first, read_operator_state
from service.container import Container, open_first_loader, open_operator_state, open_worker_bundles
from service.errors import ENDING, BundleRefused, NotReady, RetrieverUnavailable, StartError
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
    loader = open_first_loader(settings)
    try:
        first = load_first(loader, state.pin, open_worker_bundles(settings, loader.root))
    finally:
        loader.retriever.close()
    return replace(first, operator_state=state)


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
        StartError: the Redis URL names a node of a cluster as a single Redis.
    """
    redis = await container.histories.alive()
    if redis and await container.histories.is_cluster_node():
        raise StartError(
            "redis_url names a node of a Redis Cluster, which refuses the keys of an event; name the cluster: "
            "redis+cluster://host:port,host:port"
        )
    if container.redis_kind == "cluster":
        container.log.info(
            "redis cluster", bulks="all or none of each bucket", retries="need event_id", old_layout="not read"
        )
    await container.watcher.start(startup)
    container.export_polling.start()
    if container.keys.replicas is not None:
        container.keys.replicas.start()
    if container.board is not None:
        container.metrics_page.publish_always()
    if startup.bundle is None:
        container.log.warning("waiting for a bundle", redis=redis)
        return
    if container.retriever.waits:
        with contextlib.suppress(BundleRefused, RetrieverUnavailable):  # searches see the same, and try again
            await asyncio.to_thread(container.retriever.check, startup.bundle.id)  # so that no request has to connect
    container.log.info("ready", bundle=startup.bundle.id, items=len(startup.bundle), redis=redis)


async def stop(container: Container) -> None:
    """Refuse new requests, save the operator state, end all background work, and let go of the bundles."""
    container.active_bundle.drain()
    await container.online_recall.close()
    await container.watcher.stop()
    await container.operator_state.close()
    await container.export_polling.close()
    if container.keys.replicas is not None:
        await container.keys.replicas.close()
    if container.outcomes is not None:
        await container.outcomes.close()
    await container.outcome_store.close()
    await container.histories.close()
    container.batcher.close()
    container.retriever.close()
    container.executor.close()
    await container.metrics_page.close()
    # Their files are closed now, also where something, as a cache of the framework, still holds the routes.
    container.loaded_bundles.keep_beside(None)
    container.loaded_bundles.active = None
    container.active_bundle.withdraw(ENDING)


def check_ready(container: Container) -> None:
    """Check whether this process should get more requests.

    Raises:
        NotReady: no bundle is active, the process is ending, or it has to be started again.
    """
    container.active_bundle.check_ready()
    if not container.watcher.alive:
        raise NotReady("the watcher of bundles has ended; start this process again")
    if not container.batcher.alive:
        raise NotReady("the engine's threads keep dying; start this process again")


def check_all_ready(container: Container) -> None:
    """Check whether this process and all other workers of the service should get more requests.

    Raises:
        NotReady: as `check_ready`, or another worker is not ready.
    """
    check_ready(container)
    if container.board is not None:
        container.board.check_ready()
