"""Sends calls to Redis in pipelined exchanges, with a timeout, a bounded queue and a circuit breaker.

A late reply is never delivered to the wrong caller: callers wait for a future and never use a connection themselves,
so a cancelled caller has no effect on other calls. A connection runs one exchange at a time and is used again only if
all of its replies were read in time; otherwise it is dropped. Calls that arrive meanwhile share the next exchange, one
round trip for all.

After a failover the host name of a Redis leads to another node. A pipeline that receives an error of a node which is no
master, or had to replace a lost connection, makes all pipelines of its `Renewal` reconnect, so that reads and writes go
to the same node.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from redis.exceptions import BusyLoadingError, NoScriptError, ResponseError

from service.errors import RedisUnavailable
from service.stores.circuit_breaker import BreakerState, CircuitBreaker
from service.stores.redis_client import Connect
from service.stores.redis_connection import Part, RedisConnection, answers, packed
from service.stores.redis_reasons import CONNECTING, ELSEWHERE, first_word, in_script, reason_of
from service.stores.redis_renewal import Renewal

MOST_WAITING: Final = 1024
"""Calls that may wait; one more is refused at once."""

_MOST_TOGETHER: Final = 128
_MOST_BYTES: Final = 1 << 20  # sent in an exchange, unless one call alone has more
_LATE_TIMER_S: Final = 0.02
_GRACE_S: Final = 0.02
_CLOSING_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """The result of a call that was not answered; each caller raises an exception of its own from it."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    command: bytes
    kind: type
    since: float
    result: asyncio.Future[Any]

    def resolve(self, reply: Any) -> None:  # noqa: ANN401 - a reply, an error or `_Unanswered`
        if not self.result.done():  # else its caller was cancelled
            self.result.set_result(reply)


@dataclass(slots=True, eq=False)
class _Exchange:
    """One exchange: its connection, the calls that share it, and its deadline."""

    connection: RedisConnection
    began: float
    deadline: float
    calls: list[_Call] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    extended: bool = False


class Script:
    """A Lua script, which Redis runs by its hash after it has received the source once.

    Args:
        text: source of the script.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


ALSO_WHEN_FULL: Final = "redis.call('PERSIST', KEYS[1])\n"
"""Begin of a script whose first key never expires. It runs also where Redis is out of memory: Redis refuses commands
that take memory only until the first write of a script, and this one changes nothing and takes none.

