"""Drain: the end of a server in which nobody loses an answer.

1. From the first signal on `GET /readyz` answers 503, so that whoever balances the load sends no more. Requests are
   answered as before for `delay_s`, every answer with ``Connection: close``.
2. New requests get 503. The listener is closed, but not before every connection that the kernel has accepted is ours:
   it would reset those.
3. A connection that is open still may send a request and get its 503, for half a second; an idle one that was closed at
   once would be reset under a client that is just sending.
4. Uvicorn closes what is idle and waits for the requests in progress.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import uvicorn

from service.current import CurrentBundle

_CLOSE = (b"connection", b"close")
_LINGER_S = 0.5
_STEP_S = 0.05


class DrainingServer(uvicorn.Server):
    """Uvicorn's server with an end in the steps above.

    Args:
        config: uvicorn's.
        current: told at each step.
        delay_s: seconds from the first signal until new requests are refused; a second signal ends them.
    """

    def __init__(self, config: uvicorn.Config, current: CurrentBundle, delay_s: float) -> None:
        super().__init__(config)
        self._current = current
        self._delay_s = delay_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in good order; uvicorn calls this after the first signal."""
        self._current.leave()
        self.server_state.default_headers.append(_CLOSE)
        await self._wait(self._delay_s, lambda: len(self._captured_signals) > 1)
        self._current.drain()
        await self._accept_rest(sockets or ())
        for server in self.servers:
            server.close()
        await self._wait(_LINGER_S, lambda: not self.server_state.connections)
        await super().shutdown(sockets)

    async def _wait(self, seconds: float, enough: Callable[[], bool]) -> None:
        until = monotonic() + seconds
        while monotonic() < until and not enough() and not self.force_exit:
            await asyncio.sleep(min(_STEP_S, seconds))
            await self.on_tick(1)  # what is done now and then is still to be done; 1: without a new date

    async def _accept_rest(self, listeners: Sequence[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for listener in listeners:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    break  # nothing waits, or the client has gone already
                await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> Any:  # noqa: ANN401 - uvicorn's types
        protocol: Any = self.config.http_protocol_class
        return protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
