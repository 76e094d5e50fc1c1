"""Plans the embedding of items in shards, so that a killed run loses one shard.

The plan is a directory ``work-<hash>`` beside the embeddings; the hash covers the model and the items to embed.
``plan.parquet`` lists the items by id in shards of fixed size that are encoded in fixed batches, because the batching
affects the last digits of the vectors. A shard is written under a temporary name and renamed; an incomplete shard is
made again. So the vectors do not depend on interruptions. If the catalogue changes in between, a new plan copies the
vectors of unchanged items.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index.bundle.integrity import sync_directory, sync_file
from index.items.item_table import ITEM_ID
from training.embedding.content_hashes import PICTURE_HASH, TEXT_HASH, ContentHashes
from training.embedding.shards import Shard
from training.errors import EmbeddingsError

PLAN_FILE = "plan.parquet"
_PREFIX = "work-"
_PARTIAL = ".work-"
_EARLIER = "earlier-*.npz"
_KEY = b"vlm2rec"
_TAKEN_OVER = "taken_over"
_COLUMNS = (ITEM_ID, TEXT_HASH, PICTURE_HASH)
_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError)
_GROUP_ROWS = 2**20


@dataclass(frozen=True)
class EmbeddingPlan:
    """A plan and its finished shards.

    Attributes:
        directory: of the plan and the shards.
        plan: one row per item to embed, sorted by id: ``item_id``, ``text``, ``picture``.
        taken_over: number of items that an earlier plan had finished.
        shard_items: items of a shard.
        batch_items: items encoded at a time.
        model: provenance of the model that it was opened for.
    """

    directory: Path
    plan: pl.DataFrame
    taken_over: int
    shard_items: int
    batch_items: int
    model: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls, parent: Path, wanted: ContentHashes, model: Mapping[str, Any], *, shard_items: int, batch_items: int
    ) -> "EmbeddingPlan":
        """Resume the plan for these items, or make one.

        Args:
            parent: directory of the embeddings; made if needed.
            wanted: hashes of the items to embed.
            model: provenance of the model.
            shard_items: items of a shard; an existing plan keeps its own value.
            batch_items: items encoded at a time; an existing plan keeps its own value.
        """
        everything = wanted.frame.select(_COLUMNS).sort(ITEM_ID)
        name = f"{_PREFIX}{_hash(everything, model)}"
        found = cls._read(parent / name, everything)
        if found is None:
            found = cls._make(parent, name, everything, model, (shard_items, batch_items))
        remove_work(parent, keep=name)
        return replace(found, model=model)

    @property
    def shards(self) -> int:
        """Number of shards of the plan."""
        return -(-self.plan.height // self.shard_items)

    def item_ids(self, number: int) -> list[str]:
        """Ids of a shard, in order."""
        return self.plan[ITEM_ID].slice(number * self.shard_items, self.shard_items).to_list()

    def planned(self, number: int) -> list[tuple[str, str | None, str | None]]:
        """Ids of a shard, in order, each with the hashes of its text and picture."""
        return self.plan.select(_COLUMNS).slice(number * self.shard_items, self.shard_items).rows()

    def has(self, number: int) -> bool:
        """Whether a shard is finished and complete."""
        return self._shard(number) is not None

    def write(self, number: int, vectors: Mapping[str, NDArray[np.float32]], unreadable: Mapping[str, str]) -> None:
        """Write a shard durably, under a temporary name first."""
        shard = Shard(self.item_ids(number), dict(vectors), dict(unreadable))
        shard.save(self.directory / f"{number:06d}.npz")

    def results(self) -> Iterator[Shard]:
        """The finished shards, in order.

        Raises:
            EmbeddingsError: a shard is missing or damaged.
        """
        for path in sorted(self.directory.glob(_EARLIER)):
            shard = Shard.read(path)
            if shard is not None:
                yield shard
        for number in range(self.shards):
            shard = self._shard(number)
            if shard is None:
                raise EmbeddingsError(f"{self.directory}: shard {number} cannot be read; embed the catalogue again")
            yield shard

    def _shard(self, number: int) -> Shard | None:
        shard = Shard.read(self.directory / f"{number:06d}.npz")
        return shard if shard is not None and shard.item_ids == self.item_ids(number) else None

    @classmethod
    def _read(cls, directory: Path, everything: pl.DataFrame) -> "EmbeddingPlan | None":
        """The plan in a directory; None if it is missing or damaged."""
        written = _read_plan(directory)
        if written is None or not written.items.select(_COLUMNS).equals(everything):
            return None
        done = {
            item_id for path in directory.glob(_EARLIER) if (found := Shard.read(path)) for item_id in found.item_ids
        }
        if done != set(written.items.filter(pl.col(_TAKEN_OVER))[ITEM_ID]):
            return None
        plan = everything.filter(~written.items[_TAKEN_OVER])
        return cls(directory, plan, len(done), written.shard_items, written.batch_items)

    @classmethod
    def _make(
        cls, parent: Path, name: str, everything: pl.DataFrame, model: Mapping[str, Any], sizes: tuple[int, int]
    ) -> "EmbeddingPlan":
        partial = parent / f"{_PARTIAL}{name.removeprefix(_PREFIX)}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        done = _take_over(parent, partial, everything, model)
        items = everything.with_columns(pl.col(ITEM_ID).is_in(list(done)).alias(_TAKEN_OVER))
        settings = {"shard_items": sizes[0], "batch_items": sizes[1], "model": dict(model)}
        _write_plan(partial / PLAN_FILE, items, settings)
        sync_file(partial / PLAN_FILE)
        sync_directory(partial)
        shutil.rmtree(parent / name, ignore_errors=True)
        partial.rename(parent / name)
        sync_directory(parent)
        return cls(parent / name, everything.filter(~items[_TAKEN_OVER]), len(done), *sizes)


def remove_work(parent: Path, *, keep: str | None = None) -> None:
    """Remove all plans and shards beside the embeddings except ``keep``."""
    for path in (*parent.glob(f"{_PREFIX}*"), *parent.glob(f"{_PARTIAL}*")):
        if path.name != keep:
            shutil.rmtree(path, ignore_errors=True)


def work_done(parent: Path, wanted: ContentHashes, model: Mapping[str, Any]) -> int:
    """How many of these items an interrupted run has embedded; reads only."""
    everything = wanted.frame.select(_COLUMNS)
    return len({item_id for shard in _earlier_shards(parent, model, everything) for item_id in shard.item_ids})


def _hash(everything: pl.DataFrame, model: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(dict(model), sort_keys=True).encode())
    for row in everything.iter_rows():
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _StoredPlan:
    """The content of ``plan.parquet``."""

    items: pl.DataFrame
    model: dict[str, Any]
    shard_items: int
    batch_items: int


def _write_plan(path: Path, items: pl.DataFrame, settings: Mapping[str, Any]) -> None:
    """Write ``plan.parquet``; only the rows of one group are copied at a time."""
    schema = items.head(0).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    with pq.ParquetWriter(path, schema.with_metadata({_KEY: json.dumps(settings).encode()})) as writer:
        for part in items.iter_slices(_GROUP_ROWS):
            writer.write_table(part.to_arrow(compat_level=pl.CompatLevel.oldest()))


def _read_plan(directory: Path) -> _StoredPlan | None:
    """What a directory of work is for; None if that is missing or damaged.

    Raises:
        MemoryError: there is not enough memory, which says nothing about the file.
    """
    try:
        # Arrow waits without end for a thread that could not be started for want of memory.
        with pq.ParquetFile(directory / PLAN_FILE, pre_buffer=False) as file:
            table = file.read(use_threads=False)
        settings = json.loads(table.schema.metadata[_KEY])
        items = pl.from_arrow(table.replace_schema_metadata(None).select([*_COLUMNS, _TAKEN_OVER]))
        sizes = int(settings["shard_items"]), int(settings["batch_items"])
        if isinstance(items, pl.DataFrame) and min(sizes) >= 1:
            return _StoredPlan(items, dict(settings["model"]), *sizes)
    except pa.ArrowMemoryError:
        raise
    except (*_DAMAGED, pa.ArrowException, pl.exceptions.PolarsError):
        return None
    return None


def _take_over(parent: Path, partial: Path, everything: pl.DataFrame, model: Mapping[str, Any]) -> set[str]:
    """Copy the vectors of these items from earlier plans for this model; returns their ids."""
    done: set[str] = set()
    for number, shard in enumerate(_earlier_shards(parent, model, everything)):
        rest = shard.only({item_id for item_id in shard.item_ids if item_id not in done})
        if rest.item_ids:
            rest.save(partial / _EARLIER.replace("*", f"{number:06d}"))
            done.update(rest.item_ids)
    return done


def _earlier_shards(parent: Path, model: Mapping[str, Any], everything: pl.DataFrame) -> Iterator[Shard]:
    """Shards of the existing plans, restricted to unchanged items."""
    for directory in sorted(parent.glob(f"{_PREFIX}*")):
        written = _read_plan(directory)
        if written is None or written.model != dict(model):
            continue
        kept = written.items.join(everything, on=_COLUMNS, how="inner", nulls_equal=True)
        ids = set(kept[ITEM_ID])
        for path in sorted(directory.glob("*.npz")):
            shard = Shard.read(path)
            if shard is not None:
                yield shard.only(ids)
