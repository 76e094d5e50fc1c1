"""Embeds the new and changed items of a catalogue with a trained vision-language model, shard by shard.

The hashes of each item's text and picture (`training.embedding.content_hashes`) are compared with those of the current
embeddings. Items that differ are embedded in shards (`training.embedding.plan`). Then a new set of embeddings is
assembled, with the rows of unchanged items copied byte for byte, and replaces the current set in one step. A change of
model, prompts or preprocessing embeds every item again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.bundle.integrity import write_durably
from index.items.item_table import ITEM_ID
from training.backbones.identity import LICENCES, differences
from training.config.types import MODALITIES
from training.data.dataset import Dataset
from training.data.tables.row_lookup import RowLookup
from training.embedding.catalogue_encoder import RowEncoder, Vectors, catalogue_encoder
from training.embedding.content_hashes import PICTURE_HASH, ContentHashes, Delta, read_contents
from training.embedding.content_reuse import KnownVectors, Reuse
from training.embedding.plan import EmbeddingPlan, remove_work
from training.embedding.shards import Shard
from training.embedding.store import (
    EMBEDDINGS_FILE,
    UNREADABLE_FILE,
    Embeddings,
    EmbeddingsDraft,
    load_unused,
    remove_old_files,
    replace_items,
)
from training.errors import EmbeddingsError, JobStopped

if TYPE_CHECKING:
    from training.backbones.items.trained_heads import ItemEmbedding
    from training.backbones.vlm import Embedding

_BLOCK_ROWS = 8_192
Finished = Callable[[int], None]
"""Called with the number of each finished shard."""

EncodeShards = Callable[[EmbeddingPlan, Sequence[int], Finished, Callable[[], bool]], None]
"""Makes missing shards of a plan elsewhere; the last argument says whether to stop, which raises JobStopped."""

Progress = Callable[[str, int, int], None]
"""Called with the name of a step and the numbers of its finished and of all pieces."""


@dataclass(frozen=True)
class Pending:
    """The items that must be embedded.

    Attributes:
        contents: hashes of the catalogue's items.
        base: the current embeddings whose rows can be kept; None if there are none.
        delta: the difference between the catalogue and the one that was embedded last.
        wanted: (n,) bool, items to embed: those that differ and are not reused, or all items without a base.
        reuse: changed items whose vectors are known by content; None without a base.
        reason: why every item is embedded again; None if that is not the case.
        model: provenance of the model.
    """

    contents: ContentHashes
    base: Embeddings | None
    delta: Delta
    wanted: NDArray[np.bool_]
    reuse: Reuse | None
    reason: str | None
    model: dict[str, Any]

    @property
    def reused(self) -> int:
        """Number of changed items that need no embedding."""
        return 0 if self.reuse is None else len(self.reuse.rows)

    def unreadable_before(self) -> dict[str, str]:
        """Item id → reason, for unchanged pictures that could not be used when they were embedded."""
        if self.base is None or self.base.contents is None:
            return {}
        then = self.base.contents.frame.select(ITEM_ID, PICTURE_HASH)
        same = self.contents.frame.join(then, on=[ITEM_ID, PICTURE_HASH])[ITEM_ID]
        return {item_id: self.base.unreadable[item_id] for item_id in same if item_id in self.base.unreadable}

    def lookup(self) -> RowLookup:
        """Rows of the items to embed."""
        return RowLookup(self.contents.frame[ITEM_ID], None if self.wanted.all() else self.wanted)

    def wanted_contents(self) -> ContentHashes:
        """Hashes of the items to embed."""
        if self.wanted.all():
            return self.contents
        return ContentHashes(self.contents.frame.filter(pl.Series(self.wanted)))


@dataclass(frozen=True)
class Embedded:
    """The result of an embedding call.

    Attributes:
        embeddings: of the whole catalogue, in its order.
        encoded: number of items that the model encoded in this call.
        resumed: number of items that an interrupted call had encoded.
    """

    embeddings: Embeddings
    encoded: int
    resumed: int


def pending_items(
    dataset: Dataset,
    model: Mapping[str, Any],
    directory: Path,
    *,
    trust_times: bool = False,
    progress: Progress = lambda _step, _done, _all: None,
) -> Pending:
    """Compare a catalogue with the current embeddings; reads only.

    Args:
        dataset: the catalogue.
        model: provenance of the model, see :func:`training.backbones.identity.provenance`.
        directory: of the embeddings.
        trust_times: assume that a picture of the same path, size and modification time is unchanged.
        progress: called while pictures are hashed; an error that it raises ends the work.
    """
    found, reason = None, None
    if (directory / EMBEDDINGS_FILE).is_file():
        try:
            found = Embeddings.load(directory, check=False)
            reason = _reason_to_embed_all(found, model)
        except EmbeddingsError as error:
            reason = str(error)
    earlier = found.contents if found is not None else None
    contents = read_contents(
        dataset,
        trusted=earlier if trust_times else None,
        progress=lambda done, every: progress("hashing pictures", done, every),
    )
    delta = contents.against(earlier)
    base = found if reason is None else None
    wanted, reuse = np.ones(len(contents), dtype=np.bool_), None
    if base is not None and earlier is not None:
        wanted = ~delta.same
        known = KnownVectors(base, earlier, load_unused(directory))
        reuse = Reuse.find(known, contents, np.flatnonzero(wanted))
        wanted[reuse.rows] = False
    return Pending(contents, base, delta, wanted, reuse, reason, dict(model))


def embed_catalogue(
    dataset: Dataset,
    pending: Pending,
    load: Callable[[], "Embedding | ItemEmbedding"],
    directory: Path,
    *,
    shard_items: int,
    batch_items: int,
    progress: Progress = lambda _step, _done, _all: None,
    stopped: Callable[[], bool] = lambda: False,
    encode_shards: EncodeShards | None = None,
) -> Embedded:
    """Bring the embeddings of a catalogue up to date.

    The next call resumes an interrupted one. If nothing differs, no model is loaded and nothing is written.

    Args:
        dataset: the catalogue.
        pending: the result of :func:`pending_items` for it.
        load: returns the trained embedder; called only if an item must be embedded.
        directory: of the embeddings.
        shard_items: items of a shard, the unit that survives an interruption.
        batch_items: items encoded at a time.
        progress: called with the progress of each step; an error that it raises ends the work like a kill.
        stopped: called before the first shard and after every shard; true stops the work.
        encode_shards: makes the missing shards instead of this process; ``load`` is then not called.

    Raises:
        EmbeddingsError: no item has a text or a readable picture, the model gives a value that is not finite, or it is
            not the model that ``pending`` names.
        JobStopped: ``stopped`` returned true.
    """
    encoded = resumed = 0
    wanted = int(pending.wanted.sum())
    work = None
    if wanted:
        work = EmbeddingPlan.open(
            directory, pending.wanted_contents(), pending.model, shard_items=shard_items, batch_items=batch_items
        )
        encoded = _encode(dataset, load, pending, work, progress, stopped, encode_shards)
        resumed = wanted - encoded
    if work is not None or not _is_current(pending):
        _assemble(directory, pending, work, progress)
    elif pending.base is not None and not (
        _same_stamps(pending.base, pending.contents) and _same_licences(pending.base, pending.model)
    ):
        replace_items(directory, pending.base, pending.contents, licences=pending.model.get(LICENCES))
    del work  # a plan takes some 50 bytes an item
    embeddings = Embeddings.load(directory, check=False, contents=pending.contents)
    _write_unreadable(directory, embeddings.unreadable)
    remove_work(directory)
    remove_old_files(directory)
    return Embedded(embeddings, encoded, resumed)


def _reason_to_embed_all(found: Embeddings, model: Mapping[str, Any]) -> str | None:
    changed = differences(found.model, dict(model))
    if changed:
        parts = (f"{name} {found.model.get(name)!r} → {model.get(name)!r}" for name in changed)
        return f"the model that embeds has changed: {', '.join(parts)}"
    if found.contents is None:
        return "what the embeddings were made of is not recorded"
    return None


def _is_current(pending: Pending) -> bool:
    """Whether the current embeddings hold exactly the catalogue's items, unchanged and in its order."""
    delta = pending.delta
    unchanged = pending.base is not None and not delta.deleted and bool(delta.same.all())
    return unchanged and np.array_equal(delta.was, np.arange(len(delta.was)))


