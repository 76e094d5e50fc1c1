"""Which node of a Redis Cluster owns which slots."""

from bisect import bisect_right
from typing import Any, Final

from redis.cluster import parse_cluster_slots
from redis.crc import key_slot
from redis.exceptions import AskError

from service.settings.redis_url import Address


def slot_of(key: str) -> int:
    """The slot of a key, 0 … 16383."""
    return key_slot(key.encode())


_SLOTS: Final = 16_384


class UnknownSlots(Exception):
    """A reply does not say which node owns which slots; the message says why."""


class SlotMap:
    """The owners of all slots at one time.

    Args:
        reply: of ``CLUSTER SLOTS``.
        asked: the node that answered; it gives no host of its own where it does not know it.

    Attributes:
        masters: nodes that own slots.
        replicas: the other nodes.

    Raises:
        UnknownSlots: the reply has another form, or names no owner at all.
    """

    def __init__(self, reply: Any, asked: Address) -> None:  # noqa: ANN401 - checked here
        try:
            slots = parse_cluster_slots(reply, current_host=asked.host)
            ranges = sorted((int(start), int(end), _address(of["primary"])) for (start, end), of in slots.items())
            replicas = [_address(replica) for of in slots.values() for replica in of["replicas"]]
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise UnknownSlots("the slots of the cluster have an unknown form") from error
        if not ranges:
            raise UnknownSlots("no node of the cluster owns a slot")
        self._starts = [start for start, _, _ in ranges]
        self._ranges = ranges
        self.masters = tuple(dict.fromkeys(address for _, _, address in ranges))
        self.replicas = tuple(dict.fromkeys(replicas))

    def owner(self, slot: int) -> Address | None:
        """The master that owns a slot; None if none does."""
        at = bisect_right(self._starts, slot) - 1
        if at < 0 or slot > self._ranges[at][1]:
            return None
        return self._ranges[at][2]

    @property
    def whole(self) -> bool:
        """Whether every slot has an owner."""
        return sum(end - start + 1 for start, end, _ in self._ranges) == _SLOTS


def redirected(error: AskError, asked: Address) -> Address:
    """The node that a ``MOVED`` or ``ASK`` names; it leaves the host out if it is that of the node that answered."""
    return Address(error.host or asked.host, error.port)


def _address(server: tuple[str, int]) -> Address:
    return Address(server[0], int(server[1]))
