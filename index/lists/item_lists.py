"""ItemLists: the nearest items of every item by one or more similarities, with the weights that they are scored with.

A directory with ``lists.json`` (names, weights, recency, counts) and three arrays for each list, memory-mapped on load:
``NAME-offsets.npy``, ``NAME-rows.npy`` and ``NAME-similarities.npy``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index.errors import BundleInvalid, ItemListError
from index.items.mapped_array import map_array
from index.items.slots import BEHAVIOUR, IMAGE, TEXT, SlotLayout

CO: Final = "co"
WORDS: Final = "words"
LOOK: Final = "look"
LIST_SLOTS: Final[Mapping[str, str]] = MappingProxyType({CO: BEHAVIOUR, WORDS: TEXT, LOOK: IMAGE})
"""List → slot that its part of a score counts to, in the order in which lists are stored and summed."""
LISTS_FILE: Final = "lists.json"
MOST_RECENT: Final = 512
"""Most items of a history that lists may count."""
_FORMAT_VERSION: Final = 1
_BLOCK_ENTRIES: Final = 1 << 22


@dataclass(frozen=True, eq=False)
class ItemList:
    """The nearest items of every item by one similarity, most similar first.

    Attributes:
        name: a key of :data:`LIST_SLOTS`.
        offsets: (n + 1,) int64; item i owns the entries ``offsets[i] : offsets[i + 1]``.
        rows: (entries,) int32 item rows, never the item itself.
        similarities: (entries,) float16, positive, descending within an item.

    Raises:
        ItemListError: an unknown name, or arrays of another dtype or shape.
    """

    name: str
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]
    similarities: NDArray[np.float16]

    def __post_init__(self) -> None:
        if self.name not in LIST_SLOTS:
            raise ItemListError(f"a list must be one of {', '.join(LIST_SLOTS)}, got {self.name!r}")
        if self.offsets.dtype != np.int64 or self.rows.dtype != np.int32 or self.similarities.dtype != np.float16:
            raise ItemListError(
                f"list {self.name}: needs int64 offsets, int32 rows and float16 similarities, got "
                f"{self.offsets.dtype}, {self.rows.dtype} and {self.similarities.dtype}"
            )
        if self.offsets.ndim != 1 or not len(self.offsets):
            raise ItemListError(f"list {self.name}: offsets must be (items + 1,), got {self.offsets.shape}")
        if self.rows.ndim != 1 or self.rows.shape != self.similarities.shape:
            raise ItemListError(
                f"list {self.name}: rows and similarities must be (entries,) both, got {self.rows.shape} and "
                f"{self.similarities.shape}"
            )

    def __len__(self) -> int:
        """Number of items n."""
        return len(self.offsets) - 1

    @property
    def slot(self) -> str:
        """The slot that the list's part of a score counts to."""
        return LIST_SLOTS[self.name]

    @property
    def longest(self) -> int:
        """Number of entries of the item with the most; reads all offsets."""
        return int(np.diff(self.offsets).max(initial=0))

    def of(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.float16]]:
        """Rows and similarities of the nearest items of one item, most similar first; views."""
        part = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return self.rows[part], self.similarities[part]

    def check_offsets(self) -> None:
        """Check that every item owns entries that the list has; reads the offsets only.

        Raises:
            ItemListError: an offset breaks a rule.
        """
        entries = len(self.rows)
        if self.offsets[0] != 0 or self.offsets[-1] != entries or (self.offsets[1:] < self.offsets[:-1]).any():
            raise ItemListError(f"list {self.name}: offsets must rise from 0 to {entries}; build the lists again")

    def check(self) -> None:
        """Hold every entry to the rules above; reads the whole list once, in blocks.

        Raises:
            ItemListError: an offset, a row or a similarity breaks a rule.
        """
        self.check_offsets()
        first = 0
        while first < len(self):
            last = int(np.searchsorted(self.offsets, self.offsets[first] + _BLOCK_ENTRIES, side="right")) - 1
            last = max(last, first + 1)
            self._check_items(first, last)
            first = last

    def _check_items(self, first: int, last: int) -> None:
        """Check the entries of the items ``first`` … ``last − 1``."""
        lengths = np.diff(self.offsets[first : last + 1])
        part = slice(int(self.offsets[first]), int(self.offsets[last]))
        owner = np.repeat(np.arange(first, last), lengths)
        rows, similarities = self.rows[part].astype(np.int64), self.similarities[part].astype(np.float32)
        broken = (rows < 0) | (rows >= len(self))
        self._refuse(broken, owner, f"rows must lie in 0 … {len(self) - 1}")
        self._refuse(rows == owner, owner, "an item must not be in its own list")
        self._refuse(~(np.isfinite(similarities) & (similarities > 0)), owner, "similarities must be finite and > 0")
        same = owner[1:] == owner[:-1]
        rising = np.concatenate([[False], same & (similarities[1:] > similarities[:-1])]) if len(owner) else broken
        self._refuse(rising, owner, "similarities must descend")
        pairs = np.sort(owner * len(self) + rows)
        if (pairs[1:] == pairs[:-1]).any():
            raise ItemListError(f"list {self.name}: an item occurs twice in a list; build the lists again")

    def _refuse(self, broken: NDArray[np.bool_], owner: NDArray[np.int64], rule: str) -> None:
        if broken.any():
            row = int(owner[int(np.argmax(broken))])
            raise ItemListError(f"list {self.name}, item {row}: {rule}; build the lists again")


