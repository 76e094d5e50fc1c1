"""Cursors of the catalogue's pages: a place in the catalogue of one bundle, and what was looked for there."""

import zlib
from dataclasses import dataclass
from typing import Final

from service.errors import CatalogueChanged, RuleBroken, Violation

PATTERN: Final = r"^[0-9]{1,15}(\.[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}(\.[0-9a-f]{8})?)?$"


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page begins.

    Attributes:
        place: in the order of the catalogue, or of the search; 0 is the beginning.
        bundle: id of the bundle whose catalogue it is; None: of whichever answers.
        sought: what tells the text that was looked for; None: the catalogue was browsed.
    """

    place: int
    bundle: str | None
    sought: str | None

    @classmethod
    def read(cls, text: str) -> "Cursor":
        """The cursor in a text that :data:`PATTERN` matches."""
        place, *rest = text.split(".")
        bundle, sought = (*rest, None, None)[:2]
        return cls(int(place), bundle, sought)

    def check(self, bundle: str, q: str | None) -> None:
        """Hold a cursor to the bundle that answers and to what is looked for.

        Raises:
            CatalogueChanged: it is of another bundle, where its place means another item.
            RuleBroken: it is of another search.
        """
        if self.bundle is None:
            return
        if self.bundle != bundle:
            raise CatalogueChanged(
                f"the catalogue changed: the cursor is of bundle {self.bundle}, bundle {bundle} answers now; begin "
                "again without a cursor"
            )
        if self.sought != _of(q):
            raise RuleBroken([Violation("cursor", str(self), "must be `next` of a page with the same q")])

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.place, self.bundle, self.sought) if part is not None)


def next_cursor(place: int, bundle: str, q: str | None) -> str:
    """The text of the cursor behind a page."""
    return str(Cursor(place, bundle, _of(q)))


def _of(q: str | None) -> str | None:
    return None if q is None else f"{zlib.crc32(q.encode('utf-8', 'surrogatepass')):08x}"
