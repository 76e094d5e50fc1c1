"""The registry's pointer: the current bundle, those that a rollback goes back to, and the order of publication.

One small file, replaced in one step, so all three change together. The order of publication stands in it because names
tell the time of a clock, and a clock may have been wrong.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from index.bundle.integrity import write_durably
from index.bundle.manifest import is_bundle_id
from index.errors import RegistryError

POINTER_FILE = "pointer.json"

_FORMAT = 1
_KEPT_HISTORY = 100


@dataclass(frozen=True)
class Pointer:
    """What ``pointer.json`` says.

    Attributes:
        current: id of the bundle that serves; None before the first publish.
        previous: ids that a rollback goes back to, the nearest last.
        published: ids in the order in which they were last published, oldest first; None where an earlier version wrote
            the file, which recorded no order.
    """

    current: str | None = None
    previous: tuple[str, ...] = ()
    published: tuple[str, ...] | None = None

    @classmethod
    def read(cls, path: Path) -> "Pointer":
        """Read the file; where there is none, nothing was published.

        Raises:
            RegistryError: it cannot be read, or breaks a rule.
        """
        try:
            raw = json.loads(path.read_bytes())
            current, previous, published = raw["current"], tuple(raw["previous"]), raw.get("published")
            names = (current, *previous, *(published or ()))
            known = raw["format"] == _FORMAT and all(isinstance(n, str) and is_bundle_id(n) for n in names)
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RegistryError(f"{path}: cannot be read ({error}); delete it and publish again") from error
        if not known or not isinstance(published, list | None):
            raise RegistryError(f"{path}: must name bundles in format {_FORMAT}; delete it and publish again")
        return cls(current, previous, None if published is None else tuple(published))

    def write(self, path: Path) -> None:
        """Replace the file in one step.

        Raises:
            OSError: it cannot be written.
        """
        raw = {
            "format": _FORMAT,
            "current": self.current,
            "previous": list(self.previous),
            "published": list(self.published or ()),
        }
        write_durably(path, json.dumps(raw, indent=1).encode() + b"\n")

    def never_published(self, present: Collection[str]) -> frozenset[str]:
        """Which of these bundles were never published, as far as that is recorded.

        Args:
            present: ids of the bundles in the registry's directory.
        """
        if self.published is None:
            return frozenset()
        return frozenset(present) - {*self.published, *self.previous, self.current}

    def order(self, present: Collection[str]) -> tuple[str, ...]:
        """Bundles in the order of publication, oldest first; those that were never published come before, by name.

        Where an earlier version wrote the pointer, a bundle that it does not name stands before the first named one
        with a greater name.

        Args:
            present: ids of the bundles in the registry's directory.
        """
        back = [name for name in (*self.previous, self.current) if name is not None]
        if self.published is None:
            order = [name for name in back if name in present]
            for name in sorted(set(present) - set(order)):
                order.insert(next((place for place, other in enumerate(order) if other > name), len(order)), name)
            return tuple(order)
        listed = [*self.published, *(name for name in back if name not in self.published)]
        return (*sorted(self.never_published(present)), *(name for name in listed if name in present))

    def before(self, bundle_id: str, present: Collection[str]) -> list[str]:
        """Published bundles before a bundle: first those that a rollback goes back to, then the last published first.

        Args:
            bundle_id: of a bundle; where it is not here, those with smaller names count as published before it.
            present: ids of the bundles in the registry's directory.
        """
        order, back = self._published(present), (*self.previous, self.current)
        nearest = back[: back.index(bundle_id)] if bundle_id in back else ()
        earlier = order[: order.index(bundle_id)] if bundle_id in order else [n for n in order if n < bundle_id]
        return list(dict.fromkeys([*(n for n in reversed(nearest) if n in order and n is not None), *earlier[::-1]]))

    def publish(self, target: str, present: Collection[str]) -> "Pointer":
        """The pointer after a bundle was published.

        Args:
            target: the bundle.
            present: ids of the bundles in the registry's directory.
        """
        order = [name for name in self._published(present) if name != target]
        if target == self.current:
            return Pointer(target, self.previous, (*order, target))
        kept = tuple(name for name in self.previous if name != target)
        back = kept if self.current is None else (*kept, self.current)
        return Pointer(target, back[-_KEPT_HISTORY:], (*order, target))

    def roll_back(self, target: str, present: Collection[str]) -> "Pointer":
        """The pointer on another bundle: back in its history, or one further on. The order of publication stays.

        Args:
            target: the bundle.
            present: ids of the bundles in the registry's directory.
        """
        order = self._published(present)
        published = tuple(order if target in order else [*order, target])
        back = tuple(name for name in self.previous if name in present)
        if target in back:
            return Pointer(target, back[: back.index(target)], published)
        before = back if self.current is None else (*back, self.current)
        return Pointer(target, before[-_KEPT_HISTORY:], published)

    def without(self, gone: Collection[str], present: Collection[str]) -> "Pointer":
        """The pointer before some bundles are deleted.

        Args:
            gone: ids that will go.
            present: ids of the bundles in the registry's directory.
        """
        order = tuple(name for name in self._published(present) if name not in gone)
        return Pointer(self.current, tuple(name for name in self.previous if name not in gone), order)

    def _published(self, present: Collection[str]) -> list[str]:
        """:meth:`order` without those that were never published."""
        never = self.never_published(present)
        return [name for name in self.order(present) if name not in never]