def _same_stamps(base: Embeddings, contents: ContentHashes) -> bool:
    return base.contents is not None and base.contents.frame.equals(contents.frame)


def _same_licences(base: Embeddings, model: Mapping[str, Any]) -> bool:
    return bool(base.model.get(LICENCES) == model.get(LICENCES))


def _encode(
    dataset: Dataset,
    load: Callable[[], "Embedding | ItemEmbedding"],
    pending: Pending,
    work: EmbeddingPlan,
    progress: Progress,
    stopped: Callable[[], bool],
    encode_shards: EncodeShards | None,
) -> int:
    """Make the missing shards; returns the number of items encoded."""
    every = int(pending.wanted.sum())
    left = [number for number in range(work.shards) if not work.has(number)]
    done = every - sum(len(work.item_ids(number)) for number in left)
    progress("embedding", done, every)
    if not left and encode_shards is None:
        return 0
    if stopped():
        raise JobStopped("stopped before the first shard; start the same command again to go on")
    if encode_shards is not None:
        _encode_elsewhere(work, left, every, progress, stopped, encode_shards)
        return every - done
    embedding = load()
    if differences(embedding.model, pending.model):
        raise EmbeddingsError("the model was replaced while its items were being compared; run the command again")
    lookup = pending.lookup()
    encoder = catalogue_encoder(embedding, dataset)
    first = done
    for number in left:
        ids = work.item_ids(number)
        rows = lookup.rows(ids)
        vectors = encode_shard(encoder, rows, work.batch_items, partial(_report_from, progress, done, every))
        unreadable = encoder.unreadable
        reasons = {ids[at]: unreadable[row] for at, row in enumerate(rows.tolist()) if row in unreadable}
        work.write(number, vectors, reasons)
        done += len(rows)
        if stopped():
            raise JobStopped(
                f"stopped with {done:,} of {every:,} items embedded; start the same command again to go on"
            )
    return done - first


