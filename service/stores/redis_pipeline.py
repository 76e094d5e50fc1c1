"""RedisPipeline: calls to Redis with bounds on how long and how many wait, and a breaker; a late reply reaches nobody.

Callers wait for a future and never touch a connection, so one who gives up or is cancelled leaves everything as it is.
A connection belongs to one exchange at a time and is used again only if all of its replies were read in time;
otherwise it is dropped. Calls that come meanwhile share the next exchange, one round trip for all.

After a failover the name of a Redis stands for another node. A link that meets an error of a node which is no master,
or had to replace a lost connection, makes all links of its `Renewal` connect anew, so that reads follow writes.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final

from redis.exceptions import BusyLoadingError, NoScriptError, ResponseError

from service.errors import LinkDown
from service.stores.circuit_breaker import BreakerState, CircuitBreaker
from service.stores.redis_client import Connect
from service.stores.redis_connection import Part, RedisConnection, answers, packed
from service.stores.redis_reasons import CONNECTING, ELSEWHERE, first_word, in_script, reason_of
from service.stores.redis_renewal import Renewal

MOST_WAITING: Final = 1024
"""Calls that may wait; one more is refused at once."""

_MOST_TOGETHER: Final = 128
_MOST_BYTES: Final = 1 << 20  # sent in an exchange, unless one call alone has more
_HELD_UP_S: Final = 0.02
_GRACE_S: Final = 0.02
_CLOSING_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Lost:
    """What a caller gets whose call was not answered; an exception would be one object for all of them."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    command: bytes
    kind: type
    since: float
    answer: asyncio.Future[Any]

    def tell(self, reply: Any) -> None:  # noqa: ANN401 - a reply, an error or a loss
        if not self.answer.done():  # else whoever asked has gone
            self.answer.set_result(reply)


@dataclass(slots=True, eq=False)
class _Attempt:
    """One exchange: its connection, the calls that share it, and when patience ends."""

    wire: RedisConnection
    began: float
    deadline: float
    calls: list[_Call] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    spared: bool = False


