"""Reads and writes the registry's pointer: the current bundle, the rollback history and the order of publication.

The pointer is one small file that is replaced atomically, so all three change together. It records the order of
publication because a bundle's name has only the time of the build machine's clock, which may have been wrong.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.bundle.integrity import write_durably
from index.bundle.manifest import is_bundle_id
from index.errors import RegistryError

POINTER_FILE = "pointer.json"

_FORMAT = 1
_KEPT_HISTORY = 100


@dataclass(frozen=True)
class Pointer:
    """Content of ``pointer.json``.

    Attributes:
        current: id of the current bundle; None before the first publication.
        previous: rollback history: ids that were current before, the most recent last.
        published: ids in the order of their last publication, oldest first; None in a file of an earlier version, which
            did not record the order.
    """

    current: str | None = None
    previous: tuple[str, ...] = ()
    published: tuple[str, ...] | None = None

    @classmethod
    def read(cls, path: Path) -> "Pointer":
        """Read the file; a missing file means that nothing was published.

        Raises:
            RegistryError: the file cannot be read or breaks a rule.
        """
        try:
            return cls.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            return cls()
        except NotADirectoryError as error:
            raise RegistryError(f"{path.parent}: a registry is a directory, not a file; name another one") from error
        except IsADirectoryError as error:
            raise RegistryError(f"{path}: is a directory, not a file; delete it and publish again") from error
        except OSError as error:
            raise RegistryError(
                f"{path}: cannot be read ({error.strerror or error}); check its owner and its mount"
            ) from error

    @classmethod
    def parse(cls, content: bytes, source: str) -> "Pointer":
        """Read the content of the file.

        Args:
            content: JSON.
            source: of the content, for the message.

        Raises:
            RegistryError: it breaks a rule.
        """
        return cls.of_json(decoded(content, source), source)

    @classmethod
    def of_json(cls, raw: Any, source: str) -> "Pointer":  # noqa: ANN401 - any JSON
        """As :meth:`parse`, from JSON that is decoded already."""
        try:
            current, previous, published = raw["current"], tuple(raw["previous"]), raw.get("published")
            names = (current, *previous, *(published or ()))
            known = raw["format"] == _FORMAT and all(isinstance(name, str) and is_bundle_id(name) for name in names)
        except (KeyError, TypeError, AttributeError) as error:
            raise RegistryError(f"{source}: cannot be read ({error}); delete it and publish again") from error
        if not known or not isinstance(published, list | None):
            raise RegistryError(f"{source}: must name bundles in format {_FORMAT}; delete it and publish again")
        return cls(current, previous, None if published is None else tuple(published))

    def write(self, path: Path) -> None:
        """Replace the file atomically.

        Raises:
            OSError: the file cannot be written.
        """
        write_durably(path, json.dumps(self.as_json(), indent=1).encode() + b"\n")

    def as_json(self) -> dict[str, Any]:
        """The content of the file as plain values."""
        return {
            "format": _FORMAT,
            "current": self.current,
            "previous": list(self.previous),
            "published": list(self.published or ()),
        }

    def never_published(self, present: Collection[str]) -> frozenset[str]:
        """The bundles that were never published, as far as the pointer records it.

        Args:
            present: ids of all bundles in the registry's directory.
        """
        if self.published is None:
            return frozenset()
        return frozenset(present) - {*self.published, *self.previous, self.current}

    def order(self, present: Collection[str]) -> tuple[str, ...]:
        """Sort bundles by publication, oldest first; never published bundles come first, by name.

        If an earlier version wrote the pointer, a bundle that it does not name is placed before the first named bundle
        with a greater name.

        Args:
            present: ids of all bundles in the registry's directory.
        """
        history = [name for name in (*self.previous, self.current) if name is not None]
        if self.published is None:
            order = [name for name in history if name in present]
            for name in sorted(set(present) - set(order)):
                order.insert(next((position for position, other in enumerate(order) if other > name), len(order)), name)
            return tuple(order)
        listed = [*self.published, *(name for name in history if name not in self.published)]
        return (*sorted(self.never_published(present)), *(name for name in listed if name in present))

    def before(self, bundle_id: str, present: Collection[str]) -> list[str]:
        """Published bundles to fall back to from a bundle: its rollback history, then others, newest first.

        Args:
            bundle_id: the bundle; if it is not in the registry, bundles with smaller names count as published before.
            present: ids of all bundles in the registry's directory.
        """
        order, history = self._published(present), (*self.previous, self.current)
        nearest = history[: history.index(bundle_id)] if bundle_id in history else ()
        earlier = (
            order[: order.index(bundle_id)] if bundle_id in order else [name for name in order if name < bundle_id]
        )
        rollback = [name for name in reversed(nearest) if name in order and name is not None]
        return list(dict.fromkeys([*rollback, *earlier[::-1]]))

    def publish(self, target: str, present: Collection[str]) -> "Pointer":
        """The pointer after the publication of a bundle.

        Args:
            target: id of the published bundle.
            present: ids of all bundles in the registry's directory.
        """
        order = [name for name in self._published(present) if name != target]
        if target == self.current:
            return Pointer(target, self.previous, (*order, target))
        kept = tuple(name for name in self.previous if name != target)
        history = kept if self.current is None else (*kept, self.current)
        return Pointer(target, history[-_KEPT_HISTORY:], (*order, target))

    def roll_back(self, target: str, present: Collection[str]) -> "Pointer":
        """The pointer after a rollback to a bundle, earlier or later; the order of publication stays.

        Args:
            target: id of the bundle.
            present: ids of all bundles in the registry's directory.
        """
        if target == self.current:
            return self
        order = self._published(present)
        published = tuple(order if target in order else [*order, target])
        history = tuple(name for name in self.previous if name in present)
        if target in history:
            return Pointer(target, history[: history.index(target)], published)
        extended = history if self.current is None else (*history, self.current)
        return Pointer(target, extended[-_KEPT_HISTORY:], published)

    def rollback_target(self, present: Collection[str]) -> str | None:
        """The bundle that the next rollback makes current; None: there is none.

        Args:
            present: ids of all bundles in the registry's directory.
        """
        return next((name for name in reversed(self.previous) if name in present), None)

    def without(self, deleted: Collection[str], present: Collection[str]) -> "Pointer":
        """The pointer without some bundles; it is written before they are deleted.

        Args:
            deleted: ids of the bundles to delete.
            present: ids of all bundles in the registry's directory.
        """
        order = tuple(name for name in self._published(present) if name not in deleted)
        return Pointer(self.current, tuple(name for name in self.previous if name not in deleted), order)

    def _published(self, present: Collection[str]) -> list[str]:
        """:meth:`order` without the never published bundles."""
        never = self.never_published(present)
        return [name for name in self.order(present) if name not in never]


def decoded(content: bytes, source: str) -> Any:  # noqa: ANN401 - any JSON
    """The JSON of a pointer.

    Raises:
        RegistryError: it is none.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{source}: cannot be read ({error}); delete it and publish again") from error