For what frees memory or is urgent, and takes little itself."""


class RedisPipeline:
    """A pipeline for calls of one kind, such as all reads, so that its failures do not affect other kinds.

    Connects on first use. While its breaker is open, calls are refused at once, and a separate task probes Redis until
    it answers again.

    Args:
        connect: creates a connection.
        timeout_s: seconds that an exchange may take, connecting included; a call waits for two exchanges at most.
        on_state: called with the breaker's new state.
        renewal: shared with the other pipelines to the same Redis; None: this is the only one.
        clock: seconds, monotonic.
        connection: creates a `RedisConnection` from ``connect`` and the number of the renewal.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        timeout_s: float,
        on_state: Callable[[BreakerState], None] | None = None,
        renewal: Renewal | None = None,
        clock: Callable[[], float] = monotonic,
        connection: Callable[[Connect, int], RedisConnection] = RedisConnection,
    ) -> None:
        self._connect = connect
        self._new_connection = connection
        self._timeout_s = timeout_s
        # A little less than the timeout, so that one exchange that timed out opens it in spite of rounded clocks.
        self._breaker = CircuitBreaker(patience_s=0.9 * timeout_s, clock=clock, on_change=on_state)
        self._waiting: deque[_Call] = deque()
        self._exchange: _Exchange | None = None
        self._connection: RedisConnection | None = None
        self._renewal = renewal or Renewal(clock)
        self._on_wrong_node = False
        self._last_error = ""
        self._probing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def state(self) -> BreakerState:
        """State of the breaker."""
        return self._breaker.state

    async def call(self, *command: Part, kind: type) -> Any:  # noqa: ANN401 - of the given kind
        """Send a command once.

        Args:
            *command: the command and its arguments.
            kind: type of the reply: list, int or bytes; a reply of another type means a connection out of step.

        Raises:
            RedisUnavailable: Redis did not answer in time, or the command was not sent as it has not answered lately.
            ResponseError: Redis answered with an error.
            UnicodeEncodeError: a part cannot be encoded in UTF-8.
        """
        if self._closed:
            raise RedisUnavailable("this process is ending")
        if not self._breaker.lets_through:
            raise RedisUnavailable(f"not asked, as it has not answered lately: {self._last_error}")
        if len(self._waiting) >= MOST_WAITING:
            raise RedisUnavailable(f"not asked, as {MOST_WAITING} calls wait already")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Call(packed(*command), kind, loop.time(), result))
        self._start_next()
        reply = await result
        if isinstance(reply, ResponseError):
            raise reply
        if isinstance(reply, _Unanswered):
            raise RedisUnavailable(reply.reason)
        return reply

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Part], kind: type) -> Any:  # noqa: ANN401
        """Run a script with one :meth:`call`, or two if Redis does not know it; raises as :meth:`call`."""
        rest = (len(keys), *keys, *arguments)
        try:
            try:
                return await self.call("EVALSHA", script.sha, *rest, kind=kind)
            except NoScriptError:
                return await self.call("EVAL", script.text, *rest, kind=kind)
        except ResponseError as error:
            raise in_script(error, script.text) from error

    async def probe(self, key: str) -> None:
        """Read a list, to see whether Redis answers; raises as :meth:`call`."""
        await self.call("LRANGE", key, 0, 0, kind=list)

    async def nodes(self) -> Sequence["RedisPipeline"]:
        """Pipelines to all servers that have keys: this one."""
        return [self]

    async def close(self) -> None:
        """Fail the waiting calls and close the connection."""
        self._closed = True
        exchange, self._exchange = self._exchange, None
        connection, self._connection = self._connection, None
        unanswered = _Unanswered("this process is ending")
        if exchange is not None:
            self._abort(exchange, unanswered)
            await exchange.connection.drop()
        self._fail_waiting(unanswered)
        if connection is not None:
            await connection.drop()
        if self._probing is not None:
            self._probing.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSING_S)

    def _start_next(self) -> None:
        """Start an exchange if calls wait and none is in progress."""
        if self._exchange is not None or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        connection, self._connection = self._connection, None
        if connection is not None and connection.number != self._renewal.number:
            self._spawn(connection.drop())
            connection = None
        connection = connection or self._new_connection(self._connect, self._renewal.number)
        exchange = self._exchange = _Exchange(connection, self._breaker.now, loop.time() + self._timeout_s)
        exchange.timer = loop.call_at(exchange.deadline, self._time_out, exchange)
        exchange.task = self._spawn(self._run_exchange(exchange))

    async def _run_exchange(self, exchange: _Exchange) -> None:
        # Taken here, one step of the loop later, so that calls made in the same step share the exchange.
        exchange.calls = self._take()
        commands = [call.command for call in exchange.calls]
        try:
            replies = await exchange.connection.exchange(commands) if commands else []
        except Exception as error:  # noqa: BLE001 - no caller may be left waiting, whatever redis-py raises
            if isinstance(error, BusyLoadingError):
                self._renewal.request()
            self._failed(exchange, reason_of(error))
            return
        if self._exchange is not exchange:
            return  # too late: its callers have received an error, and the connection is dropped
        answered = list(zip(exchange.calls, replies, strict=True))
        if not all(isinstance(reply, (call.kind, ResponseError)) for call, reply in answered):
            self._failed(exchange, "a reply of another form than the command's")
            return
        self._succeeded(exchange, answered)

    def _take(self) -> list[_Call]:
        """The calls of the next exchange in order, without those that were cancelled or have waited too long."""
        oldest = asyncio.get_running_loop().time() - self._timeout_s
        taken: list[_Call] = []
        size = 0
        while self._waiting and len(taken) < _MOST_TOGETHER:
            call = self._waiting[0]
            size += len(call.command)
            if taken and size > _MOST_BYTES:
                break
            self._waiting.popleft()
            if call.since < oldest:
                call.resolve(_Unanswered(f"not asked, as calls before it took more than {self._timeout_s:g} s"))
            if not call.result.done():
                taken.append(call)
        return taken

    def _succeeded(self, exchange: _Exchange, answered: Sequence[tuple[_Call, Any]]) -> None:
        self._exchange = None
        if exchange.timer is not None:
            exchange.timer.cancel()
        if answered:
            self._breaker.succeeded()
            self._follow_failover(exchange.connection, answered)
        self._connection = exchange.connection
        self._start_next()  # before the callers go on, so that Redis works meanwhile
        for call, reply in answered:
            call.resolve(reply)

    def _failed(self, exchange: _Exchange, reason: str) -> None:
        if self._exchange is not exchange:
            return
        self._exchange, self._on_wrong_node, self._last_error = None, True, reason
        self._abort(exchange, _Unanswered(reason))
        self._breaker.failed(exchange.began)
        if self._breaker.lets_through:
            self._start_next()
            return
        self._fail_waiting(_Unanswered(reason))
        if self._probing is None or self._probing.done():
            self._probing = self._spawn(self._probe())

    def _time_out(self, exchange: _Exchange) -> None:
        """End an exchange at its deadline."""
        loop = asyncio.get_running_loop()
        if loop.time() > exchange.deadline + _LATE_TIMER_S and not exchange.extended:
            # The timer is late because this process was busy; the reply may be in the socket already.
            exchange.extended, exchange.timer = True, loop.call_later(_GRACE_S, self._time_out, exchange)
            return
        while_connecting = "" if exchange.connection.is_open else f", {CONNECTING}"
        self._failed(exchange, f"no answer within {self._timeout_s:g} s{while_connecting}")

    def _abort(self, exchange: _Exchange, unanswered: _Unanswered) -> None:
        """Drop the connection and resolve the calls of an exchange as unanswered."""
        if exchange.timer is not None:
            exchange.timer.cancel()
        if exchange.task is not None and exchange.task is not asyncio.current_task():
            exchange.task.cancel()
        self._spawn(exchange.connection.drop())
        for call in exchange.calls:
            call.resolve(unanswered)

    def _fail_waiting(self, unanswered: _Unanswered) -> None:
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.resolve(unanswered)

    def _follow_failover(self, connection: RedisConnection, answered: Sequence[tuple[_Call, Any]]) -> None:
        """Make all pipelines reconnect if this one is on the wrong node, and again once it is on the right one."""
        if any(isinstance(reply, ResponseError) and first_word(reply) in ELSEWHERE for _, reply in answered):
            self._on_wrong_node = True
            self._renewal.request()
        elif self._on_wrong_node or connection.reopened:
            # Others may have connected before the name changed; they reconnect before this call is answered.
            self._on_wrong_node = connection.reopened = False
            connection.number = self._renewal.renew()

    async def _probe(self) -> None:
        """Probe Redis until it answers; the next exchange uses the connection on which it answered."""
        while not self._breaker.lets_through:
            await asyncio.sleep(self._breaker.pause_s)
            if not self._breaker.take_probe():
                continue
            began, connection = self._breaker.now, self._new_connection(self._connect, self._renewal.number)
            check = self._spawn(answers(connection))
            try:
                await asyncio.wait({check}, timeout=self._timeout_s)
            except asyncio.CancelledError:
                check.cancel()
                # Not in a new task, which would start only after `close` has returned, as that waits for this one.
                await connection.drop()
                raise
            if check.done() and check.result():
                self._connection = connection
                self._breaker.succeeded()
            else:
                check.cancel()
                self._spawn(connection.drop())
                self._breaker.failed(began)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
