"""Knows which node of a cluster owns which slots, and asks again when a call shows that this has changed."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, Final

from redis.exceptions import ResponseError

from service.errors import RedisUnavailable
from service.settings.redis_url import Address, RedisUrl
from service.stores.deployment.slot_map import SlotMap, UnknownSlots
from service.stores.redis_client import Connect
from service.stores.redis_connection import RedisConnection, packed
from service.stores.redis_pipeline import MOST_WAITING
from service.stores.redis_reasons import first_word, reason_of

_SLOTS: Final = packed("CLUSTER", "SLOTS")
_NO_CLUSTER: Final = "it is no node of a Redis Cluster; a single Redis is named by redis://"
_PAUSE_S: Final = 0.2  # between two questions
_HEAD_STARTS: Final = 5  # of a node before the next one, in a timeout


class Topology:
    """The slots of a cluster as last seen, with the redirections since.

    Nobody's call waits for a refresh but the first ones. It runs in a task of its own, at most five times a second.

    Args:
        url: names the nodes that are asked as long as no other is known.
        connect_to: creates connections to a node.
        timeout_s: seconds that a node may take to answer.
        on_change: called after each refresh.

    Attributes:
        slots: None before the first answer.
    """

    def __init__(
        self,
        url: RedisUrl,
        connect_to: Callable[[Address], Connect],
        *,
        timeout_s: float,
        on_change: Callable[[SlotMap], None],
    ) -> None:
        self._seeds = url.addresses
        self._connect_to = connect_to
        self._timeout_s = timeout_s
        self._on_change = on_change
        self._moved: dict[int, Address] = {}
        self._task: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")
        self._waiting = 0
        self._closed = False
        self._last_error = "no node of the cluster was asked yet"
        self.slots: SlotMap | None = None

    async def owner(self, slot: int) -> Address:
        """The node that owns a slot.

        Raises:
            RedisUnavailable: no node answers, or none owns the slot.
        """
        moved = self._moved.get(slot)
        if moved is not None:
            return moved
        if self.slots is None:
            await self._first()
        if self.slots is None:
            raise RedisUnavailable(self._last_error)
        owner = self.slots.owner(slot)
        if owner is None:
            self.refresh()
            raise RedisUnavailable("no node of the cluster owns its slot")
        return owner

    async def masters(self) -> tuple[Address, ...]:
        """All nodes that own slots.

        Raises:
            RedisUnavailable: no node answers, or a slot has no owner.
        """
        if self.slots is None:
            await self._first()
        if self.slots is None:
            raise RedisUnavailable(self._last_error)
        if not self.slots.whole:
            self.refresh()
            raise RedisUnavailable("no node of the cluster owns some of the slots")
        return self.slots.masters

    def moved(self, slot: int, to: Address) -> None:
        """Record a redirection, which counts until the next refresh."""
        self._moved[slot] = to
        self.refresh()

    def refresh(self) -> None:
        """Ask for the slots again, unless a question is on its way."""
        if self._closed:
            return
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._refresh())

    async def close(self) -> None:
        """End the question on its way, and ask none any more."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _first(self) -> None:
        loop = asyncio.get_running_loop()
        if self._waiting >= MOST_WAITING:
            raise RedisUnavailable(f"not asked, as {MOST_WAITING} calls wait already")
        if (self._task is None or self._task.done()) and loop.time() - self._asked_at < _PAUSE_S:
            raise RedisUnavailable(f"not asked, as no node has answered lately: {self._last_error}")
        self.refresh()
        task = self._task
        self._waiting += 1
        try:
            if task is not None:
                await asyncio.wait({task}, timeout=self._timeout_s)
        finally:
            self._waiting -= 1

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(0.0, self._asked_at + _PAUSE_S - loop.time()))
        found = await self._first_answer()
        if found is not None:
            self._moved.clear()
            self.slots = found
            self._on_change(found)
        self._asked_at = loop.time()

    async def _first_answer(self) -> SlotMap | None:
        """The slots as the first node sees them that answers; a node that hangs delays the next one a little only."""
        asked: set[asyncio.Task[SlotMap | None]] = set()
        left = self._to_ask()
        try:
            while (address := next(left, None)) is not None or asked:
                head_start_s = None if address is None else self._timeout_s / _HEAD_STARTS
                if address is not None:
                    asked.add(asyncio.get_running_loop().create_task(self._slots_of(address)))
                done, asked = await asyncio.wait(asked, timeout=head_start_s, return_when=asyncio.FIRST_COMPLETED)
                for slots in (task.result() for task in done):
                    if slots is not None:
                        return slots
            return None
        finally:
            for task in asked:
                task.cancel()
            if asked:
                await asyncio.wait(asked)

    def _to_ask(self) -> Iterator[Address]:
        """Known nodes first, the one that a redirection named before all others."""
        known = () if self.slots is None else (*self.slots.masters, *self.slots.replicas)
        yield from dict.fromkeys((*self._moved.values(), *known, *self._seeds))

    async def _slots_of(self, address: Address) -> SlotMap | None:
        """The slots as a node sees them; None if it does not answer in time."""
        connection = RedisConnection(self._connect_to(address))
        # A task and no cancellation from outside, which redis-py may lose; the connection is dropped in any case.
        asked: asyncio.Task[list[Any]] = asyncio.get_running_loop().create_task(connection.exchange([_SLOTS]))
        try:
            await asyncio.wait({asked}, timeout=self._timeout_s)
            if not asked.done():
                self._last_error = f"no answer within {self._timeout_s:g} s"
                return None
            (reply,) = asked.result()
            if isinstance(reply, ResponseError):
                self._last_error = _NO_CLUSTER if first_word(reply) == "ERR" else reason_of(reply)
                return None
            return SlotMap(reply, address)
        except UnknownSlots as error:
            self._last_error = str(error)
        except Exception as error:  # noqa: BLE001 - the next node is to be asked, whatever redis-py raises
            self._last_error = reason_of(error)
        finally:
            asked.cancel()
            await connection.drop()
        return None