def encode_shard(
    encoder: RowEncoder,
    rows: NDArray[np.int64],
    batch_items: int,
    progress: Callable[[int], None] = lambda _done: None,
) -> Vectors:
    """Encode the items of a shard in batches of fixed size, as the batching affects the last digits.

    Args:
        encoder: of the catalogue.
        rows: (n,) int64 item rows, in the order of the plan.
        batch_items: items encoded at a time.
        progress: called with the number of encoded items after each batch.

    Raises:
        EmbeddingsError: the model gives a value that is not finite.
    """
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in MODALITIES}
    for start in range(0, len(rows), batch_items):
        batch = rows[start : start + batch_items]
        for name, block in encoder.items(batch).items():
            parts[name].append(block)
        progress(start + len(batch))
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def _report_from(progress: Progress, done: int, every: int, new: int) -> None:
    progress("embedding", done + new, every)


def _encode_elsewhere(
    work: EmbeddingPlan,
    left: Sequence[int],
    every: int,
    progress: Progress,
    stopped: Callable[[], bool],
    encode_shards: EncodeShards,
) -> None:
    """Let an engine make the missing shards, and report each."""
    missing = {number: len(work.item_ids(number)) for number in left}

    def finished(number: int) -> None:
        missing.pop(number)
        progress("embedding", every - sum(missing.values()), every)

    encode_shards(work, left, finished, stopped)


def _assemble(directory: Path, pending: Pending, work: EmbeddingPlan | None, progress: Progress) -> None:
    """Write a new set of embeddings: unchanged rows from the base, the others from the shards."""
    ids, base = pending.contents.frame[ITEM_ID], pending.base
    shards = work.results() if work is not None else iter(())
    first = next(shards, None)
    dims = base.dims() if first is None and base is not None else {}
    if first is not None:
        dims = {name: int(block.shape[1]) for name, block in first.vectors.items()}
    unreadable: dict[str, str] = {}
    with EmbeddingsDraft.open(directory, len(ids), dims) as draft:
        if base is not None:
            kept = np.flatnonzero(pending.delta.same)
            for start in range(0, len(kept), _BLOCK_ROWS):
                progress("putting together", start, len(ids))
                rows = kept[start : start + _BLOCK_ROWS]
                for name, block in draft.vectors.items():
                    block[rows] = base.vectors[name][pending.delta.was[rows]]
            unreadable = {one: base.unreadable[one] for one in ids.gather(kept) if one in base.unreadable}
        _fill_reused(draft, pending.reuse)
        if first is not None:
            unreadable |= _fill_embedded(draft, pending.lookup(), chain([first], shards))
        if not any(block.any() for block in draft.vectors.values()):
            raise EmbeddingsError(
                f"none of the {len(ids)} items has a text or a readable picture; nothing can be embedded"
            )
        if pending.reuse is not None:
            known = pending.reuse.known
            draft.keep_unused(known.next_unused(pending.contents, draft.number), known.take)
        model = pending.model | {"inputs": pending.contents.digest()}
        draft.commit(ids, model, unreadable, pending.contents)


def _fill_reused(draft: EmbeddingsDraft, reuse: Reuse | None) -> None:
    """Copy the vectors that are known by content."""
    if reuse is None:
        return
    for start in range(0, len(reuse.rows), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        for name, block in draft.vectors.items():
            block[reuse.rows[part]] = reuse.known.take(name, reuse.places[name][part])


def _fill_embedded(draft: EmbeddingsDraft, lookup: RowLookup, shards: Iterable[Shard]) -> dict[str, str]:
    """Copy the vectors of shards; returns item id → reason, for pictures that could not be used."""
    unreadable: dict[str, str] = {}
    for shard in shards:
        at = lookup.rows(shard.item_ids)
        for name, block in draft.vectors.items():
            block[at] = shard.vectors[name]
        unreadable |= shard.unreadable
    return unreadable


def _write_unreadable(directory: Path, unreadable: Mapping[str, str]) -> None:
    """Write ``unreadable.json``: item id → reason."""
    text = json.dumps(dict(sorted(unreadable.items())), indent=2, ensure_ascii=False).encode() + b"\n"
    path = directory / UNREADABLE_FILE
    if not path.is_file() or path.read_bytes() != text:
        write_durably(path, text)
