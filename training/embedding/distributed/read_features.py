"""Finds the stored vectors of a frozen encoder that workers read for a plan, so that no others are sent to them."""

import shutil
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.backbones.identity import MODEL_DIRECTORY, differences
from training.backbones.items.trained_heads import HeadsDescription
from training.backbones.trained_model import FEATURES_DIRECTORY, TRAINING_DIRECTORY
from training.config.run_config import load_run_config
from training.embedding.content_hashes import ContentHashes
from training.embedding.plan import EmbeddingPlan
from training.embedding.store import Embeddings, EmbeddingsDraft
from training.embedding.unused_vectors import CONTENT_OF
from training.errors import EmbeddingsError

_BLOCK_ROWS: Final = 8_192


def features_read(run: Path, plan: EmbeddingPlan) -> Path | None:
    """The stored vectors that the encoding of a plan reads.

    Args:
        run: the run directory.
        plan: of the items to encode.

    Returns:
        A directory of :class:`Embeddings`: that of the run if every vector is read, else a copy of the rows and slots
        that are, in the plan's directory, with the same bytes for the same plan. None if nothing is read: the model
        reads no such vectors, its adapters were trained, or no text and no picture of the plan is among them.

    Raises:
        BackboneError: the description of the model cannot be read.
        ConfigError: the configuration of the run cannot be read.
        OSError: the copy cannot be written.
    """
    training = run / TRAINING_DIRECTORY
    if not load_run_config(run).vlm.encodes_items:
        return None
    described = HeadsDescription.read(training / MODEL_DIRECTORY)
    try:
        found = Embeddings.load(training / FEATURES_DIRECTORY, check=False)
    except EmbeddingsError:
        return None
    contents, slots = found.contents, [name for name in found.vectors if name not in described.trained]
    if contents is None or differences(found.model, described.source.provenance()):
        return None
    read, present = np.zeros(len(found), dtype=np.bool_), np.zeros(len(found), dtype=np.bool_)
    for name, column in CONTENT_OF.items():
        hashes = contents.frame[column]
        present |= hashes.is_not_null().to_numpy()
        if name in slots:
            read |= hashes.is_in(plan.plan[column].implode()).fill_null(value=False).to_numpy()
    if not read.any():
        return None
    if (read | ~present).all() and len(slots) == len(found.vectors):
        return training / FEATURES_DIRECTORY
    return _copy(found, contents, read, slots, plan.directory / FEATURES_DIRECTORY)


def _copy(
    found: Embeddings, contents: ContentHashes, read: NDArray[np.bool_], slots: list[str], directory: Path
) -> Path:
    """Write some rows and slots as embeddings of their own; an earlier copy is replaced."""
    shutil.rmtree(directory, ignore_errors=True)
    rows, kept = np.flatnonzero(read), ContentHashes(contents.frame.filter(pl.Series(read)))
    ids = kept.item_ids()
    dims = {name: size for name, size in found.dims().items() if name in slots}
    with EmbeddingsDraft.open(directory, len(rows), dims) as draft:
        for name, block in draft.vectors.items():
            for start in range(0, len(rows), _BLOCK_ROWS):
                block[start : start + _BLOCK_ROWS] = found.vectors[name][rows[start : start + _BLOCK_ROWS]]
        unreadable = {item_id: found.unreadable[item_id] for item_id in ids if item_id in found.unreadable}
        draft.commit(ids, found.model, unreadable, kept)
    return directory
