"""Provides direct ranking by a run's vision-language model, trained and before training, for the evaluation."""

# Vectors of items and histories are stored under ``RUN/evaluation/vectors``, a directory per model and catalogue. An
# interrupted evaluation resumes from them, and the next evaluation reuses them.

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.backbones.identity import MODEL_DIRECTORY, ModelDescription, backbone_provenance, differences
from training.backbones.trained_model import FEATURES_DIRECTORY, TRAINING_DIRECTORY, TrainedModel
from training.data.dataset import Dataset
from training.embedding.content_hashes import ContentHashes, read_contents
from training.embedding.store import Embeddings
from training.embedding.vector_cache import Encode, VectorCache
from training.encoder.job import Split
from training.errors import EmbeddingsError
from training.evaluation.vlm_ranker import VlmRanker, distinct_histories, history_key
from training.finetune.run_directory import RunDirectory, run_fingerprint
from training.ranking.baselines import Ranker
from training.ranking.fused_scores import Vectors

if TYPE_CHECKING:
    from training.backbones.items.trained_heads import ItemEmbedding
    from training.backbones.vlm import Embedding
    from training.embedding.catalogue_encoder import RowEncoder

TRAINED = "VLM direct"
FROZEN = "frozen VLM direct"
_SHARD = 1_024
_BATCH = 256
_MIB = 2**20
VectorProgress = Callable[[str, int, int], None]
"""Called with the name of a step, and its completed and total number of pieces."""


@dataclass(frozen=True)
class DirectModel:
    """A model for direct ranking.

    Attributes:
        name: of its rows.
        provenance: everything its vectors depend on besides texts and pictures.
        max_history: newest items of a history that it reads.
        load: loads the model.
    """

    name: str
    provenance: dict[str, Any]
    max_history: int
    load: Callable[[], "Embedding | ItemEmbedding"]


def direct_models(run: TrainedModel) -> list[DirectModel]:
    """The trained model of a run, and its starting model if that still exists.

    Raises:
        BackboneError: there is no trained model, or a file cannot be read.
    """
    directory = run.run / TRAINING_DIRECTORY
    if run.config.vlm.encodes_items:
        return _models_with_heads(run, directory)
    description = ModelDescription.read(directory / MODEL_DIRECTORY)
    models = [DirectModel(TRAINED, run.provenance, description.max_history, run.load)]
    start = RunDirectory(directory).start
    if description.source is None and not start.is_dir():
        return models
    vlm = run.config.vlm.model_copy(update={"model": description.source, "revision": description.revision})
    provenance = backbone_provenance(
        start if vlm.model is None else vlm.model,
        vlm.revision,
        dtype=vlm.dtype,
        attention=vlm.attention,
        limits=(vlm.min_picture_pixels, vlm.max_picture_pixels, description.max_text_tokens),
    )

    def load() -> "Embedding":
        from training.backbones.starting_model import load_start
        from training.backbones.vlm import Embedding, VlmEmbedder

        backbone = load_start(vlm, start)
        limits = description.max_text_tokens, description.max_history
        return Embedding(VlmEmbedder(backbone.model), backbone, *limits, provenance)

    return [*models, DirectModel(FROZEN, provenance, description.max_history, load)]


def _models_with_heads(run: TrainedModel, directory: Path) -> list[DirectModel]:
    """Trained heads, and the heads before their training: the encoder's own vectors, a history their mean."""
    from training.backbones.items.trained_heads import HeadsDescription, heads_provenance, load_heads

    length = HeadsDescription.read(directory / MODEL_DIRECTORY).max_history
    start, features = RunDirectory(directory).start, directory / FEATURES_DIRECTORY
    models = [DirectModel(TRAINED, run.provenance, length, run.load)]
    if start.is_dir():
        frozen = DirectModel(FROZEN, heads_provenance(start), length, lambda: load_heads(start, features))
        models.append(frozen)
    return models


