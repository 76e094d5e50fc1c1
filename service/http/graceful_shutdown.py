"""Runs uvicorn's server with connection checks, and shuts it down without losing a response.

1. From the first signal on `GET /readyz` answers 503, so that load balancers send no more. For `delay_s` requests are
   answered as before, every response with ``Connection: close``.
2. New connections are dropped while those that the kernel has begun to accept still arrive: closing a listener resets
   the connections in its queue. After that new connections are refused.
3. New requests get 503. An open connection may send one for half a second more: closing an idle connection resets it if
   its client is just sending.
4. Uvicorn closes idle connections and waits for the requests in progress.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Callable
from time import monotonic

import uvicorn

from service.bundles.active_bundle import ActiveBundle
from service.http.config import GuardedConfig

_BEAT_S = 0.02
_CLOSE = (b"connection", b"close")
_ARRIVE_S = 0.2
_LINGER_S = 0.5
_STEP_S = 0.05

_SO_ATTACH_FILTER = 26
# A classic BPF program: load the flags of the TCP header; where SYN is set drop the segment; take all others.
_WITHOUT_SYN = struct.pack("HBBI" * 4, 0x30, 0, 0, 13, 0x45, 0, 1, 2, 0x06, 0, 0, 0, 0x06, 0, 0, 0xFFFF_FFFF)


class GuardedServer(uvicorn.Server):
    """Uvicorn's server that checks its connections and measures how late its event loop is.

    Args:
        config: with the connections and the admission.
    """

    config: GuardedConfig

    def __init__(self, config: GuardedConfig) -> None:
        super().__init__(config)
        self._beat_due = 0.0

    async def main_loop(self) -> None:
        """Run until a signal ends it."""
        loop = asyncio.get_running_loop()
        self._beat_due = loop.time()
        self._beat(loop)
        await super().main_loop()

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self.config.admission.adapt(now - self._beat_due)
        self._beat_due = now + _BEAT_S
        loop.call_at(self._beat_due, self._beat, loop)

    async def on_tick(self, counter: int) -> bool:
        """Check the connections; uvicorn calls this ten times a second."""
        self.config.connections.sweep()
        return await super().on_tick(counter)


class DrainingServer(GuardedServer):
    """A server that shuts down in the steps above.

    Args:
        config: with the connections and the admission.
        current: the bundle that answers; marked as leaving, then as draining.
        delay_s: seconds from the first signal until new requests are refused; a second signal ends them.
    """

    def __init__(self, config: GuardedConfig, current: ActiveBundle, delay_s: float) -> None:
        super().__init__(config)
        self._current = current
        self._delay_s = delay_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down gracefully; uvicorn calls this after the first signal."""
        self._current.leave()
        self.server_state.default_headers.append(_CLOSE)
        await self._wait(self._delay_s, lambda: len(self._captured_signals) > 1)
        for listener in sockets or ():
            drop_new_connections(listener)
        await self._wait(_ARRIVE_S, lambda: False)
        self._current.drain()
        for server in self.servers:
            server.close()
        self.listeners_closed()
        await self._wait(_LINGER_S, lambda: not self.server_state.connections)
        await super().shutdown(sockets)

    def listeners_closed(self) -> None:
        """Called at shutdown when this process listens no more."""

    async def _wait(self, seconds: float, enough: Callable[[], bool]) -> None:
        until = monotonic() + seconds
        while monotonic() < until and not enough() and not self.force_exit:
            await asyncio.sleep(min(_STEP_S, seconds))
            await self.on_tick(1)  # connections are still checked; 1: without a new date


def drop_new_connections(listener: socket.socket) -> None:
    """Drop every attempt to connect; TCP tries again after a second and finds the listener closed.

    Only on Linux: elsewhere, or where it is forbidden, a connection made in the last moment may be reset.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(_WITHOUT_SYN)
    described = struct.pack("HL", len(_WITHOUT_SYN) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
