"""Renders the text of `GET /metrics` in a thread, at most once a second."""

import asyncio
from time import monotonic
from typing import Final

from service.runtime.background_tasks import Background
from service.telemetry.logs import logger
from service.telemetry.metrics import Metrics

INTERVAL_S: Final = 1.0
PUBLISH_EVERY_S: Final = 1.0


class MetricsPage:
    """Renders the metrics in a thread of its own; all requests within a second get the same bytes.

    Args:
        metrics: of the application.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._background = Background("metrics", nice=0)
        self._publishing: asyncio.Task[None] | None = None
        self._rendering: asyncio.Task[bytes] | None = None
        self._content = b""
        self._next_at = 0.0

    async def content(self) -> bytes:
        """All metrics in Prometheus' text format, as they were at most a second ago."""
        if self._rendering is None:
            if monotonic() < self._next_at:
                return self._content
            self._rendering = asyncio.create_task(self._render())
        return await asyncio.shield(self._rendering)  # others may still wait for it when this request is cancelled

    def publish_always(self) -> None:
        """Publish the gauges of this worker every second from now on; call it in the event loop."""
        self._publishing = asyncio.create_task(self._publish_forever())

    async def close(self) -> None:
        """End publishing and the thread."""
        if self._publishing is not None:
            self._publishing.cancel()
            await asyncio.gather(self._publishing, return_exceptions=True)
        self._background.close()

    async def _publish_forever(self) -> None:
        failure: str | None = None
        while True:
            try:
                await self._background.run(self._metrics.publish)
            except Exception as error:  # noqa: BLE001 - after any error of one second the next one follows
                if repr(error) != failure:  # a full disk is full for longer
                    failure = repr(error)
                    logger().error("metrics not published", exc_info=error)
            else:
                failure = None
            await asyncio.sleep(PUBLISH_EVERY_S)

    async def _render(self) -> bytes:
        started = monotonic()
        try:
            self._content = await self._background.run(self._metrics.exposition)
            self._next_at = started + INTERVAL_S
        finally:
            self._rendering = None
        return self._content
