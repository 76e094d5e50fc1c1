"""The binary form in which an answer is stored until its outcomes are known, 144 bytes for 20 items.

Numbers are big-endian. The records of one owner are one string, newest first, which
`service.stores.outcomes.redis_outcome_scripts` reads.

========  =====================================================================================================
bytes     content
========  =====================================================================================================
2         length of the whole record
4         seconds since 1970
6         fingerprint of the request id
2         position of the first item, counted from 0
1         number of items n
1         length c of the context
c         code of the strategy (1), bundle (7), arm (the rest, UTF-8); of an interleaved answer 254 (1), length of the
          context of its first arm (1), the contexts of both arms
3 n       fingerprint of each item id
n         a mark for each item: 64 if of the second arm + 8 × code of the dominant slot + 4 if converted + 2 if clicked
          + 1 if seen
========  =====================================================================================================

Items are fingerprints of their ids and not rows of the bundle: a row has no meaning once the bundle is no longer in
memory, and a fingerprint is no longer (docs/adr/0031).
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from index.bundle.event_types import Outcome

MOST_ITEMS: Final = 50
"""Items of an answer that are stored, from its first position on."""
MARK_OF: Final[dict[Outcome, int]] = {"impression": 1, "click": 2, "conversion": 4}
"""Bit of each outcome in the mark of an item."""
ANONYMOUS: Final = "\x1f\x1f"  # an anonymous session has one
"""First character of the owner of an answer without a user; ids have no control characters."""

HEAD: Final = struct.Struct(">HI6sHBB")
"""The first 16 bytes of a record."""

_CONTEXT: Final = struct.Struct(">BI3s")
_BUNDLE: Final = re.compile(r"(\d{8}T\d{6})Z-([0-9a-f]{6})")
_TIME: Final = "%Y%m%dT%H%M%S"
_STRATEGIES: Final = ("sequence", "similar", "popular")
_SLOTS: Final = ("none", "text", "image", "behaviour", "other")
_OTHER: Final = "other"
_UNKNOWN: Final = 255
_INTERLEAVED: Final = bytes([254])  # the scripts know it too
_SLOT_SHIFT: Final = 3
_SLOT_CODES: Final = 0b111
_SECOND: Final = 64
_MARK_OF_SLOT: Final = {name: code << _SLOT_SHIFT for code, name in enumerate(_SLOTS)}
_MARK_OF_OTHER: Final = _MARK_OF_SLOT[_OTHER]
_MOST_ARM_BYTES: Final = 100


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """What outcomes of an answer are counted by.

    Attributes:
        bundle: id of the bundle that answered.
        strategy: ``sequence``, ``similar``, ``popular``, or ``other``.
        arm: experiment and arm, as in ``prices/control``; empty: the answer is of no experiment.
    """

    bundle: str
    strategy: str
    arm: str = ""

    def encode(self) -> bytes:
        """The context as a record holds it.

        Raises:
            ValueError: the bundle id has another form than that of a published bundle.
        """
        return _encoded(self.bundle, self.strategy, self.arm)

    @classmethod
    def decode(cls, stored: bytes) -> "AnswerContext":
        """The context of a record."""
        code, seconds, content = _CONTEXT.unpack_from(stored)
        bundle = f"{datetime.fromtimestamp(seconds, UTC).strftime(_TIME)}Z-{content.hex()}"
        strategy = _STRATEGIES[code] if code < len(_STRATEGIES) else _OTHER
        return cls(bundle, strategy, stored[_CONTEXT.size :].decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class SecondArm:
    """What the second arm gave to an interleaved answer.

    Attributes:
        context: as the context of the answer, which is that of the first arm.
        gave: whether it gave each item of the answer.
    """

    context: AnswerContext
    gave: Sequence[bool]


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """An answer whose outcomes are awaited.

    Attributes:
        owner: from :func:`owner_of`.
        time: seconds since 1970.
        request_id: as it was answered.
        offset: position of the first item, counted from 0.
        item_ids: best first; the first `MOST_ITEMS` are stored.
        slots: name of the slot with the largest contribution to each score; ``none`` where there is none.
        context: what outcomes are counted by.
        second: of an interleaved answer; None: it is of one arm or none.
    """

    owner: str
    time: int
    request_id: str
    offset: int
    item_ids: Sequence[str]
    slots: Sequence[str]
    context: AnswerContext
    second: SecondArm | None = None

    @property
    def is_of_nobody(self) -> bool:
        """Whether it is without a user, and so its own owner."""
        return self.owner.startswith(ANONYMOUS)

    @property
    def experiment(self) -> str:
        """The experiment whose users are divided by it; empty: none, as where an answer is of both arms."""
        name, _, arm = self.context.arm.partition("/")
        return name if arm and self.second is None else ""

    def encode(self) -> bytes:
        """The record; raises as `AnswerContext.encode`."""
        items, second = self.item_ids[:MOST_ITEMS], self.second
        context = self.context.encode()
        codes = [_MARK_OF_SLOT.get(slot, _MARK_OF_OTHER) for slot in self.slots[: len(items)]]
        if second is not None:
            context = b"".join((_INTERLEAVED, bytes([len(context)]), context, second.context.encode()))
            codes = [code + _SECOND * gave for code, gave in zip(codes, second.gave, strict=False)]
        size = HEAD.size + len(context) + 4 * len(items)
        head = HEAD.pack(size, self.time, request_fingerprint(self.request_id), self.offset, len(items), len(context))
        return b"".join((head, context, _fingerprints(items), bytes(codes)))


@lru_cache(maxsize=64)
def _encoded(bundle_id: str, strategy: str, arm: str) -> bytes:
    """The context as a record holds it; see `AnswerContext.encode`."""
    found = _BUNDLE.fullmatch(bundle_id)
    if found is None:
        raise ValueError(f"bundle must be an id like 20261123T054901Z-985c3c; received {bundle_id!r}")
    built = datetime.strptime(found[1], _TIME).replace(tzinfo=UTC)
    code = _STRATEGIES.index(strategy) if strategy in _STRATEGIES else _UNKNOWN
    return _CONTEXT.pack(code, int(built.timestamp()), bytes.fromhex(found[2])) + arm.encode()[:_MOST_ARM_BYTES]


def owner_of(user_id: str | None, request_id: str) -> str:
    """The owner of an answer: its user; of an answer without a user the answer itself."""
    return f"{ANONYMOUS}{request_id}" if user_id is None else user_id


def item_numbers(item_ids: Sequence[str]) -> list[int]:
    """The fingerprint of each item id as a number; two of 20 items have the same once in 90,000 answers."""
    return [number & 0xFFFFFF for number in map(zlib.crc32, map(str.encode, item_ids))]


def _fingerprints(item_ids: Sequence[str]) -> bytearray:
    """As `item_numbers`, three bytes each; without a step of Python for each, as an answer has many."""
    whole = bytearray(struct.pack(f">{len(item_ids)}I", *map(zlib.crc32, map(str.encode, item_ids))))
    del whole[::4]
    return whole


def user_fingerprint(owner: str) -> bytes:
    """Eight bytes of a user or session."""
    return hashlib.blake2b(owner.encode(), digest_size=8, person=b"outcome-user").digest()


@lru_cache(maxsize=1024)  # an answer has many items, each with an impression
def request_fingerprint(request_id: str) -> bytes:
    """Six bytes of a request id."""
    return hashlib.blake2b(request_id.encode(), digest_size=6).digest()


@lru_cache(maxsize=256)
def contexts_of(stored: bytes) -> tuple[AnswerContext, AnswerContext | None]:
    """The stored context of an answer; of an interleaved one those of both arms."""
    if stored[:1] != _INTERLEAVED:
        return AnswerContext.decode(stored), None
    end = 2 + stored[1]
    return AnswerContext.decode(stored[2:end]), AnswerContext.decode(stored[end:])


def is_of_second(mark: int) -> bool:
    """Whether the second arm gave an item, by its mark."""
    return bool(mark & _SECOND)


def slot_of(mark: int) -> str:
    """The name of the dominant slot of an item."""
    code = mark >> _SLOT_SHIFT & _SLOT_CODES
    return _SLOTS[code] if code < len(_SLOTS) else _OTHER