@dataclass(frozen=True, eq=False)
class ListWeights:
    """How much the lists count.

    Attributes:
        recency: (H,) float32, weight of each of the newest H items of a history, newest first; older items have none.
        weights: list name → weight of the list beside the inner product of the slots; 0 for a list that is not used.

    Raises:
        ItemListError: a weight that is not finite or negative, or no recency at all.
    """

    recency: NDArray[np.float32]
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        recency = self.recency
        if recency.dtype != np.float32 or recency.ndim != 1 or not 1 <= len(recency) <= MOST_RECENT:
            raise ItemListError(
                f"recency must be 1 … {MOST_RECENT} float32 weights, got {recency.dtype} {recency.shape}"
            )
        if not np.isfinite(recency).all() or (recency < 0).any():
            raise ItemListError(f"recency must be finite and at least 0, got {recency.tolist()}")
        for name, weight in self.weights.items():
            if name not in LIST_SLOTS:
                raise ItemListError(f"weights must be of the lists {', '.join(LIST_SLOTS)}, got {name!r}")
            if not math.isfinite(weight) or weight < 0:
                raise ItemListError(f"the weight of list {name} must be finite and at least 0, got {weight}")


@dataclass(frozen=True, eq=False)
class ItemLists:
    """The lists of a catalogue with their weights.

    Attributes:
        items: number of items n.
        lists: in the order of :data:`LIST_SLOTS`; none is allowed.
        weights: of exactly these lists.

    Raises:
        ItemListError: lists of unequal length, out of order, or weights of other lists.
    """

    items: int
    lists: tuple[ItemList, ...]
    weights: ListWeights

    def __post_init__(self) -> None:
        names = [item_list.name for item_list in self.lists]
        if names != [name for name in LIST_SLOTS if name in self.weights.weights]:
            raise ItemListError(
                f"lists must be in the order {', '.join(LIST_SLOTS)} and have one weight each, got lists {names} and "
                f"weights of {sorted(self.weights.weights)}"
            )
        for item_list in self.lists:
            if len(item_list) != self.items:
                raise ItemListError(
                    f"list {item_list.name} has {len(item_list)} items, the catalogue {self.items}; "
                    "build the lists again"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the lists in their order."""
        return tuple(item_list.name for item_list in self.lists)

    @property
    def slots(self) -> tuple[str, ...]:
        """For each list the slot that it counts to."""
        return tuple(item_list.slot for item_list in self.lists)

    def only(self, names: Sequence[str]) -> "ItemLists":
        """The same lists without all but these; names of lists that are not there are ignored."""
        weights = {name: weight for name, weight in self.weights.weights.items() if name in names}
        lists = tuple(item_list for item_list in self.lists if item_list.name in weights)
        return ItemLists(self.items, lists, ListWeights(self.weights.recency, weights))

    def used(self) -> "ItemLists":
        """Those whose weight is above 0."""
        return self.only([name for name, weight in self.weights.weights.items() if weight > 0])

    def weighed(self, weights: ListWeights) -> "ItemLists":
        """The same lists with other weights; a list that these do not name gets 0."""
        named = {name: weights.weights.get(name, 0.0) for name in self.names}
        return ItemLists(self.items, self.lists, ListWeights(weights.recency, named))

    def for_layout(self, layout: SlotLayout) -> "ItemLists":
        """Those whose slot the layout has."""
        return self.only([item_list.name for item_list in self.lists if item_list.slot in layout.names])

    def check(self) -> None:
        """Check every entry of every list.

        Raises:
            ItemListError: see :meth:`ItemList.check`.
        """
        for item_list in self.lists:
            item_list.check()

    def save(self, directory: Path) -> None:
        """Write the lists; earlier ones in the same directory are replaced file by file, ``lists.json`` last.

        Raises:
            ItemListError: an entry breaks a rule.
        """
        self.check()
        directory.mkdir(parents=True, exist_ok=True)
        (directory / LISTS_FILE).unlink(missing_ok=True)
        for name in LIST_SLOTS:
            for path in _paths(directory, name):
                path.unlink(missing_ok=True)  # a mapped file is never written into
        for item_list in self.lists:
            arrays = (item_list.offsets, item_list.rows, item_list.similarities)
            for path, array in zip(_paths(directory, item_list.name), arrays, strict=True):
                np.save(path, np.ascontiguousarray(array))
        described = [
            {"name": part.name, "weight": self.weights.weights[part.name], "entries": len(part.rows)}
            for part in self.lists
        ]
        description = {
            "format": _FORMAT_VERSION,
            "items": self.items,
            "recency": [float(weight) for weight in self.weights.recency],
            "lists": described,
        }
        partial = directory / f"{LISTS_FILE}.part"
        partial.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        partial.replace(directory / LISTS_FILE)

    @classmethod
    def load(cls, directory: Path, items: int, *, check: bool = True) -> "ItemLists":
        """Map the lists of a catalogue.

        Args:
            directory: where :meth:`save` wrote them.
            items: size of the catalogue n.
            check: read every entry and check it; else only offsets, dtypes and weights.

        Raises:
            ItemListError: ``lists.json`` is missing, unreadable or of another format version, or a rule is broken.
            BundleInvalid: an array is missing or damaged.
        """
        path = directory / LISTS_FILE
        try:
            description = json.loads(path.read_bytes())
            parts, recency = _parsed(description, items)
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ItemListError(f"{path}: not a readable description of lists ({error}); build them again") from error
        weights = ListWeights(recency, {name: weight for name, weight, _ in parts})
        lists = tuple(_map_list(directory, name, items, entries) for name, _, entries in parts)
        found = cls(items, lists, weights)
        for item_list in lists:
            if check:
                item_list.check()
            else:
                item_list.check_offsets()
        return found


def array_files(name: str) -> tuple[str, str, str]:
    """Names of the files with the offsets, rows and similarities of one list."""
    return f"{name}-offsets.npy", f"{name}-rows.npy", f"{name}-similarities.npy"


def _paths(directory: Path, name: str) -> list[Path]:
    return [directory / file for file in array_files(name)]


def _parsed(description: Any, items: int) -> tuple[list[tuple[str, float, int]], NDArray[np.float32]]:  # noqa: ANN401
    """Name, weight and entries of each list, and the recency; anything else than numbers is refused."""
    if description["format"] != _FORMAT_VERSION:
        raise ItemListError(f"lists of format {description['format']!r}, this version reads {_FORMAT_VERSION}")
    if description["items"] != items:
        raise ItemListError(f"the lists are of {description['items']!r} items, the catalogue has {items}")
    parts = [(part["name"], float(part["weight"]), part["entries"]) for part in description["lists"]]
    for name, _, entries in parts:
        if name not in LIST_SLOTS:
            raise ItemListError(f"a list must be one of {', '.join(LIST_SLOTS)}, got {name!r}")
        if type(entries) is not int or not 0 <= entries <= items * max(items - 1, 0):
            raise ItemListError(f"list {name} of {items} items cannot have {entries!r} entries")
    if len({name for name, _, _ in parts}) != len(parts):
        raise ItemListError(f"each list must occur once, got {[name for name, _, _ in parts]}")
    recency = [float(weight) for weight in description["recency"]]
    return parts, np.array(recency, dtype=np.float32)


def _map_list(directory: Path, name: str, items: int, entries: int) -> ItemList:
    offsets, rows, similarities = _paths(directory, name)
    try:
        return ItemList(
            name,
            map_array(offsets, "int64", (items + 1,)),
            map_array(rows, "int32", (entries,)),
            map_array(similarities, "float16", (entries,)),
        )
    except BundleInvalid as error:
        raise BundleInvalid(f"list {name}: {error}") from error
