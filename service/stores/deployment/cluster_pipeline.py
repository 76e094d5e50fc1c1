"""Sends calls to the nodes of a Redis Cluster, to each through a pipeline of its own.

A pipeline has its own connection, queue, timeout and breaker, so the guarantees of `service.stores.redis_pipeline` hold
for each node: no reply to the wrong caller, and a node that hangs delays no call to another one.

A node that does not own a slot has not executed the command, so a redirected call is sent again without risk. A call
that is not answered is never sent again here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import AskError, ClusterDownError, MovedError, ResponseError, TryAgainError

from service.errors import RedisUnavailable
from service.settings.redis_url import Address, RedisUrl
from service.stores.circuit_breaker import BreakerState, WorstState
from service.stores.deployment.connections import AskingConnection, NewConnection
from service.stores.deployment.slot_map import SlotMap, redirected, slot_of
from service.stores.deployment.topology import Topology
from service.stores.redis_client import Connect, RedisWatch
from service.stores.redis_connection import Part, RedisConnection
from service.stores.redis_pipeline import RedisPipeline, Script
from service.stores.redis_reasons import reason_of, serves_reads

Send = Callable[[RedisPipeline], Awaitable[Any]]

_MOST_TRIES: Final = 8
_FIRST_PAUSE_S: Final = 0.01  # before a call is sent again to a slot that is being moved; it doubles


@dataclass(slots=True, eq=False)
class _Node:
    pipeline: RedisPipeline
    asking: RedisPipeline | None = None  # made when a slot is moved to the node

    @property
    def pipelines(self) -> list[RedisPipeline]:
        return [self.pipeline] if self.asking is None else [self.pipeline, self.asking]


class ClusterPipeline:
    """Calls of one kind to all nodes; has the methods of a `RedisPipeline`.

    The second part of a command is its key. All keys of a script must have the hash tag of the first one.

    Args:
        url: names some nodes; the others are found.
        connect_to: creates connections to a node.
        timeout_s: seconds that an exchange with a node may take. A call is redirected no later than that after its
            start, so it waits for three exchanges at most.
        watch: ``on_node_error`` is called.
        on_state: called with the worst state of the breakers of all nodes.
        connection: creates the `RedisConnection`s to nodes.
    """

    def __init__(
        self,
        url: RedisUrl,
        connect_to: Callable[[Address], Connect],
        *,
        timeout_s: float,
        watch: RedisWatch,
        on_state: Callable[[BreakerState], None] | None = None,
        connection: NewConnection = RedisConnection,
    ) -> None:
        self._connect_to = connect_to
        self._timeout_s = timeout_s
        self._watch = watch
        self._worst = WorstState(on_state)
        self._connection = connection
        self._nodes: dict[Address, _Node] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._topology = Topology(url, connect_to, timeout_s=timeout_s, on_change=self._forget_others)
        self._closed = False

    async def call(self, *command: Part, kind: type) -> Any:  # noqa: ANN401 - of the given kind
        """Send a command to the node of its key; see `RedisPipeline.call`."""
        return await self._routed(str(command[1]), lambda pipeline: pipeline.call(*command, kind=kind))

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Part], kind: type) -> Any:  # noqa: ANN401
        """Run a script on the node of its keys; see `RedisPipeline.run`."""
        return await self._routed(keys[0], lambda pipeline: pipeline.run(script, keys, arguments, kind))

    async def nodes(self) -> Sequence[RedisPipeline]:
        """A pipeline to every node that owns slots, for commands without a key.

        Raises:
            RedisUnavailable: no node answers, or a slot has no owner.
        """
        return [self._pipeline(address, asking=False) for address in await self._topology.masters()]

    async def probe(self, key: str) -> None:
        """Read from every node that owns slots.

        Raises:
            RedisUnavailable: one of them does not answer, or the cluster is down.
            ResponseError: one of them serves no reads.
        """
        answers = [self._answers(address, key) for address in await self._topology.masters()]
        for error in await asyncio.gather(*answers, return_exceptions=True):
            if isinstance(error, BaseException):
                self._topology.refresh()
                raise error

    async def close(self) -> None:
        """Fail the waiting calls and close all connections."""
        self._closed = True
        await self._topology.close()
        for task in self._leaving:
            task.cancel()
        if self._leaving:
            await asyncio.wait(set(self._leaving))
        await asyncio.gather(*[pipeline.close() for node in self._nodes.values() for pipeline in node.pipelines])

    async def _routed(self, key: str, send: Send) -> Any:  # noqa: ANN401 - a reply
        """Send to the owner of a key, and again where that one refuses it as it owns the key no longer."""
        loop = asyncio.get_running_loop()
        slot, latest, pause_s = slot_of(key), loop.time() + self._timeout_s, _FIRST_PAUSE_S
        asked_to: Address | None = None
        refused: ResponseError | None = None
        for _ in range(_MOST_TRIES):
            if refused is not None and loop.time() > latest:
                break
            address = asked_to or await self._topology.owner(slot)
            pipeline = self._pipeline(address, asking=asked_to is not None)
            asked_to = None
            try:
                return await send(pipeline)
            except MovedError as error:
                refused = error
                self._topology.moved(slot, redirected(error, address))
            except AskError as error:
                refused, asked_to = error, redirected(error, address)
            except TryAgainError as error:
                refused = error
                await asyncio.sleep(pause_s)
                pause_s *= 2
            except (ClusterDownError, RedisUnavailable) as error:
                self._topology.refresh()
                if isinstance(error, RedisUnavailable) and self._watch.on_node_error is not None:
                    self._watch.on_node_error(str(address))
                raise
        raise refused or RedisUnavailable("its slot is being moved")

    def _pipeline(self, address: Address, *, asking: bool) -> RedisPipeline:
        if self._closed:
            raise RedisUnavailable("this process is ending")
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = _Node(self._opened(address, self._connection, str(address)))
        if not asking:
            return node.pipeline
        if node.asking is None:
            node.asking = self._opened(address, AskingConnection, f"{address} asking")
        return node.asking

    def _opened(self, address: Address, connection: NewConnection, name: str) -> RedisPipeline:
        return RedisPipeline(
            self._connect_to(address),
            timeout_s=self._timeout_s,
            on_state=self._worst.of(name),
            connection=connection,
        )

    async def _answers(self, address: Address, key: str) -> None:
        try:
            await self._pipeline(address, asking=False).probe(key)
        except ClusterDownError as error:
            raise RedisUnavailable(reason_of(error)) from error
        except ResponseError as error:
            if not serves_reads(error):  # else a node that does not own the slot of this key answers, too
                raise

    def _forget_others(self, slots: SlotMap) -> None:
        """Close the pipelines to nodes that own no slot any more, after the calls on their way."""
        for address in set(self._nodes).difference(slots.masters):
            self._spawn(self._leave(self._nodes.pop(address), address))

    async def _leave(self, node: _Node, address: Address) -> None:
        try:
            await asyncio.sleep(2 * self._timeout_s)
        finally:
            for pipeline in node.pipelines:
                await pipeline.close()
            if address not in self._nodes:
                for name in (str(address), f"{address} asking"):
                    self._worst.of(name)("closed")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
