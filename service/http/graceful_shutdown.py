"""Drain: the end of a server in which nobody loses an answer.

1. From the first signal on `GET /readyz` answers 503, so that whoever balances the load sends no more. Requests are
   answered as before for `delay_s`, every answer with ``Connection: close``.
2. Attempts to connect are left unanswered while those that the kernel has begun with arrive: closing a listener resets
   connections that it was not asked for yet. After that new ones are refused.
3. New requests get 503. A connection that is open still may send one for half a second: an idle one that is closed at
   once is reset under a client that is just sending.
4. Uvicorn closes what is idle and waits for the requests in progress.
"""

import asyncio
import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Callable
from time import monotonic

from service.bundles.active_bundle import ActiveBundle
from service.http.guarded_server import GuardedServer
from service.http.protocol import GuardedConfig

_CLOSE = (b"connection", b"close")
_ARRIVE_S = 0.2
_LINGER_S = 0.5
_STEP_S = 0.05

_SO_ATTACH_FILTER = 26
# A classic BPF program: load the flags of the TCP header; where SYN is set drop the segment; take all others.
_WITHOUT_SYN = struct.pack("HBBI" * 4, 0x30, 0, 0, 13, 0x45, 0, 1, 2, 0x06, 0, 0, 0, 0x06, 0, 0, 0xFFFF_FFFF)


class DrainingServer(GuardedServer):
    """Uvicorn's server with an end in the steps above.

    Args:
        config: see there.
        current: told at each step.
        delay_s: seconds from the first signal until new requests are refused; a second signal ends them.
    """

    def __init__(self, config: GuardedConfig, current: ActiveBundle, delay_s: float) -> None:
        super().__init__(config)
        self._current = current
        self._delay_s = delay_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in good order; uvicorn calls this after the first signal."""
        self._current.leave()
        self.server_state.default_headers.append(_CLOSE)
        await self._wait(self._delay_s, lambda: len(self._captured_signals) > 1)
        for listener in sockets or ():
            hear_no_more(listener)
        await self._wait(_ARRIVE_S, lambda: False)
        self._current.drain()
        for server in self.servers:
            server.close()
        await self._wait(_LINGER_S, lambda: not self.server_state.connections)
        await super().shutdown(sockets)

    async def _wait(self, seconds: float, enough: Callable[[], bool]) -> None:
        until = monotonic() + seconds
        while monotonic() < until and not enough() and not self.force_exit:
            await asyncio.sleep(min(_STEP_S, seconds))
            await self.on_tick(1)  # what is done now and then is still to be done; 1: without a new date


def hear_no_more(listener: socket.socket) -> None:
    """Drop every attempt to connect; whoever makes one tries again after a second and finds the listener closed.

    On Linux; elsewhere, or where it is forbidden, a connection made in the last moment may be reset.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(_WITHOUT_SYN)
    described = struct.pack("HL", len(_WITHOUT_SYN) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
