"""Embedding a catalogue with a trained vision-language model, in shards that survive a kill."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.batches import MODALITIES, Collator, PromptBatch, spread
from training.dataset import Dataset
from training.embeddings import Embeddings
from training.errors import EmbeddingsError
from training.pictures import PictureStore
from training.trainer import write_unreadable
from training.vlm import Embedding

_SHARDS = "shards"
_CHUNK_TOKENS = 32_768
Vectors = dict[str, NDArray[np.float32]]
"""Modality → (n, D) float32, rows of length 1; a row of zeros where the modality is absent."""


class CatalogueEncoder:
    """Encodes items and histories of one catalogue.

    Args:
        embedding: a trained embedder; it is moved to the GPU if there is one, and set to evaluation.
        dataset: the catalogue.
        picture_bytes: memory for preprocessed pictures; 0 keeps none.

    Attributes:
        pictures: the catalogue's pictures as they were read so far.
    """

    def __init__(self, embedding: Embedding, dataset: Dataset, *, picture_bytes: int = 0) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._embedder = embedding.embedder.to(self._device).eval()
        self.pictures = PictureStore(dataset.image_path, embedding.backbone.image_processor, memory_bytes=picture_bytes)
        self._collator = Collator(
            embedding.backbone.tokenizer,
            dataset.texts(),
            self.pictures,
            max_text_tokens=embedding.max_text_tokens,
            max_history=embedding.max_history,
            chunk_tokens=_CHUNK_TOKENS,
        )

    def items(self, rows: NDArray[np.int64]) -> Vectors:
        """Vectors of items.

        Args:
            rows: (n,) int64 item rows.

        Raises:
            EmbeddingsError: the model gives a value that is not finite.
        """
        return self._encode(*self._collator.items(rows))

    def sequences(self, histories: Sequence[NDArray[np.int64]]) -> Vectors:
        """Vectors of histories, for ranking items directly.

        Args:
            histories: item rows, oldest first, at least one each; the newest are read.

        Raises:
            EmbeddingsError: the model gives a value that is not finite.
        """
        return self._encode(*self._collator.sequences(histories))

    @torch.inference_mode()
    def _encode(self, prompts: PromptBatch, places: dict[str, Tensor]) -> Vectors:
        outputs = self._embedder(prompts.to(self._device)).cpu()
        if not torch.isfinite(outputs).all():
            raise EmbeddingsError("the model gives values that are not finite; train it again with a lower rate")
        return {name: spread(outputs, found).numpy() for name, found in places.items()}


def embed_catalogue(
    dataset: Dataset,
    embedding: Embedding,
    directory: Path,
    *,
    shard_items: int,
    batch_items: int,
    report: Callable[[int], None] = lambda _: None,
) -> Embeddings:
    """Embed every item and write the result.

    Items are taken in the order of their ids, in shards of fixed size; a shard is written aside and renamed, and one
    that is there already for the same model and the same texts and pictures is not made again. They are removed once
    the whole is written.

    Args:
        dataset: the catalogue.
        embedding: a trained embedder.
        directory: where the embeddings go.
        shard_items: items of a shard.
        batch_items: items encoded at a time.
        report: called with the number of items done.

    Returns:
        Embeddings in the catalogue's order.

    Raises:
        EmbeddingsError: no item has a text or a readable picture, or the model gives a value that is not finite.
    """
    ids, texts = dataset.item_ids(), dataset.texts()
    order = np.array(sorted(range(len(ids)), key=lambda row: ids[row]), dtype=np.int64)
    shards = [order[start : start + shard_items] for start in range(0, len(order), shard_items)]
    marks = [_fingerprint(dataset, ids, texts, rows, embedding.model) for rows in shards]
    model = {**embedding.model, "inputs": hashlib.sha256("".join(marks).encode()).hexdigest()[:16]}
    finished = _finished(directory, model)
    if finished is not None:
        report(len(ids))
        return finished
    encoder = CatalogueEncoder(embedding, dataset)
    vectors = {name: np.zeros((len(ids), embedding.embedder.dim), dtype=np.float32) for name in MODALITIES}
    done = 0
    for number, (rows, mark) in enumerate(zip(shards, marks, strict=True)):
        path = directory / _SHARDS / f"{number:06d}.npz"
        made = _read_shard(path, mark)
        if made is None:
            made = _encode_shard(encoder, rows, batch_items, done, report)
            _write_shard(path, made, mark)
        for name, block in made.items():
            vectors[name][rows] = block
        done += len(rows)
        report(done)
    if not any(block.any() for block in vectors.values()):
        raise EmbeddingsError(f"none of the {len(ids)} items has a text or a readable picture; nothing can be embedded")
    embeddings = Embeddings(ids, vectors, model)
    embeddings.save(directory)
    write_unreadable(directory, dataset, encoder.pictures)
    shutil.rmtree(directory / _SHARDS, ignore_errors=True)
    return embeddings


def _encode_shard(
    encoder: CatalogueEncoder, rows: NDArray[np.int64], batch_items: int, done: int, report: Callable[[int], None]
) -> Vectors:
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in MODALITIES}
    for start in range(0, len(rows), batch_items):
        batch = rows[start : start + batch_items]
        for name, block in encoder.items(batch).items():
            parts[name].append(block)
        report(done + start + len(batch))
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def _write_shard(path: Path, vectors: Vectors, mark: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    with aside.open("wb") as file:
        np.savez(file, allow_pickle=False, mark=np.array(mark), **vectors)
    aside.replace(path)


def _read_shard(path: Path, mark: str) -> Vectors | None:
    """A shard that was made of the same inputs; None if there is none, or it is damaged."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["mark"]) != mark:
                return None
            return {name: stored[name] for name in MODALITIES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _finished(directory: Path, model: dict[str, Any]) -> Embeddings | None:
    """What an earlier call wrote from the same model and inputs."""
    try:
        found = Embeddings.load(directory)
    except EmbeddingsError:
        return None
    return found if found.model == model else None


def _fingerprint(
    dataset: Dataset, ids: Sequence[str], texts: Sequence[str | None], rows: NDArray[np.int64], model: dict[str, Any]
) -> str:
    """16 hex digits over the model and the inputs of these rows; a picture counts by size and time of change."""
    digest = hashlib.sha256(json.dumps(model, sort_keys=True).encode())
    for row in rows.tolist():
        path = dataset.image_path(row)
        stamp = None if path is None else (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        digest.update(json.dumps([ids[row], texts[row], stamp]).encode())
    return digest.hexdigest()[:16]
