"""Names the collection of a bundle, and records what a push found out about it."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Final

PREFIX: Final = "vlm2rec_"
"""Prefix of every collection and of the alias."""
RECORDS: Final = f"{PREFIX}records"
"""Collection of the records, one for each collection whose content was checked."""
CURRENT: Final = f"{PREFIX}current"
"""Alias of the collection that was checked last."""
VERSION: Final = 1

_LETTERS: Final = re.compile(r"[^A-Za-z0-9]")


def collection_of(bundle_id: str) -> str:
    """The name of the collection of a bundle; it contains the hash of the bundle's content."""
    return PREFIX + _LETTERS.sub("_", bundle_id)


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """What was checked before a collection may serve.

    Attributes:
        bundle: id of its bundle.
        content: hash of the bundle's content.
        rows: number of items in it.
        dim: Σd of their vectors.
        fields: name in the collection of each field of the metadata that filters can use there.
        ef: search effort at which the recall was measured.
        recall: recall@20 of plain queries, 0 … 1.
        skewed: the lowest recall@20 of queries with one slot alone, 0 … 1.
        pushed: seconds since 1970.
        version: of this form.
    """

    bundle: str
    content: str
    rows: int
    dim: int
    fields: dict[str, str]
    ef: int
    recall: float
    skewed: float
    pushed: float
    version: int = VERSION

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "CollectionRecord":
        """From text.

        Raises:
            ValueError: it is not a record, or one of another version.
        """
        given = json.loads(text)
        if not isinstance(given, dict) or given.get("version") != VERSION:
            raise ValueError(f"must be a record of version {VERSION}; push the bundle again")
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(f"must have the fields of a record ({error}); push the bundle again") from error
