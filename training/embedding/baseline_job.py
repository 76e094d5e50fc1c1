"""Embeds a catalogue without a vision-language model into a run, once for the same texts and pictures."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from training.backbones.identity import KIND, MODEL_DIRECTORY
from training.backbones.trained_model import EMBEDDINGS_DIRECTORY, TRAINING_DIRECTORY
from training.data.dataset import Dataset
from training.embedding.baseline_features import embed_without_vlm, settings_hash
from training.embedding.store import EMBEDDINGS_FILE, Embeddings
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
        EmbeddingsError: no item has a text or a readable picture; or, unless they are made again, those in the run
            cannot be read.
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


def refuse_vlm_embeddings(run: Path) -> None:
    """Refuse a run whose embeddings a vision-language model made, or is to make: hours of work would be replaced.

    Args:
        run: the run directory.

    Raises:
        EmbeddingsError: they are of such a model, or they cannot be read, or there are none and the run has a model.
    """
    directory = run / EMBEDDINGS_DIRECTORY
    found = existing_embeddings(directory)
    if found is None and has_trained_model(run):
        raise EmbeddingsError(
            f"{run}: has a trained model and no embeddings, and `vlm2rec fit` embeds without one; run `vlm2rec embed` "
            "and `vlm2rec fit-encoder` to use it, or name another --run"
        )
    if found is not None and found.model.get("kind") == KIND:
        raise EmbeddingsError(
            f"{directory}: made by a vision-language model, and `vlm2rec fit` embeds without one; run `vlm2rec "
            "fit-encoder` to use them, or name another --run"
        )


def has_trained_model(run: Path) -> bool:
    """Whether a run has a trained vision-language model.

    Args:
        run: the run directory.
    """
    return (run / TRAINING_DIRECTORY / MODEL_DIRECTORY).is_dir()


def existing_embeddings(directory: Path) -> Embeddings | None:
    """The embeddings of a run; None if there are none.

    Args:
        directory: ``RUN/embeddings``.

    Raises:
        EmbeddingsError: there are some, and they cannot be read; whether a model made them is then not known.
    """
    if not (directory / EMBEDDINGS_FILE).exists():
        return None
    try:
        return Embeddings.load(directory, check=False)
    except EmbeddingsError as error:
        raise EmbeddingsError(
            f"{error}. Restore the files, or make them again: `vlm2rec embed` with the model of the run, `vlm2rec "
            "embed --no-vlm` without one"
        ) from error


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
