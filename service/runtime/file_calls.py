"""Runs calls that read files in a thread, and waits for each a bounded time.

Files may lie on a server that hangs; then a call of the system returns after minutes, or never.
"""

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final, TypeVar

from service.errors import FilesUnavailable
from service.runtime.background_tasks import Background

_T = TypeVar("_T")

ABANDONED_S: Final = 60.0
"""Seconds after which another thread takes over from one that hangs, doubled as long as each one hangs."""

SILENT: Final = "the file system does not answer; check its server and its mount"
"""Message of such errors, without seconds: it is logged when it changes."""
_LONGEST_ABANDONED_S: Final = 3600.0  # so few threads hang at once, whatever the time


class FileCalls:
    """One thread for calls that read files; another one takes over if it hangs.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread = Background(name, nice=0, awaited=False)
        self._abandoned_s = ABANDONED_S

    async def run(self, call: Callable[[], _T], *, patience_s: float) -> _T:
        """Run a call after the earlier ones, and raise what it raises.

        Args:
            call: reads files; its result is lost if it takes longer.
            patience_s: seconds to wait for it; none if an earlier call has run for longer.

        Raises:
            FilesUnavailable: it takes longer.
        """
        self._replace_hanging_thread()
        since = self._thread.busy_since
        if since is not None and monotonic() - since > patience_s:
            raise FilesUnavailable(SILENT)
        running = asyncio.ensure_future(self._thread.run(call))
        try:
            await asyncio.wait({running}, timeout=patience_s)
            if not running.done():
                raise FilesUnavailable(SILENT)
            self._abandoned_s = ABANDONED_S
            return running.result()
        finally:
            running.cancel()  # one that waits behind another is not started any more

    def close(self) -> None:
        """Refuse new calls."""
        self._thread.close()

    def _replace_hanging_thread(self) -> None:
        since = self._thread.busy_since
        if since is not None and monotonic() - since > self._abandoned_s:
            self._thread.close()
            self._thread = Background(self._name, nice=0, awaited=False)
            self._abandoned_s = min(2 * self._abandoned_s, _LONGEST_ABANDONED_S)
