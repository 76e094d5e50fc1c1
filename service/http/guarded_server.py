"""GuardedServer: uvicorn's server, which looks at its connections and at how late its event loop is."""

import asyncio

import uvicorn

from service.http.protocol import GuardedConfig

_BEAT_S = 0.02


class GuardedServer(uvicorn.Server):
    """Uvicorn's server, which looks at the connections now and then, and often at how late its event loop is.

    Args:
        config: see there.
    """

    config: GuardedConfig

    def __init__(self, config: GuardedConfig) -> None:
        super().__init__(config)
        self._beat_due = 0.0

    async def main_loop(self) -> None:
        """Uvicorn's, until it is told to end."""
        loop = asyncio.get_running_loop()
        self._beat_due = loop.time()
        self._beat(loop)
        await super().main_loop()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self.config.in_progress.adapt(now - self._beat_due)
        self._beat_due = now + _BEAT_S
        loop.call_at(self._beat_due, self._beat, loop)

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn calls this ten times a second."""
        self.config.guarded.sweep()
        return await super().on_tick(counter)
