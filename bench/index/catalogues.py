"""Makes catalogues for the index benches: clustered vectors of low intrinsic dimension, as learned vectors are.

Uniform noise in 192 dimensions is harder to index than any catalogue. Here an item is a point in a space of
36 dimensions, near the centre of its cluster, and each slot shows that point through a map of its own with a little
noise. Some items lack their picture, their behaviour or everything. The same arguments give the same catalogue.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from index.items.slots import Slot, SlotLayout
from index.lists.item_lists import LIST_SLOTS, ItemList, ItemLists, ListWeights

LAYOUT = SlotLayout((Slot("text", 64), Slot("image", 64), Slot("behaviour", 64)))
INTRINSIC_DIM = 36
HISTORY = 10

_ITEMS_PER_CLUSTER = 250
_SPREAD = 1.5  # of the items around their centre, relative to that of the centres: clusters overlap, hard for lists
_NOISE = 0.1  # of a slot's own, relative to what it shows
_NO_PICTURE, _COLD, _NOTHING = 0.12, 0.08, 0.001
_NIGHT = 0.02  # standard deviation of what a night's training moves; a component is about 0.07
_BLOCK_ROWS = 65_536
_COLOURS = ("red", "blue", "green", "black", "white", "grey", "brown", "pink")
_THINGS = ("boots", "lamp", "kettle", "scarf", "chair", "puzzle", "drill", "tent", "mug", "jacket", "rug", "guitar")


@dataclass(frozen=True)
class MadeCatalogue:
    """A made item table with its evaluation queries.

    Attributes:
        table: the items.
        queries: evaluation queries: histories within one cluster, each with an item of the same cluster as its target.
    """

    table: ItemTable
    queries: EvaluationQueries


def make_catalogue(items: int, *, seed: int = 0, queries: int = 2_000) -> MadeCatalogue:
    """Make a catalogue in memory: 384 bytes an item for its vectors, and about 60 for the rest.

    The metadata are ``title``, ``category`` (20 values), ``brand`` (1,000 values), ``price``, ``in_stock`` and
    ``serial``, the row number, so that a range over it allows any share of the items.

    Args:
        items: rows, at least 1.
        seed: of everything.
        queries: number of evaluation queries.
    """
    rng = np.random.default_rng(seed)
    clusters = max(16, items // _ITEMS_PER_CLUSTER)
    members = rng.integers(0, clusters, items)
    table = ItemTable(
        layout=LAYOUT,
        ids=ItemIds(pc.binary_join_element_wise("item-", _text(np.arange(items)), "").to_pylist()),
        vectors=_vectors(members, clusters, rng),
        popularity=np.minimum(rng.zipf(1.4, items), 1_000_000).astype(np.int64),
        metadata=_metadata(items, rng),
        model={"kind": "made", "items": items, "seed": seed, "intrinsic_dim": INTRINSIC_DIM},
    )
    return MadeCatalogue(table, _queries(members, clusters, queries, rng))


def made_lists(items: int, neighbours: int, *, seed: int = 0) -> ItemLists:
    """The three item-to-item lists with a full number of neighbours, spread over the whole catalogue.

    Args:
        items: rows of the catalogue.
        neighbours: entries of every item in every list, fewer than ``items``.
        seed: of the choice.
    """
    rng = np.random.default_rng((seed, 3))
    similarities = np.tile(np.linspace(0.9, 0.1, neighbours, dtype=np.float16), items)
    offsets = np.arange(items + 1, dtype=np.int64) * neighbours
    lists = []
    for name in LIST_SLOTS:
        rows = np.empty((items, neighbours), dtype=np.int32)
        for start in range(0, items, _BLOCK_ROWS):
            own = np.arange(start, min(start + _BLOCK_ROWS, items))[:, None]
            # One set of distances for a block, each item from a place of its own: all different, never the item itself.
            shift = rng.integers(1, items, len(own))[:, None]
            distances = rng.choice(items - 1, neighbours, replace=False)[None]
            rows[start : start + len(own)] = (own + 1 + (shift + distances) % (items - 1)) % items
        lists.append(ItemList(name, offsets, rows.ravel(), similarities))
    recency = np.power(np.float32(0.8), np.arange(HISTORY)).astype(np.float32)
    return ItemLists(items, tuple(lists), ListWeights(recency, dict(zip(LIST_SLOTS, (0.6, 0.2, 0.1), strict=True))))


def saved_catalogue(directory: Path, items: int, *, seed: int = 0) -> MadeCatalogue:
    """Load the catalogue from a directory; make and save it first if it is missing or differs."""
    queries = directory / "probes.npz"
    if (directory / "table.json").is_file():
        table = ItemTable.load(directory)
        if (len(table), table.model.get("seed")) == (items, seed) and queries.is_file():
            return MadeCatalogue(table, EvaluationQueries.load(queries))
    made = make_catalogue(items, seed=seed)
    directory.mkdir(parents=True, exist_ok=True)
    made.queries.save(queries)
    made.table.save(directory)
    return MadeCatalogue(ItemTable.load(directory), made.queries)


def made_vectors(rows: int, seed: int = 0) -> NDArray[np.float16]:
    """(rows, 192) float16 stored vectors, without the rest of a catalogue."""
    rng = np.random.default_rng(seed)
    clusters = max(16, rows // _ITEMS_PER_CLUSTER)
    return _vectors(rng.integers(0, clusters, rows), clusters, rng)


def made_histories(vectors: NDArray[np.floating], count: int, length: int = 10, seed: int = 0) -> NDArray[np.int64]:
    """(count, length) int64 rows: a random item and its most similar ones among 2,000 others.

    Args:
        vectors: (n, Σd) stored vectors, n ≥ ``length``.
        count: histories wanted.
        length: items of each.
        seed: of the choice.
    """
    rng = np.random.default_rng((seed, 1))
    histories = np.empty((count, length), dtype=np.int64)
    for row in histories:
        pool = rng.choice(len(vectors), min(2000, len(vectors)), replace=False)
        near = np.asarray(vectors[pool], np.float32) @ np.asarray(vectors[pool[0]], np.float32)
        row[:] = pool[np.argsort(-near, kind="stable")[:length]]
    return histories


def _vectors(members: NDArray[np.int64], clusters: int, rng: np.random.Generator) -> NDArray[np.float16]:
    """(n, 192) stored vectors, made block by block."""
    centres = rng.standard_normal((clusters, INTRINSIC_DIM), dtype=np.float32)
    maps = {
        slot.name: rng.standard_normal((INTRINSIC_DIM, slot.dim), dtype=np.float32) / np.sqrt(INTRINSIC_DIM)
        for slot in LAYOUT.slots
    }
    lost = {"text": _NOTHING, "image": _NO_PICTURE, "behaviour": _COLD}
    vectors = np.empty((members.shape[0], LAYOUT.dim), dtype=np.float16)
    for start in range(0, members.shape[0], _BLOCK_ROWS):
        cluster = members[start : start + _BLOCK_ROWS]
        points = centres[cluster] + _SPREAD * rng.standard_normal((len(cluster), INTRINSIC_DIM), dtype=np.float32)
        nothing = rng.random(len(cluster)) < _NOTHING
        slots = {}
        for name, shown in maps.items():
            block = points @ shown
            block += _NOISE * rng.standard_normal(block.shape, dtype=np.float32)
            block[nothing | (rng.random(len(cluster)) < lost[name])] = 0
            slots[name] = block
        vectors[start : start + len(cluster)] = LAYOUT.stack(slots)
    return vectors


def another_night(table: ItemTable, night: int) -> ItemTable:
    """A catalogue after another training: every present component of its vectors is moved a little.

    Args:
        table: with slots as :data:`LAYOUT`.
        night: seed of the training.
    """
    rng = np.random.default_rng(night)
    moved = np.asarray(table.vectors, np.float32)
    moved += _NIGHT * rng.standard_normal(moved.shape, dtype=np.float32) * (moved != 0)
    blocks = {name: moved[:, LAYOUT.slice(name)] for name in LAYOUT.names}
    return replace(table, vectors=LAYOUT.stack(blocks).astype(np.float16))


def _metadata(items: int, rng: np.random.Generator) -> pa.Table:
    serial = np.arange(items)
    brand = rng.integers(0, 1_000, items)
    title = pc.binary_join_element_wise(
        pa.array(_COLOURS).take(pa.array(rng.integers(0, len(_COLOURS), items))),
        pa.array(_THINGS).take(pa.array(rng.integers(0, len(_THINGS), items))),
        _text(serial),
        " ",
    )
    return pa.table(
        {
            "title": title,
            "category": pc.binary_join_element_wise("category", _text(rng.integers(0, 20, items)), " "),
            "brand": pc.binary_join_element_wise("brand", _text(brand), " "),
            "price": np.round(rng.lognormal(3, 1, items), 2),
            "in_stock": pa.array(rng.random(items) < 0.9),
            "serial": serial,
        }
    )


def _text(numbers: NDArray[np.int64]) -> pa.Array:
    return pa.array(numbers).cast(pa.string())


def _queries(members: NDArray[np.int64], clusters: int, count: int, rng: np.random.Generator) -> EvaluationQueries:
    """Histories of 1 … 10 items of one cluster, drawn with repetition, and a target of the same cluster."""
    order = np.argsort(members, kind="stable")
    starts = np.searchsorted(members[order], np.arange(clusters + 1))
    filled = np.flatnonzero(np.diff(starts) > 0)
    histories = np.full((count, HISTORY), -1, dtype=np.int64)
    targets = np.empty(count, dtype=np.int64)
    for query in range(count):
        cluster = rng.choice(filled)
        own = order[starts[cluster] : starts[cluster + 1]]
        length = int(rng.integers(1, HISTORY + 1))
        histories[query, :length] = rng.choice(own, length)
        targets[query] = rng.choice(own)
    return EvaluationQueries(histories, targets)
