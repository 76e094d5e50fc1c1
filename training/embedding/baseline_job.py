"""Embeds a catalogue without a vision-language model into a run, once for the same texts and pictures."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from training.backbones.identity import KIND
from training.data.dataset import Dataset
from training.embedding.baseline_features import embed_without_vlm, settings_hash
from training.embedding.store import Embeddings
from training.errors import EmbeddingsError

_INPUTS = "inputs"


def baseline_embeddings(
    dataset: Dataset, directory: Path, *, again: bool, progress: Progress | None = None
) -> tuple[Embeddings, bool]:
    """Features of ``--no-vlm``, written into the run.

    Args:
        dataset: the catalogue.
        directory: ``RUN/embeddings``.
        again: make them also if those in the run are of the same texts, picture files and settings.
        progress: a running progress display to add a bar to.

    Returns:
        The embeddings, and whether they were made now.

    Raises:
        EmbeddingsError: no item has a text or a readable picture.
    """
    inputs = _inputs(dataset)
    if not again:
        found = existing_embeddings(directory)
        if found is not None and found.model.get("hash") == settings_hash() and found.model.get(_INPUTS) == inputs:
            return found, False
    made = embed_without_vlm(dataset, progress=progress)
    made = replace(made, model=made.model | {_INPUTS: inputs})
    made.save(directory)
    return made, True


def refuse_vlm_embeddings(directory: Path) -> None:
    """Refuse a run whose embeddings a vision-language model made: hours of work would be replaced.

    Args:
        directory: ``RUN/embeddings``.

    Raises:
        EmbeddingsError: they are of such a model.
    """
    found = existing_embeddings(directory)
    if found is not None and found.model.get("kind") == KIND:
        raise EmbeddingsError(
            f"{directory}: made by a vision-language model, and `vlm2rec fit` embeds without one; run `vlm2rec "
            "fit-encoder` to use them, or name another --run"
        )


def existing_embeddings(directory: Path) -> Embeddings | None:
    """The embeddings of a run; None if there are none that can be read.

    Args:
        directory: ``RUN/embeddings``.
    """
    try:
        return Embeddings.load(directory, check=False)
    except EmbeddingsError:
        return None


def _inputs(dataset: Dataset) -> str:
    """16 hex digits over ids, texts, and path, size and time of every picture file."""
    digest = hashlib.sha256()
    for row, (item_id, text) in enumerate(zip(dataset.item_ids(), dataset.texts(), strict=True)):
        path = dataset.image_path(row)
        picture: tuple[object, ...] = ()
        if path is not None:
            try:
                status = path.stat()
                picture = (str(path), status.st_size, status.st_mtime_ns)
            except OSError:
                picture = (str(path),)
        digest.update(json.dumps([item_id, text, *picture]).encode())
    return digest.hexdigest()[:16]
