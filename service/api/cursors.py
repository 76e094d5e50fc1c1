"""Reads and writes cursors: a position in the catalogue of one bundle, and the text that was searched for."""

import zlib
from dataclasses import dataclass
from typing import Final

from service.errors import CatalogueChanged, RuleBroken, RuleViolation

PATTERN: Final = r"^[0-9]{1,15}(\.[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}(\.[0-9a-f]{8})?)?$"


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page begins.

    Attributes:
        position: in the order of the catalogue, or of the search; 0 is the beginning.
        bundle: id of the bundle whose catalogue it is; None: the active one.
        text_hash: of the text that was searched for; None: the catalogue was browsed.
    """

    position: int
    bundle: str | None
    text_hash: str | None

    @classmethod
    def read(cls, text: str) -> "Cursor":
        """The cursor in a text that :data:`PATTERN` matches."""
        position, *rest = text.split(".")
        bundle, text_hash = (*rest, None, None)[:2]
        return cls(int(position), bundle, text_hash)

    def check(self, bundle: str, q: str | None) -> None:
        """Check that a cursor belongs to the active bundle and to the search.

        Raises:
            CatalogueChanged: it is of another bundle, where its position is another item.
            RuleBroken: it is of another search.
        """
        if self.bundle is None:
            return
        if self.bundle != bundle:
            raise CatalogueChanged(
                f"the catalogue changed: the cursor is of bundle {self.bundle}, bundle {bundle} answers now; begin "
                "again without a cursor"
            )
        if self.text_hash != _hash_of(q):
            raise RuleBroken([RuleViolation("cursor", str(self), "must be `next` of a page with the same q")])

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.position, self.bundle, self.text_hash) if part is not None)


def next_cursor(position: int, bundle: str, q: str | None) -> str:
    """The text of the cursor of the next page."""
    return str(Cursor(position, bundle, _hash_of(q)))


def _hash_of(q: str | None) -> str | None:
    return None if q is None else f"{zlib.crc32(q.encode('utf-8', 'surrogatepass')):08x}"
