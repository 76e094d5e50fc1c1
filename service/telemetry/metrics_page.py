"""Renders the text of `GET /metrics` in a thread, at most once a second."""

import asyncio
from time import monotonic
from typing import Final

from service.runtime.background_tasks import Background
from service.telemetry.metrics import Metrics

INTERVAL_S: Final = 1.0


class MetricsPage:
    """Renders the metrics in a thread of its own; all requests within a second get the same bytes.

    Args:
        metrics: of the application.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._background = Background("metrics", nice=0)
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

    def close(self) -> None:
        """End the thread."""
        self._background.close()

    async def _render(self) -> bytes:
        started = monotonic()
        try:
            self._content = await self._background.run(self._metrics.exposition)
            self._next_at = started + INTERVAL_S
        finally:
            self._rendering = None
        return self._content
