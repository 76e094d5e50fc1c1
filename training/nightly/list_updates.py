"""Updates the item-to-item lists of a run for a changed catalogue."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.bundle.integrity import sync_directory, sync_file
from index.errors import IndexingError
from index.items.item_ids import ItemIds
from index.items.slots import IMAGE
from index.lists.item_lists import CO, WORDS, ItemList, ItemLists
from training.data.dataset import Dataset
from training.embedding.store import Embeddings
from training.encoder.loaded import FittedEncoder
from training.lists.build import look_list, words_list

_KEPT = re.compile(r"lists-[0-9a-f]{16}")
_PARTIAL = ".lists.part"
_BLOCK_ITEMS = 16_384

Progress = Callable[[str, int, int], None]
"""Called with the step, what is done and how much there is."""


def current_lists(
    directory: Path, mark: str, dataset: Dataset, embeddings: Path, fitted: FittedEncoder, progress: Progress
) -> ItemLists | None:
    """The lists of the current catalogue, those of an earlier job with the same inputs if there are any.

    Args:
        directory: ``RUN/reindex``; the lists of other inputs are removed from it.
        mark: 16 hex digits over everything that the lists depend on.
        dataset: the catalogue.
        embeddings: ``RUN/embeddings`` of the same catalogue.
        fitted: the encoder; without lists that are used the result is None.
        progress: called often.
    """
    if fitted.lists is None:
        remove_lists(directory, keep=mark)
        return None
    kept = _kept_lists(directory, mark, len(dataset))
    if kept is None:
        kept = updated_lists(fitted.lists, dataset, Embeddings.load(embeddings, check=False), fitted, progress)
        _keep_lists(directory, mark, kept)
    remove_lists(directory, keep=mark)  # also where a job was killed after it had written them
    return kept


def updated_lists(
    lists: ItemLists, dataset: Dataset, embeddings: Embeddings, fitted: FittedEncoder, progress: Progress
) -> ItemLists:
    """Make the lists of a changed catalogue, with the weights of the fitted ones.

    ``words`` and ``look`` are made again over the whole catalogue, so a new item has lists of its own, enters those of
    other items, and the result does not depend on the nights before. ``co`` is that of the fit: a new item has none,
    and a deleted one is left out.

    Args:
        lists: those of the fitted encoder that are used.
        dataset: the catalogue.
        embeddings: of the same catalogue.
        fitted: the encoder, with the items that it was fitted on.
        progress: called often.
    """
    neighbours, items = fitted.config.neighbours(len(fitted.table)), len(embeddings)
    made = []
    for item_list in lists.lists:
        counted = _counted(progress, f"list {item_list.name}", items)
        if item_list.name == CO:
            made.append(remap_list(item_list, fitted.table.ids, ItemIds(embeddings.item_ids), progress=counted))
        elif item_list.name == WORDS:
            made.append(words_list(dataset.texts(), neighbours, progress=counted))
        else:
            made.append(look_list(embeddings.vectors[IMAGE], neighbours, progress=counted))
    return ItemLists(items, tuple(made), lists.weights)


def remap_list(
    item_list: ItemList, before: ItemIds, now: ItemIds, *, progress: Callable[[int], None] = lambda _items: None
) -> ItemList:
    """Translate a list to the rows of another catalogue.

    Entries of deleted items are removed; new items have no entries.

    Args:
        item_list: of the catalogue ``before``.
        before: ids of the list's items.
        now: ids of the new catalogue.
        progress: called with the number of items that are done.
    """
    was = _rows_in(before, now)
    moved = _rows_in(now, before)
    counts: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
    rows: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
    similarities: list[NDArray[np.float16]] = [np.zeros(0, np.float16)]
    for first in range(0, len(was), _BLOCK_ITEMS):
        sources = was[first : first + _BLOCK_ITEMS]
        starts = np.where(sources >= 0, item_list.offsets[sources], 0)
        lengths = np.where(sources >= 0, item_list.offsets[sources + 1], 0) - starts
        ends = np.cumsum(lengths)
        entries = np.arange(int(ends[-1])) + np.repeat(starts - (ends - lengths), lengths)
        targets = moved[item_list.rows[entries]]
        left = targets >= 0
        owners = np.repeat(np.arange(len(sources)), lengths)[left]
        counts.append(np.bincount(owners, minlength=len(sources)))
        rows.append(targets[left].astype(np.int32))
        similarities.append(item_list.similarities[entries[left]])
        progress(first + len(sources))
    offsets = np.cumsum(np.concatenate(counts), dtype=np.int64)
    return ItemList(item_list.name, offsets, np.concatenate(rows), np.concatenate(similarities))


def _rows_in(catalogue: ItemIds, ids: ItemIds) -> NDArray[np.int64]:
    """For each id its row in a catalogue, −1 where it is not there."""
    rows = (catalogue.row(ids.id(row)) for row in range(len(ids)))
    return np.array([-1 if row is None else row for row in rows], dtype=np.int64)


def _kept_lists(directory: Path, mark: str, items: int) -> ItemLists | None:
    """The lists that an earlier job made of the same inputs; None if there are none or they are damaged."""
    try:
        return ItemLists.load(directory / f"lists-{mark}", items)
    except IndexingError:
        return None


def _keep_lists(directory: Path, mark: str, lists: ItemLists) -> None:
    """Write lists durably, in one step."""
    final, partial = directory / f"lists-{mark}", directory / _PARTIAL
    for path in (final, partial):
        shutil.rmtree(path, ignore_errors=True)
    lists.save(partial)
    for path in partial.iterdir():
        sync_file(path)
    sync_directory(partial)
    partial.rename(final)
    sync_directory(directory)


def remove_lists(directory: Path, *, keep: str) -> None:
    """Remove all lists except those of one mark, and incomplete ones of a killed job."""
    shutil.rmtree(directory / _PARTIAL, ignore_errors=True)
    for path in directory.glob("lists-*"):
        if _KEPT.fullmatch(path.name) and path.name != f"lists-{keep}":
            shutil.rmtree(path, ignore_errors=True)


def _counted(progress: Progress, step: str, every: int) -> Callable[[int], None]:
    """A callback that takes only what is done of one step."""
    return lambda done: progress(step, done, every)