def direct_systems(
    run: TrainedModel,
    dataset: Dataset,
    histories: Iterable[NDArray[np.int64]],
    *,
    progress: VectorProgress = lambda _step, _done, _all: None,
) -> dict[str, tuple[Ranker, NDArray[np.bool_]]]:
    """Rank by the vectors of a run's models, fused and by each modality alone.

    Args:
        run: with a trained model.
        dataset: the catalogue.
        histories: all histories that will be ranked.
        progress: called as each step proceeds; an exception that it raises ends the work.

    Returns:
        Name → ranker and the (n,) items that it can return; the trained model first.

    Raises:
        BackboneError: a model cannot be read.
        EmbeddingsError: a model computes a value that is not finite.
        EvaluationError: stored vectors do not fit each other.
    """
    contents = read_contents(dataset, progress=lambda done, every: progress("hashing pictures", done, every))
    models, wanted = direct_models(run), list(histories)
    caches = {model.name: run.run / "evaluation" / "vectors" / _key(model, contents) for model in models}
    _remove_others(caches.values())
    systems: dict[str, tuple[Ranker, NDArray[np.bool_]]] = {}
    for model in models:
        encoding = _Encoding(model, dataset, run.config.train.picture_memory_mib * _MIB, caches[model.name], progress)
        items = _embedded(run, model, contents) or encoding.items()
        known = distinct_histories(wanted, model.max_history)
        read = encoding.histories(known)
        trained = run.config.train.modalities
        subsets = {model.name: trained, **{f"{model.name}, {name} only": (name,) for name in trained}}
        for name, subset in subsets.items() if len(trained) > 1 else [(model.name, trained)]:
            ranker = VlmRanker(
                {modality: items[modality] for modality in subset},
                read,
                known,
                model.max_history,
                run.config.loss.fusion,
            )
            systems[name] = (ranker, ranker.findable)
    return systems


def trained_on(run: TrainedModel, dataset: Dataset, split: Split) -> bool:
    """Whether a run's model was trained on this split by this version; if not, it may have seen the targets.

    Args:
        run: with a trained model.
        dataset: the catalogue.
        split: of it.
    """
    mark = run.run / TRAINING_DIRECTORY / "fingerprint"
    own = run_fingerprint(dataset, split.parts.train, split.parts.validation, run.config)
    return mark.is_file() and mark.read_text(encoding="utf-8").strip() == own


class _Encoding:
    """Encodes one catalogue with one model, which is loaded when first needed."""

    def __init__(
        self, model: DirectModel, dataset: Dataset, picture_bytes: int, directory: Path, progress: VectorProgress
    ) -> None:
        self._model, self._dataset, self._picture_bytes = model, dataset, picture_bytes
        self._directory, self._progress = directory, progress
        self._encoder: RowEncoder | None = None

    def items(self) -> Vectors:
        """Vectors of the whole catalogue."""
        rows = np.arange(len(self._dataset))
        return self._vectors("items", [str(row) for row in rows], lambda part: self._loaded().items(rows[part]))

    def histories(self, known: list[NDArray[np.int64]]) -> Vectors:
        """Vectors of these histories."""
        keys = [history_key(history, self._model.max_history) for history in known]
        return self._vectors("histories", keys, lambda part: self._loaded().sequences([known[n] for n in part]))

    def _vectors(self, what: str, keys: list[str], encode: Encode) -> Vectors:
        cache = VectorCache(self._directory / what, shard=_SHARD, batch=_BATCH)
        step = f"{self._model.name}: {what}"
        return cache.vectors(keys, encode, lambda done, every: self._progress(step, done, every))

    def _loaded(self) -> "RowEncoder":
        if self._encoder is None:
            from training.embedding.catalogue_encoder import catalogue_encoder

            self._encoder = catalogue_encoder(
                self._model.load(), self._dataset, picture_bytes=self._picture_bytes, keep_vectors=True
            )
        return self._encoder


def _embedded(run: TrainedModel, model: DirectModel, contents: ContentHashes) -> Vectors | None:
    """The run's embeddings, if they were made by this model from this catalogue."""
    try:
        found = Embeddings.load(run.embeddings)
    except EmbeddingsError:
        return None
    same = found.contents is not None and found.contents.ordered_digest() == contents.ordered_digest()
    return found.vectors if same and not differences(found.model, model.provenance) else None


def _key(model: DirectModel, contents: ContentHashes) -> str:
    key = json.dumps([model.provenance, model.max_history, contents.ordered_digest()], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _remove_others(kept: Iterable[Path]) -> None:
    """Remove the vectors of earlier models and catalogues."""
    wanted = set(kept)
    for directory in {path.parent for path in wanted}:
        for path in directory.glob("*") if directory.is_dir() else ():
            if path not in wanted:
                shutil.rmtree(path, ignore_errors=True)
