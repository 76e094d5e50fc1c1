"""GuardedProtocol: uvicorn's HTTP/1.1, for clients that are slow, silent, greedy or broken.

Uvicorn itself sets no time in which a request must arrive, and no bound on headers, on pipelined requests, or on an
answer that nobody reads. All of that is added here, on top of `HttpToolsProtocol`, whose inner workings this relies on:
hence the narrow bound on uvicorn's version.
"""

import asyncio
from functools import partial
from math import inf
from time import perf_counter
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.http.admission import Admission
from service.http.answer_writer import AnswerWriter
from service.http.connections import Connections
from service.http.problems import (
    CROWDED,
    HEAD_TOO_LARGE,
    NOT_HTTP,
    NOT_IMPLEMENTED,
    QUEUE_FULL,
    REQUEST_LATE,
    ProblemKind,
    Refusal,
)
from service.http.refusal_bytes import refusal_bytes
from service.http.request_context import CONTEXT, RequestContext, context_of
from service.http.request_head import path_of, refusal_of
from service.request_trace import new_request_id, request_id_from

_ALWAYS_ANSWERED = frozenset({b"/livez", b"/readyz", b"/metrics"})
_DETAILS = {
    CROWDED: "there are too many connections; try again later",
    HEAD_TOO_LARGE: "address and headers must have at most 65536 bytes together",
    REQUEST_LATE: "address and headers must arrive sooner; send them at once",
}
_MAX_URL_BYTES = 65_535  # the parser of addresses takes no more
# llhttp's words for a coding that is none, or that is not the last; most of them are found only by `refusal_of`.
_UNKNOWN_CODING = "`Transfer-Encoding`"


