"""Fills the collection of a bundle, checks it, and lets it serve.

A push that was interrupted goes on: a row is written only if its digest in the collection is another one. What is
written is checked before anything changes for a service: the number of rows, the digest of each, the vectors of the
rows that a sample of queries finds, and the recall of these queries against exact search. The queries warm the
collection as well. Then the record is written, the alias is moved, and older collections that no service needs are
deleted.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from json import dumps
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from service.errors import PushRefused
from service.retrieval.milvus.client import DIGEST, MOST_ROWS, VECTOR, MilvusClient
from service.retrieval.milvus.collection_record import CollectionRecord, collection_of
from service.retrieval.milvus.expression import IS_NEW, ROW
from service.retrieval.milvus.recall import MeasuredRecall, measure
from service.retrieval.milvus.scalar_fields import ScalarField, scalar_fields

_BATCH_BYTES: Final = 8 << 20
_ROW_BYTES: Final = 1024  # of names and numbers, about
_MOST_BATCH: Final = 4096
_POLL_S: Final = 0.5

Progress = Callable[[str, float], None]
InUse = Callable[[], Collection[str] | None]
"""Asks for the ids of the bundles that services may answer from or go back to; None: that is not known."""


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How a bundle is pushed.

    Attributes:
        min_recall: the lowest recall@20 of plain queries, 0 … 1.
        sample: number of queries that recall is measured with, at least 1.
        keep: number of checked collections to keep, the new one included, at least 1; those in use come on top.
        wait_s: most seconds of each wait: for the end of a flush, for a load, for indexes and the load after them.
    """

    min_recall: float = 0.95
    sample: int = 200
    keep: int = 2
    wait_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did.

    Attributes:
        record: of the collection that may serve now.
        written: rows that were written; the others were there already.
        dropped: ids of the bundles whose collections were deleted.
        spared: ids of the bundles whose collections are beyond ``keep`` and were not deleted: they are in use, or it is
            not known which are.
        unchecked: other collections without a record: of a push that was interrupted or is going on.
    """

    record: CollectionRecord
    written: int
    dropped: tuple[str, ...]
    spared: tuple[str, ...]
    unchecked: tuple[str, ...]


def push(
    bundle: Bundle,
    client: MilvusClient,
    options: PushOptions,
    progress: Progress = lambda _stage, _share: None,
    in_use: InUse = lambda: None,
) -> Pushed:
    """Push a bundle.

    Args:
        bundle: verified in full.
        client: calls Milvus.
        options: bounds and sizes.
        progress: called with the stage and the share of it that is done.
        in_use: called when the collection may serve, before others are deleted. Where it returns None, none is deleted:
            a bundle that was pushed long ago may be the one that serves.

    Raises:
        PushRefused: what Milvus holds is not what was written, or the recall is below the bound. Nothing has changed
            for a service.
        RetrieverUnavailable: Milvus does not answer; push again to go on.
    """
    if not bundle.manifest.indexed:
        raise PushRefused(f"{bundle.id}: must have an item with a slot to be searched; it has none")
    name = collection_of(bundle.id)
    rows = BundleRows(bundle)
    client.open_records()
    record = client.record(bundle.id) if client.has(name) else None
    if record is not None and (record.content != bundle.manifest.content or not client.has_index(name)):
        record = None
    written = 0
    if record is None:
        written = _fill(client, name, rows, options.wait_s, progress)
    # A record says that the rows were checked, so nothing was written just now: pushing again would not mend them.
    remedy = "push again" if record is None else "drop it and push again"
    _check(client, name, rows, options.wait_s, progress, remedy)
    _wait_for_index(client, name, options.wait_s, progress)
    if record is None:
        progress("recall", 0.0)
        measured = measure(bundle, client, name, options.min_recall, options.sample)
        record = _record(bundle, rows, measured)
    elif record.recall < options.min_recall:
        raise PushRefused(f"{bundle.id}: recall@20 {record.recall:.4f} is below {options.min_recall}")
    record = replace(record, pushed=time.time())
    client.keep_record(record)
    client.make_current(name)
    return Pushed(record, written, *_tidied(client, bundle.id, options.keep, in_use))


class BundleRows:
    """The rows of a bundle as a collection takes them.

    Args:
        bundle: whose rows they are.

    Attributes:
        bundle: as given.
        fields: the metadata fields that filters can use.
        numbers: (r,) int64 indexed rows, ascending.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.fields: list[ScalarField] = scalar_fields(bundle.metadata)
        self.numbers: NDArray[np.int64] = np.flatnonzero(bundle.indexed)
        texts = sum(field.values.nbytes for field in self.fields) // max(len(bundle.metadata), 1)
        each = bundle.layout.dim * 4 + _ROW_BYTES + texts
        self._size = max(1, min(_MOST_BATCH, MOST_ROWS, _BATCH_BYTES // each))

    def batches(self) -> Iterator[tuple[NDArray[np.int64], float]]:
        """Row numbers, a batch at a time, ascending, and the share of all rows before them."""
        for start in range(0, self.numbers.size, self._size):
            yield self.numbers[start : start + self._size], start / self.numbers.size

    def of(self, numbers: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Rows with their digests."""
        start, stop = int(numbers[0]), int(numbers[-1]) + 1
        vectors = self.bundle.vectors(numbers)
        new = (self.bundle.popularity[numbers] == 0).tolist()
        columns = {field.column: field.of(start, stop) for field in self.fields}
        rows = []
        for place, number in enumerate(numbers.tolist()):
            scalars = {IS_NEW: new[place], **{name: values[number - start] for name, values in columns.items()}}
            digest = digest_of(vectors[place], scalars)
            rows.append({ROW: number, VECTOR: vectors[place], DIGEST: digest, **scalars})
        return rows


def digest_of(vector: NDArray[np.float32], scalars: dict[str, Any]) -> int:
    """A hash of a row as an integer of 64 bits."""
    text = dumps(scalars, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    digest = blake2b(vector.tobytes() + text, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _fill(client: MilvusClient, name: str, rows: BundleRows, wait_s: float, progress: Progress) -> int:
    """Write the rows that are not in the collection yet; how many they are."""
    fresh = not client.has(name)
    if not fresh and not client.fits(name, rows.bundle.layout.dim, rows.fields):
        client.drop(name)  # of another version of this program
        fresh = True
    if fresh:
        client.create(name, rows.bundle.layout.dim, rows.fields)
    else:
        _load(client, name, time.monotonic() + wait_s)  # to read what is there
    written = 0
    for numbers, share in rows.batches():
        progress("rows", share)
        wanted = rows.of(numbers)
        there = {} if fresh else client.digests(name, int(numbers[0]), int(numbers[-1]) + 1)
        missing = [row for row in wanted if there.get(row[ROW]) != row[DIGEST]]
        if missing:
            client.write(name, missing)
            written += len(missing)
    client.flush(name, wait_s)
    return written


def _check(client: MilvusClient, name: str, rows: BundleRows, wait_s: float, progress: Progress, remedy: str) -> None:
    """Check the number of rows and the digest of each; ``remedy``: what to do about another row.

    Raises:
        PushRefused: the collection holds other rows, or is not loaded in time.
    """
    _load(client, name, time.monotonic() + wait_s)
    count = client.count(name)
    if count != rows.numbers.size:
        raise PushRefused(f"{name} must hold {rows.numbers.size} rows, got {count}; drop it and push again")
    for numbers, share in rows.batches():
        progress("digests", share)
        there = client.digests(name, int(numbers[0]), int(numbers[-1]) + 1)
        for row in rows.of(numbers):
            if there.get(row[ROW]) != row[DIGEST]:
                raise PushRefused(f"{name} holds another row {row[ROW]} than the bundle; {remedy}")


def _wait_for_index(client: MilvusClient, name: str, wait_s: float, progress: Progress) -> None:
    """Wait until indexes are built over all rows and the collection is loaded.

    Raises:
        PushRefused: that takes too long.
    """
    until, total = time.monotonic() + wait_s, max(client.count(name) if client.is_loaded(name) else 1, 1)
    while waiting := client.rows_without_index(name):
        progress("index", max(0.0, 1.0 - waiting / total))
        _wait(until, f"{name}: indexes are not built over {waiting} rows")
    _load(client, name, until)


def _load(client: MilvusClient, name: str, until: float) -> None:
    """Load a collection unless it is loaded, and wait for it; ``until``: of the monotonic clock.

    Raises:
        PushRefused: that takes too long.
    """
    if client.is_loaded(name):
        return
    client.load(name)
    while not client.is_loaded(name):
        _wait(until, f"{name} is not loaded")


def _wait(until: float, what: str) -> None:
    if time.monotonic() > until:
        raise PushRefused(f"{what} in time; raise --wait, or see the log of Milvus, then push again")
    time.sleep(_POLL_S)


def _record(bundle: Bundle, rows: BundleRows, measured: MeasuredRecall) -> CollectionRecord:
    return CollectionRecord(
        bundle=bundle.id,
        content=bundle.manifest.content,
        rows=int(rows.numbers.size),
        dim=bundle.layout.dim,
        fields={field.name: field.column for field in rows.fields},
        ef=measured.ef,
        recall=measured.plain,
        skewed=measured.skewed,
        pushed=0.0,
    )


def _tidied(
    client: MilvusClient, newest: str, keep: int, in_use: InUse
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Delete the oldest checked collections; see `Pushed` for what is returned."""
    others = [record.bundle for record in client.records() if record.bundle != newest]
    older = others[keep - 1 :]
    needed = in_use() if older else ()
    spared = tuple(bundle_id for bundle_id in older if needed is None or bundle_id in needed)
    dropped = tuple(bundle_id for bundle_id in older if bundle_id not in spared)
    for bundle_id in dropped:
        client.drop_record(bundle_id)
        client.drop(collection_of(bundle_id))
    known = {collection_of(bundle_id) for bundle_id in (newest, *others)}
    return dropped, spared, tuple(name for name in client.collections() if name not in known)