class Script:
    """A Lua script that Redis knows by its hash once it has seen it.

    Args:
        text: its source.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class RedisPipeline:
    """Calls of one kind, such as all reads: where they fail, those of other links need not.

    Connects on first use. While its breaker is open, calls are refused at once, and a task of its own asks Redis until
    it answers again.

    Args:
        connect: makes a connection.
        timeout_s: seconds that an exchange may take, connecting included; a call waits for two at most.
        on_state: told the breaker's new state.
        renewal: shared with the other links to the same Redis; None: this link is the only one.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        timeout_s: float,
        on_state: Callable[[BreakerState], None] | None = None,
        renewal: Renewal | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        # A little less than the timeout, so that one exchange that timed out is enough, however clocks are rounded.
        self._breaker = CircuitBreaker(patience_s=0.9 * timeout_s, clock=clock, on_change=on_state)
        self._waiting: deque[_Call] = deque()
        self._attempt: _Attempt | None = None
        self._wire: RedisConnection | None = None
        self._renewal = renewal or Renewal(clock)
        self._astray = False
        self._trouble = ""
        self._probing: asyncio.Task[None] | None = None
        self._beside: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def state(self) -> BreakerState:
        """Of the breaker."""
        return self._breaker.state

    async def call(self, *command: Part, kind: type) -> Any:  # noqa: ANN401 - of the given kind
        """Ask Redis once.

        Args:
            *command: the command and its arguments.
            kind: of the reply: list, int or bytes; anything else is taken for a connection out of step.

        Raises:
            LinkDown: Redis did not answer in time, or is not asked because it has not answered lately.
            ResponseError: Redis answered with an error.
            UnicodeEncodeError: a part is no text that UTF-8 can hold.
        """
        if self._closed:
            raise LinkDown("this process is ending")
        if not self._breaker.lets_through:
            raise LinkDown(f"not asked, as it has not answered lately: {self._trouble}")
        if len(self._waiting) >= MOST_WAITING:
            raise LinkDown(f"not asked, as {MOST_WAITING} calls wait already")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Call(packed(*command), kind, loop.time(), answer))
        self._go_on()
        reply = await answer
        if isinstance(reply, ResponseError):
            raise reply
        if isinstance(reply, _Lost):
            raise LinkDown(reply.reason)
        return reply

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Part], kind: type) -> Any:  # noqa: ANN401
        """Run a script, as one :meth:`call`, or two if Redis does not know it; raises as that."""
        rest = (len(keys), *keys, *arguments)
        try:
            try:
                return await self.call("EVALSHA", script.sha, *rest, kind=kind)
            except NoScriptError:
                return await self.call("EVAL", script.text, *rest, kind=kind)
        except ResponseError as error:
            raise in_script(error, script.text) from error

    async def close(self) -> None:
        """Fail what waits and close the connection."""
        self._closed = True
        attempt, self._attempt = self._attempt, None
        wire, self._wire = self._wire, None
        lost = _Lost("this process is ending")
        if attempt is not None:
            self._end(attempt, lost)
            await attempt.wire.drop()
        self._lose_waiting(lost)
        if wire is not None:
            await wire.drop()
        if self._probing is not None:
            self._probing.cancel()
        if self._beside:
            await asyncio.wait(self._beside, timeout=_CLOSING_S)

    def _go_on(self) -> None:
        """Begin an exchange if something waits and none is in progress."""
        if self._attempt is not None or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        wire, self._wire = self._wire, None
        if wire is not None and wire.number != self._renewal.number:
            self._spawn(wire.drop())
            wire = None
        wire = wire or RedisConnection(self._connect, self._renewal.number)
        attempt = self._attempt = _Attempt(wire, self._breaker.now, loop.time() + self._timeout_s)
        attempt.timer = loop.call_at(attempt.deadline, self._run_out, attempt)
        attempt.task = self._spawn(self._exchange(attempt))

    async def _exchange(self, attempt: _Attempt) -> None:
        # Taken here, one step of the loop later, so that calls made in the same step share the exchange.
        attempt.calls = self._take()
        try:
            replies = await attempt.wire.exchange([call.command for call in attempt.calls]) if attempt.calls else []
        except Exception as error:  # noqa: BLE001 - whatever redis-py meets, nobody may be left waiting
            if isinstance(error, BusyLoadingError):
                self._renewal.ask()
            self._failed(attempt, reason_of(error))
            return
        if self._attempt is not attempt:
            return  # too late: whoever asked was told so, and the connection is dropped
        together = list(zip(attempt.calls, replies, strict=True))
        if not all(isinstance(reply, (call.kind, ResponseError)) for call, reply in together):
            self._failed(attempt, "a reply of another form than the command's")
            return
        self._answered(attempt, together)

    def _take(self) -> list[_Call]:
        """The calls of the next exchange in their order, without those who have gone or have waited too long."""
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
                call.tell(_Lost(f"not asked, as calls before it took more than {self._timeout_s:g} s"))
            if not call.answer.done():
                taken.append(call)
        return taken

    def _answered(self, attempt: _Attempt, together: Sequence[tuple[_Call, Any]]) -> None:
        self._attempt = None
        if attempt.timer is not None:
            attempt.timer.cancel()
        if together:
            self._breaker.succeeded()
            self._follow(attempt.wire, together)
        for call, reply in together:
            call.tell(reply)
        self._wire = attempt.wire
        self._go_on()

    def _failed(self, attempt: _Attempt, reason: str) -> None:
        if self._attempt is not attempt:
            return
        self._attempt, self._astray, self._trouble = None, True, reason
        self._end(attempt, _Lost(reason))
        self._breaker.failed(attempt.began)
        if self._breaker.lets_through:
            self._go_on()
            return
        self._lose_waiting(_Lost(reason))
        if self._probing is None or self._probing.done():
            self._probing = self._spawn(self._probe())

    def _run_out(self, attempt: _Attempt) -> None:
        """Patience with an exchange has ended."""
        loop = asyncio.get_running_loop()
        if loop.time() > attempt.deadline + _HELD_UP_S and not attempt.spared:
            # It was this process that was held up; the reply may lie in the socket already.
            attempt.spared, attempt.timer = True, loop.call_later(_GRACE_S, self._run_out, attempt)
            return
        while_connecting = "" if attempt.wire.is_open else f", {CONNECTING}"
        self._failed(attempt, f"no answer within {self._timeout_s:g} s{while_connecting}")

    def _end(self, attempt: _Attempt, lost: _Lost) -> None:
        """Drop the connection and tell all who wait for it."""
        if attempt.timer is not None:
            attempt.timer.cancel()
        if attempt.task is not None and attempt.task is not asyncio.current_task():
            attempt.task.cancel()
        self._spawn(attempt.wire.drop())
        for call in attempt.calls:
            call.tell(lost)

    def _lose_waiting(self, lost: _Lost) -> None:
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.tell(lost)

    def _follow(self, wire: RedisConnection, together: Sequence[tuple[_Call, Any]]) -> None:
        """Let all links connect anew where this one met the wrong node, and again once it has found the right one."""
        if any(isinstance(reply, ResponseError) and first_word(reply) in ELSEWHERE for _, reply in together):
            self._astray = True
            self._renewal.ask()
        elif self._astray or wire.reopened:
            # Others may have connected before the name changed; they do it again before this answer is given.
            self._astray = wire.reopened = False
            wire.number = self._renewal.renew()

    async def _probe(self) -> None:
        """Ask Redis until it answers; the connection that it answered on is the next to be used."""
        while not self._breaker.lets_through:
            await asyncio.sleep(self._breaker.pause_s)
            if not self._breaker.take_probe():
                continue
            began, wire = self._breaker.now, RedisConnection(self._connect, self._renewal.number)
            asked = self._spawn(answers(wire))
            try:
                await asyncio.wait({asked}, timeout=self._timeout_s)
            except asyncio.CancelledError:
                asked.cancel()
                await wire.drop()  # here: a task would begin only after `close`, which waits for this one, has returned
                raise
            if asked.done() and asked.result():
                self._wire = wire
                self._breaker.succeeded()
            else:
                asked.cancel()
                self._spawn(wire.drop())
                self._breaker.failed(began)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)
        return task
