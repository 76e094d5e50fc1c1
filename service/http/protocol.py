"""Extends uvicorn's HTTP/1.1 protocol with bounds for slow, silent, greedy and broken clients.

Uvicorn sets no time limit for a request to arrive, and no bound on headers, on pipelined requests or on a response that
is not read. This module adds them to `HttpToolsProtocol` and relies on its internals, so uvicorn's version is pinned
narrowly (docs/adr/0022).
"""

import asyncio
from collections.abc import Iterable
from functools import partial
from math import inf
from time import perf_counter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.http.config import GuardedConfig
from service.http.pipeline_flow import PipelineFlow
from service.http.problems import CROWDED, HEAD_TOO_LARGE, REQUEST_LATE, ProblemKind, RequestRefusal
from service.http.refusals import DETAILS, ends_connection, last_refusal, queue_full, unparsed, with_close
from service.http.request_context import CONTEXT, RequestContext, context_of
from service.http.request_head import head_without, path_of, refusal_of
from service.http.response_writer import ResponseWriter
from service.request_trace import new_request_id, request_id_from

_ALWAYS_ANSWERED = (b"/livez", b"/readyz", b"/metrics")
_MAX_URL_BYTES = 65_535  # limit of the URL parser


class GuardedProtocol(HttpToolsProtocol):
    """One connection. It waits for its client since `_waiting_since`; while that is infinite, the client waits.

    Args:
        config: with the connections and the admission.
        server_state: uvicorn's.
        app_state: uvicorn's.
    """

    def __init__(
        self,
        config: GuardedConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = config.connections
        self._limits = config.connections.limits
        self._admission = config.admission
        self._running: RequestResponseCycle | None = None
        self._response: ResponseWriter | None = None
        self._crowded = False  # no slot is free for it: one response, then it is closed
        self._discards = False  # what arrives is read and dropped
        self._client_ended = False  # the client has closed its side
        self._idle = False  # between two requests
        self._in_head = True
        self._reads_again = False  # parses a head again, without its upgrade
        self._received_at = self._began_at = perf_counter()
        self._unused_bytes = 0  # received since the last head or part of a body
        self._waiting_since = self._connections.clock()
        self._unread_since = self._abort_at = inf
        self._rest_until = inf  # when the rest of a request that is answered must be here
        self._dropped_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Register the connection; far beyond the bound on connections, refuse it."""
        self._connections.add(self)
        super().connection_made(transport)
        self.flow = PipelineFlow(transport, self.pipeline)
        self._crowded = self._connections.free_slots < 0
        if self._connections.free_slots < -self._limits.spare:
            self._refuse(CROWDED, "crowded")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Unregister the connection; the request in progress learns of it, even with others behind it."""
        self._connections.remove(self)
        self._disconnect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, unless the connection has stopped reading."""
        if self._discards:
            self._drop(len(data))
            return
        self._received_at = perf_counter()
        if self._idle:
            self._idle, self._began_at = False, self._received_at
        self._unused_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            if not self._discards:
                kind, detail = unparsed(str(error))
                self._refuse(kind, "malformed", detail)
        if self._unused_bytes > self._limits.head_bytes and self._waiting_since < inf and not self._discards:
            self._refuse(HEAD_TOO_LARGE, "head")

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's never keeps the connection
        """Answer the complete requests of a client that sends no more, then close.

        Returns:
            Whether the connection stays open for writing.
        """
        self._client_ended = True
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        self._stop_reading()
        return True

    def on_message_begin(self) -> None:
        """Record when a request begins."""
        super().on_message_begin()
        self._in_head = True
        if not self._discards and not self._reads_again:
            self._began_at = self._received_at
            self._waiting_since = self._connections.clock()

    def on_headers_complete(self) -> None:
        """Hand a request, or the refusal that it gets, to the application."""
        if self._discards:
            return
        if len(self.pipeline) >= self._limits.pipelined:
            self._connections.on_drop("pipeline")
            self._stop_reading()
            self._waiting_since = inf
            return
        refusal = self._refusal()
        if refusal is None and self.parser.should_upgrade():
            return  # the parser stops here; `_ignore_upgrade` parses the head again
        self._in_head = False
        self._unused_bytes = 0
        if refusal is None and self._turned_away_at_once():
            return
        self.expect_100_continue &= self.parser.get_http_version() == "1.1"  # RFC 9110, 10.1.1
        self.scope[CONTEXT] = RequestContext(self._began_at, refusal)  # type: ignore[typeddict-unknown-key]
        if refusal is not None:
            self.url = b"/"  # what was sent may be invalid
        elif self.url[:1] != b"/":
            self.url = path_of(self.url)
        if self.cycle is not None:  # at a shutdown only the last response may announce the end
            self.cycle.default_headers = []
        super().on_headers_complete()
        self.headers = []  # trailers must not become headers
        if refusal is not None or self._crowded:
            self._stop_reading()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        self._unused_bytes = 0
        if self._discards:
            return
        if self.cycle.response_complete:
            self._drop(len(body))
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait no longer: the request is complete."""
        if self._discards or self.parser.should_upgrade():
            return
        self._unused_bytes = 0
        self._waiting_since = inf
        super().on_message_complete()
        if self.cycle.response_complete and not self.pipeline:  # answered before all of it arrived
            self._idle, self._rest_until, self._dropped_bytes = True, inf, 0
            self._waiting_since = self._connections.clock()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one."""
        if self._running is not None:
            self._admission.leave(self._running)
        if self._response is not None:
            self._response.flush()
        super().on_response_complete()
        if self.pipeline or not self.cycle.response_complete:
            return
        if self._waiting_since == inf:
            self._idle = True
            self._waiting_since = self._connections.clock()
        elif not self._in_head and not self._discards:
            self._rest_until = self._connections.clock() + self._limits.rest_s

    def check(self, now: float, patience_s: float) -> None:
        """End the connection if it has kept the service waiting for too long; see `Connection.check`."""
        if now >= self._abort_at:
            self._abort()
            return
        if self.transport.get_write_buffer_size() == 0:
            self._unread_since = inf
        elif self._unread_since == inf:
            self._unread_since = now
        elif now - self._unread_since > self._limits.request_s:
            self._connections.on_drop("stalled")
            self._abort()
            return
        waited = now - self._waiting_since
        if waited > patience_s:
            self._connections.on_drop("crowded")
            self._abort()
        elif now >= self._rest_until:
            self._leave_rest()
        elif waited > self._limits.request_s and not self._idle:
            self._give_up_waiting()

    def _parse(self, data: bytes) -> None:
        """Parse what arrived.

        The parser stops behind a head that asks for an upgrade, as if the rest were another protocol. The service takes
        no upgrade, so the rest is the body, and then other requests (RFC 9110, 7.8).
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stop:
                if self._discards:
                    return
                data = data[stop.args[0] :]
                self._ignore_upgrade()
            else:
                return

    def _ignore_upgrade(self) -> None:
        """Parse the head again without the upgrade, in a new parser; the request keeps its times."""
        version = self.parser.get_http_version().encode()
        head = head_without(b"upgrade", self.parser.get_method(), version, self.url, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
        self._reads_again = True
        self.parser.feed_data(head)
        self._reads_again = False

    def _refusal(self) -> RequestRefusal | None:
        """The refusal of a request whose head is complete; None: the application answers it."""
        if self._unused_bytes > self._limits.head_bytes or len(self.url) > _MAX_URL_BYTES:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > self._limits.head_bytes or len(self.url) > _MAX_URL_BYTES:
                self._connections.on_drop("head")
                return RequestRefusal(HEAD_TOO_LARGE, DETAILS[HEAD_TOO_LARGE])
        method, version = self.parser.get_method().decode("ascii"), self.parser.get_http_version()
        fault = refusal_of(method, version, self.headers, self.url)
        if fault is not None:
            self._connections.on_drop("malformed")
            return fault
        if self._crowded and self.url.partition(b"?")[0] not in _ALWAYS_ANSWERED:
            self._connections.on_drop("crowded")
            return RequestRefusal(CROWDED, DETAILS[CROWDED])
        return None

    def _give_up_waiting(self) -> None:
        if self._in_head and self._unused_bytes:
            self._refuse(REQUEST_LATE, "late")
            return
        self._connections.on_drop("late")
        cycle = self.cycle
        if self._in_head or cycle.response_started:
            self._abort()
            return
        # The application waits for the rest of the body, or will: end it and say why.
        context_of(cycle.scope).late = True
        self._stop_reading()
        self._waiting_since = inf
        cycle.more_body = False
        cycle.message_event.set()

    def _stop_reading(self) -> None:
        """Stop reading; close after the pending responses."""
        self._discards = True
        self.cycle.keep_alive = False

    def _drop(self, size: int) -> None:
        """Count what is dropped; at the bound read no more of a connection that ends, and end any other."""
        self._dropped_bytes += size
        if self._dropped_bytes > self._limits.rest_bytes:
            if self._discards:
                self.flow.pause_reading()
            else:
                self._leave_rest()

    def _leave_rest(self) -> None:
        """End a connection whose request is answered, without the rest of that request."""
        self._connections.on_drop("body")
        self._discards, self._waiting_since, self._rest_until = True, inf, inf
        self._end_when_read()

    def _refused(self, head: bytes) -> bytes:
        """The head of a refusal, with ``Connection: close`` where the rest of the request is not read."""
        cycle = self.cycle
        if cycle.more_body and cycle.keep_alive and ends_connection(cycle.scope["headers"], self._limits.rest_bytes):
            self._stop_reading()
            return with_close(head)
        return head

    def _refuse(self, kind: ProblemKind, reason: str, detail: str | None = None) -> None:
        """Refuse without asking the application, and close when the client has read the refusal.

        Where earlier requests have no response yet, they get theirs and the connection is closed: a refusal would be
        taken for the response to one of them.
        """
        self._connections.on_drop(reason)
        self._discards = True
        self._waiting_since = inf
        if self.cycle is not None and not self.cycle.response_complete:
            if self._in_head:
                self.cycle.keep_alive = False
                return
            if self.cycle.response_started or self.pipeline:
                self._abort()
                return
            self._disconnect()
        refusal = last_refusal(kind, detail, self._connections.retry_after_s)
        self.transport.write(refusal.to(new_request_id(), began=self._began_at))
        self._end_when_read()

    def _end(self) -> None:
        """Close after the last response; at once where other connections wait for the slot."""
        self._discards |= self.cycle.more_body  # of a client that asked to close, the rest has not arrived
        if self._discards and not self._client_ended and not self._crowded:
            self._end_when_read()
        else:
            self.transport.close()

    def _end_when_read(self) -> None:
        """Half close and read on: closing with unread bytes would reset the connection and lose the response."""
        self._abort_at = self._connections.clock() + self._limits.linger_s
        self.transport.write_eof()

    def _abort(self) -> None:
        self._connections.remove(self)  # now, as another connection may wait for the slot
        self._disconnect()
        self.transport.abort()

    def _disconnect(self) -> None:
        """Tell the request in progress that the client left; uvicorn tells only the last one received."""
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = True
            context_of(self._running.scope).left = True
            self._running.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's types
        self._running = cycle
        counted = cycle.scope["raw_path"] not in _ALWAYS_ANSWERED
        if counted and not self._admission.enter(cycle):
            self._turn_away(cycle)
            return
        if counted and self._admission.is_high:
            context_of(cycle.scope).overloaded = True
        cycle.transport = self._response = ResponseWriter(self.transport, self._end, self._refused)  # type: ignore[assignment]
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(partial(self._ended, cycle))
        self.tasks.add(task)

    def _ended(self, cycle: RequestResponseCycle, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        self._admission.leave(cycle)

    def _turned_away_at_once(self) -> bool:
        """Refuse a request by its head, before anything is made for it, if too many are in progress.

        The complete cycle before it stands for this one too, so that its body is dropped.
        """
        if (
            self.cycle is None
            or not self.cycle.response_complete
            or self._crowded
            or not self.parser.should_keep_alive()
            or self.parser.get_http_version() != "1.1"
            or not self.url.startswith(b"/")
            or self.url.startswith(_ALWAYS_ANSWERED)
            or not self._admission.turns_away()
            or ends_connection(self.headers, self._limits.rest_bytes)
        ):
            return False
        self._write_refusal(self.headers, self.parser.get_method().decode("ascii"), self._began_at, keep_alive=True)
        self.headers = []
        self.on_response_complete()
        return True

    def _turn_away(self, cycle: RequestResponseCycle) -> None:
        """Refuse a request without the cost of asking the application."""
        cycle.response_started = cycle.response_complete = True
        scope = cycle.scope
        if ends_connection(scope["headers"], self._limits.rest_bytes):
            self._stop_reading()
        self._write_refusal(scope["headers"], scope["method"], context_of(scope).began, keep_alive=cycle.keep_alive)
        if not cycle.keep_alive:
            self._end()
        cycle.on_response()

    def _write_refusal(
        self, headers: Iterable[tuple[bytes, bytes]], method: str, began: float, *, keep_alive: bool
    ) -> None:
        given = next((value for name, value in headers if name == b"x-request-id"), None)
        refusal = queue_full(self._connections.retry_after_s, keep_alive)
        self.transport.write(refusal.to(request_id_from(given), began=began, has_body=method != "HEAD"))
        self._connections.turned_away(method, began)