class GuardedConfig(uvicorn.Config):
    """Uvicorn's configuration with the connections that the protocol reports to.

    Args:
        app: ASGI application.
        connections: all of the server.
        load: what is in progress; counted here.
        **options: of `uvicorn.Config`.
    """

    def __init__(self, app: Any, connections: Connections, load: Admission, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(app, http=GuardedProtocol, **options)
        self.guarded = connections
        self.in_progress = load


class _PipelineFlow(FlowControl):
    """Flow control that reads nothing while requests wait their turn, however often uvicorn asks to read on."""

    def __init__(self, transport: asyncio.Transport, pipeline: Any) -> None:  # noqa: ANN401 - uvicorn's deque
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class GuardedProtocol(HttpToolsProtocol):
    """One connection. It waits for its client since `_waiting_since`; while that is infinite, the client waits for us.

    Args:
        config: with the connections that it reports to.
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
        self._all = config.guarded
        self._limits = config.guarded.limits
        self._load = config.in_progress
        self._running: RequestResponseCycle | None = None
        self._answering: AnswerWriter | None = None
        self._crowded = False  # there is no room for it: one answer, and the end
        self._deaf = False  # what comes is read and dropped
        self._has_left = False  # the client sends no more
        self._idle = False  # between two requests
        self._in_head = True
        self._reads_again = False  # a head that has been read, without its upgrade
        self._received_at = self._began_at = perf_counter()
        self._unused_bytes = 0  # received since the last thing that could be used
        self._waiting_since = self._all.clock()
        self._unread_since = inf
        self._abort_at = inf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; far beyond the bound on connections, only to say so."""
        self._all.add(self)
        super().connection_made(transport)
        self.flow = _PipelineFlow(transport, self.pipeline)
        self._crowded = self._all.room < 0
        if self._all.room < -self._limits.spare:
            self._refuse(CROWDED, "crowded")
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; the request that is worked on is told, also where later ones wait behind it."""
        self._all.remove(self)
        self._disconnect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless this client has been told that it is heard no more."""
        if self._deaf:
            return
        self._received_at = perf_counter()
        if self._idle:
            self._idle, self._began_at = False, self._received_at
        self._unused_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._refuse_unparsed(str(error))
        if self._unused_bytes > self._limits.head_bytes and self._waiting_since < inf and not self._deaf:
            self._refuse(HEAD_TOO_LARGE, "head")

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's never keeps the connection
        """The client sends no more. What it sent whole is answered before the connection ends.

        Returns:
            Whether the connection stays open for writing.
        """
        self._has_left = True
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        self._hear_no_more()
        return True

    def on_message_begin(self) -> None:
        """Start the clocks of a request."""
        super().on_message_begin()
        self._in_head = True
        if not self._deaf and not self._reads_again:
            self._began_at = self._received_at
            self._waiting_since = self._all.clock()

    def on_headers_complete(self) -> None:
        """Hand a request, or the refusal that it gets, to the application."""
        if self._deaf:
            return
        if len(self.pipeline) >= self._limits.pipelined:
            self._all.on_drop("pipeline")
            self._hear_no_more()
            self._waiting_since = inf
            return
        refusal = self._refusal()
        if refusal is None and self.parser.should_upgrade():
            return  # the parser stops here; `_ignore_upgrade` has the head read again
        self._in_head = False
        self._unused_bytes = 0
        self.scope[CONTEXT] = RequestContext(self._began_at, refusal)  # type: ignore[typeddict-unknown-key]
        if refusal is not None:
            self.url = b"/"  # whatever was sent may be no address
        elif self.url[:1] != b"/":
            self.url = path_of(self.url)
        super().on_headers_complete()
        self.headers = []  # trailers must not become headers
        if refusal is not None or self._crowded:
            self._hear_no_more()

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._unused_bytes = 0
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Stop the clock."""
        if self._deaf or self.parser.should_upgrade():
            return
        self._unused_bytes = 0
        self._waiting_since = inf
        super().on_message_complete()
        if self.cycle.response_complete and not self.pipeline:  # answered before all of it was here
            self._idle = True
            self._waiting_since = self._all.clock()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one."""
        if self._running is not None:
            self._load.leave(self._running)
        if self._answering is not None:
            self._answering.flush()
        super().on_response_complete()
        if self._waiting_since == inf and not self.pipeline and self.cycle.response_complete:
            self._idle = True
            self._waiting_since = self._all.clock()

    def look(self, now: float, patience_s: float) -> None:
        """End it if it has kept the service waiting for too long; see `Connection.look`."""
        if now >= self._abort_at:
            self._abort()
            return
        if self.transport.get_write_buffer_size() == 0:
            self._unread_since = inf
        elif self._unread_since == inf:
            self._unread_since = now
        elif now - self._unread_since > self._limits.request_s:
            self._all.on_drop("stalled")
            self._abort()
            return
        waited = now - self._waiting_since
        if waited > patience_s:
            self._all.on_drop("crowded")
            self._abort()
        elif waited > self._limits.request_s and not self._idle:
            self._give_up_waiting()

    def _parse(self, data: bytes) -> None:
        """Parse what came.

        The parser stops behind a head that asks for an upgrade, as if all that follows were of another protocol. No
        upgrade is taken here, so what follows is the body, and then other requests (RFC 9110, 7.8).
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stop:
                if self._deaf:
                    return
                data = data[stop.args[0] :]
                self._ignore_upgrade()
            else:
                return

    def _ignore_upgrade(self) -> None:
        """Have a new parser read the head again without the upgrade; the request keeps its clocks."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, lines)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
        self._reads_again = True
        self.parser.feed_data(head)
        self._reads_again = False

    def _refusal(self) -> Refusal | None:
        """What is wrong with a request whose head is complete."""
        if self._unused_bytes > self._limits.head_bytes or len(self.url) > _MAX_URL_BYTES:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > self._limits.head_bytes or len(self.url) > _MAX_URL_BYTES:
                self._all.on_drop("head")
                return Refusal(HEAD_TOO_LARGE, _DETAILS[HEAD_TOO_LARGE])
        fault = refusal_of(self.parser.get_method().decode("ascii"), self.parser.get_http_version(), self.headers)
        if fault is not None:
            self._all.on_drop("malformed")
            return fault
        if self._crowded and self.url.partition(b"?")[0] not in _ALWAYS_ANSWERED:
            self._all.on_drop("crowded")
            return Refusal(CROWDED, _DETAILS[CROWDED])
        return None

    def _refuse_unparsed(self, reason: str) -> None:
        """Answer what is no HTTP, with the parser's reason."""
        if self._deaf:
            return
        if _UNKNOWN_CODING in reason:
            self._refuse(NOT_IMPLEMENTED, "malformed", f"Transfer-Encoding must be chunked; {reason}")
        else:
            self._refuse(NOT_HTTP, "malformed", f"what was received is not HTTP/1.1: {reason}")

    def _give_up_waiting(self) -> None:
        if self._in_head and self._unused_bytes:
            self._refuse(REQUEST_LATE, "late")
            return
        self._all.on_drop("late")
        cycle = self.cycle
        if self._in_head or cycle.response_started:
            self._abort()
            return
        # The application waits for the rest of the body, or will: it gets an end, and why.
        context_of(cycle.scope).late = True
        self._hear_no_more()
        self._waiting_since = inf
        cycle.more_body = False
        cycle.message_event.set()

    def _hear_no_more(self) -> None:
        """Answer what has been heard, then end."""
        self._deaf = True
        self.cycle.keep_alive = False

    def _refuse(self, kind: ProblemKind, reason: str, detail: str | None = None) -> None:
        """Say what is wrong without asking the application, and end once that was read.

        Where earlier requests have no answer yet, they get theirs, and then the end: a refusal would be taken for the
        answer to one of them.
        """
        self._all.on_drop(reason)
        self._deaf = True
        self._waiting_since = inf
        if self.cycle is not None and not self.cycle.response_complete:
            if self._in_head:
                self.cycle.keep_alive = False
                return
            if self.cycle.response_started or self.pipeline:
                self._abort()
                return
            self._disconnect()
        headers = {"Connection": "close"} | ({"Retry-After": str(self._all.retry_after_s)} if kind is CROWDED else {})
        detail = _DETAILS[kind] if detail is None else detail
        request_id = new_request_id()
        self.transport.write(refusal_bytes(kind, detail, request_id=request_id, headers=headers, began=self._began_at))
        self._end_when_read()

    def _end(self) -> None:
        """End after the last answer; in a crowd at once, as others wait for the place."""
        if self._deaf and not self._has_left and not self._crowded:
            self._end_when_read()
        else:
            self.transport.close()

    def _end_when_read(self) -> None:
        """Half close and read on: a close with unread bytes would reset the connection, and the answer with it."""
        self._abort_at = self._all.clock() + self._limits.linger_s
        self.transport.write_eof()

    def _abort(self) -> None:
        self._all.remove(self)  # now, as another connection may wait for its place
        self._disconnect()
        self.transport.abort()

    def _disconnect(self) -> None:
        """Let the request that is worked on know that nobody is there; uvicorn tells only the last one received."""
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's types
        self._running = cycle
        counted = cycle.scope["raw_path"] not in _ALWAYS_ANSWERED
        if counted and not self._load.enter(cycle):
            self._turn_away(cycle)
            return
        if counted and self._load.is_high:
            context_of(cycle.scope).overloaded = True
        cycle.transport = self._answering = AnswerWriter(self.transport, self._end)  # type: ignore[assignment]
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(partial(self._ended, cycle))
        self.tasks.add(task)

    def _ended(self, cycle: RequestResponseCycle, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        self._load.leave(cycle)

    def _turn_away(self, cycle: RequestResponseCycle) -> None:
        """Refuse a request at once, for a small part of what it costs to ask the application."""
        given = next((value for name, value in cycle.scope["headers"] if name == b"x-request-id"), None)
        more = {"Retry-After": str(self._all.retry_after_s)}
        if not cycle.keep_alive:
            more["Connection"] = "close"
        detail = "more requests are in progress than can be answered soon; ask again later"
        answer = refusal_bytes(
            QUEUE_FULL,
            detail,
            request_id=request_id_from(given),
            headers=more,
            began=context_of(cycle.scope).began,
            has_body=cycle.scope["method"] != "HEAD",
        )
        cycle.response_started = cycle.response_complete = True
        self.transport.write(answer)
        self._all.on_turned_away(cycle.scope["method"])
        if not cycle.keep_alive:
            self._end()
        cycle.on_response()
