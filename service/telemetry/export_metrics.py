"""Shows how far the events are exported: the age of the oldest one that is not, and events that were lost."""

import asyncio
import contextlib
from math import nan
from time import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.errors import EventsUnavailable
from service.stores.event_export.redis_event_export import RedisEventExport, Waiting
from service.stores.event_export.waiting_ages import WaitingAges

INTERVAL_S: Final = 10.0


class ExportMetrics:
    """Metrics of the export of events.

    Args:
        registry: gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lost = Counter(
            "vlm2rec_events_lost", "Events cut at the cap before they were exported.", registry=registry
        )
        self._oldest = Gauge(
            "vlm2rec_export_oldest_seconds",
            "Age of the oldest event or erasure that is not exported; NaN without an exporter.",
            registry=registry,
        )
        self._waiting = Gauge(
            "vlm2rec_export_waiting_events",
            "Events, and merges of sessions, that are not exported; NaN without an exporter.",
            registry=registry,
        )
        self._ages = WaitingAges()
        self._oldest.set(nan)
        self._waiting.set(nan)

    def lost(self, count: int) -> None:
        """Count events that were cut at the cap before they were exported."""
        self._lost.inc(count)

    def waiting(self, parts: list[Waiting] | None) -> None:
        """Set what is not exported.

        Args:
            parts: of each bucket; None: there is no exporter, or Redis did not answer.
        """
        if parts is None:
            self._oldest.set(nan)
            self._waiting.set(nan)
            return
        ages = [age for age in self._ages.seconds(parts) if age is not None]
        ages += [time() - part.erasing / 1000 for part in parts if part.erasing is not None]
        self._oldest.set(max([0.0, *ages]))
        self._waiting.set(sum(part.events for part in parts))


class ExportPolling:
    """Asks Redis every few seconds how far the events are exported.

    Args:
        events: the streams.
        metrics: are set.
        interval_s: seconds between two polls.
    """

    def __init__(self, events: RedisEventExport, metrics: ExportMetrics, *, interval_s: float = INTERVAL_S) -> None:
        self._events = events
        self._metrics = metrics
        self._interval_s = interval_s
        self._polling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Poll from now on; call it in the event loop."""
        self._polling = asyncio.create_task(self._poll_forever())

    async def close(self) -> None:
        """End polling and close the connection."""
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
        await self._events.close()

    async def _poll_forever(self) -> None:
        while True:
            parts = None
            with contextlib.suppress(EventsUnavailable):  # the calls of requests report it
                parts = await self._events.waiting()
            self._metrics.waiting(parts)
            await asyncio.sleep(self._interval_s)
