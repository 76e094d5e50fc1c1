"""The pointer of a registry in an object store: that of a directory, and where the objects of each bundle lie.

Every publication writes its objects under a place of its own, ``<id>.<random>``, and a place is deleted only after the
pointer names it no more. So no publication ever uses objects that a pruning deletes.
"""

import json
import re
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from index.bundle.manifest import is_bundle_id
from index.bundle.pointer import Pointer, decoded
from index.errors import RegistryError

LARGEST_POINTER: Final = 4 << 20
"""Bytes."""

_PLACE: Final = re.compile(r"(.+)\.[0-9a-f]{12}")


def new_place(bundle_id: str) -> str:
    """A place for the objects of one publication."""
    return f"{bundle_id}.{uuid.uuid4().hex[:12]}"


def bundle_of(place: str) -> str | None:
    """The id of the bundle whose objects lie in a place; None: it is no place."""
    found = _PLACE.fullmatch(place)
    return found[1] if found is not None and is_bundle_id(found[1]) else None


@dataclass(frozen=True)
class StorePointer:
    """Content of ``pointer.json`` in an object store.

    Attributes:
        pointer: current bundle, rollback history and order of publication.
        places: where the objects of each published bundle lie, by its id.
        serial: grows with every change, so that an older pointer is recognized: milliseconds since 1970, or one more
            than before.
    """

    pointer: Pointer = field(default_factory=Pointer)
    places: Mapping[str, str] = field(default_factory=dict)
    serial: int = 0

    @classmethod
    def parse(cls, content: bytes, source: str) -> "StorePointer":
        """Read the content of the object.

        Args:
            content: JSON.
            source: of the content, for the message.

        Raises:
            RegistryError: it breaks a rule.
        """
        raw = decoded(content, source)
        pointer = Pointer.of_json(raw, source)
        places, serial = raw.get("places"), raw.get("serial")
        named = {name for name in (pointer.current, *pointer.previous, *(pointer.published or ())) if name}
        if type(serial) is not int:
            raise RegistryError(f"{source}: must have a serial number; delete it and publish again")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise RegistryError(f"{source}: must name the place of each bundle; delete it and publish again")
        if named - set(places) or any(bundle_of(place) != name for name, place in places.items()):
            raise RegistryError(f"{source}: a bundle has no place or a wrong one; delete it and publish again")
        return cls(pointer, places, serial)

    def to_json(self) -> bytes:
        """The content of the object."""
        return (
            json.dumps(
                {**self.pointer.as_json(), "places": dict(self.places), "serial": self.serial}, indent=1
            ).encode()
            + b"\n"
        )

    @property
    def ids(self) -> Collection[str]:
        """Ids of the published bundles. Only the pointer shows them: a listing may be late."""
        return self.places.keys()

    def publish(self, bundle_id: str, place: str) -> "StorePointer":
        """The pointer after the publication of a bundle whose objects lie in a place."""
        places = {**self.places, bundle_id: place}
        return replace(self, pointer=self.pointer.publish(bundle_id, places.keys()), places=places)

    def roll_back(self, bundle_id: str) -> "StorePointer":
        """The pointer after a rollback to a published bundle."""
        return replace(self, pointer=self.pointer.roll_back(bundle_id, self.ids))

    def without(self, deleted: Collection[str]) -> "StorePointer":
        """The pointer without some bundles."""
        kept = {name: place for name, place in self.places.items() if name not in deleted}
        return replace(self, pointer=self.pointer.without(deleted, self.ids), places=kept)

    def numbered(self) -> "StorePointer":
        """This pointer as the next one to be written."""
        return replace(self, serial=max(self.serial + 1, time.time_ns() // 1_000_000))
