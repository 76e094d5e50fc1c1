"""Puts together what a run trains, for each family of models: the model, its batches, and how it is stored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from index.items.slots import TEXT
from training.backbones.batches import Collator
from training.backbones.gradient_cache import Embedder
from training.backbones.items.adapted_towers import AdaptedTowers, dual_encoder
from training.backbones.items.feature_batches import FeatureCollator
from training.backbones.items.heads import ModalityHeads
from training.backbones.items.last_layers import last_text_layers
from training.backbones.items.source import ItemSource
from training.backbones.items.text_blocks import TEXT_BLOCKS_FILE, TextBlocks
from training.backbones.items.trained_heads import read_heads, save_heads
from training.backbones.starting_model import load_start, make_start, trainable
from training.backbones.vlm import VlmEmbedder, save_embedder
from training.config.run_config import RunConfig
from training.data.dataset import Dataset
from training.data.pictures import PictureStore
from training.embedding.item_features import update_features
from training.embedding.job import Progress
from training.embedding.store import Embeddings
from training.finetune.run_directory import RunDirectory

_MIB = 2**20


@dataclass(frozen=True)
class TrainingParts:
    """What a run trains.

    Attributes:
        embedder: the model.
        collator: makes its batches.
        unreadable: returns row → reason, for pictures that could not be used so far.
        save: writes the trained model into a directory, with these weights by name if they are given, in place of its
            own (:func:`training.finetune.processes.sharding.full_weights`).
        adapted: whether only adapters are trained and saved.
    """

    embedder: Embedder
    collator: Collator | FeatureCollator
    unreadable: Callable[[], Mapping[int, str]]
    save: Callable[[Path, Mapping[str, Tensor] | None], None]
    adapted: bool = False


def make_starting_model(dataset: Dataset, config: RunConfig, run_dir: RunDirectory, progress: Progress) -> None:
    """Make what a run starts from, unless it exists: a backbone from scratch, or stored vectors and untrained heads.

    Args:
        dataset: the catalogue.
        config: of the run.
        run_dir: claimed by the caller.
        progress: called while a frozen encoder embeds the catalogue.
    """
    if run_dir.model.is_dir():
        return
    if not config.vlm.encodes_items:
        if config.vlm.model is None and not run_dir.start.is_dir():
            run_dir.make(run_dir.start, lambda aside: make_start(dataset, config.vlm, config.train.seed, aside))
        return
    source = ItemSource.of(config.vlm)
    features = update_features(dataset, source, run_dir.features, config.embed, progress=progress)
    if not run_dir.start.is_dir():
        options, blocks = config.vlm.heads, None
        if options.text_terms:
            blocks = TextBlocks.fit(
                dataset.texts(), features.vectors[TEXT], options.text_terms, share=options.text_terms_share
            )
        vectors = _read_vectors(dataset, features, blocks)
        dims = {name: int(block.shape[1]) for name, block in vectors.items()}
        heads = ModalityHeads(dims, options.length, config.train.max_history)
        heads.start_at(vectors)
        run_dir.make(run_dir.start, lambda aside: save_heads(aside, heads, source, blocks))


def training_parts(
    dataset: Dataset,
    config: RunConfig,
    run_dir: RunDirectory,
    *,
    progress: Progress = lambda _step, _done, _all: None,
) -> TrainingParts:
    """The parts of a run after :func:`make_starting_model`.

    Args:
        dataset: the catalogue.
        config: of the run.
        run_dir: of the run.
        progress: called while texts pass the frozen layers below trained ones.

    Raises:
        BackboneError: the model cannot be loaded.
        EmbeddingsError: the stored vectors cannot be read.
    """
    if config.vlm.encodes_items:
        return _heads(dataset, config, run_dir, progress)
    return _vlm(dataset, config, run_dir)


def _vlm(dataset: Dataset, config: RunConfig, run_dir: RunDirectory) -> TrainingParts:
    """A vision-language model that reads prompts."""
    vlm, options = config.vlm, config.train
    backbone = load_start(vlm, run_dir.start)
    embedder = VlmEmbedder(trainable(backbone, vlm))
    pictures = PictureStore(
        dataset.image_path, backbone.image_processor, memory_bytes=options.picture_memory_mib * _MIB
    )
    collator = Collator(
        backbone.tokenizer,
        dataset.texts(),
        pictures,
        max_text_tokens=vlm.max_text_tokens,
        max_history=options.max_history,
        chunk_tokens=options.chunk_tokens,
        chunk_patches=options.chunk_patches,
        modalities=options.modalities,
    )

    def save(directory: Path, weights: Mapping[str, Tensor] | None) -> None:
        save_embedder(
            directory, embedder, backbone, source=vlm.model, revision=vlm.revision,
            max_text_tokens=vlm.max_text_tokens, max_history=options.max_history, weights=weights,
        )  # fmt: skip

    return TrainingParts(embedder, collator, lambda: pictures.unreadable, save, embedder.adapted)


def _heads(dataset: Dataset, config: RunConfig, run_dir: RunDirectory, progress: Progress) -> TrainingParts:
    """Heads on the stored vectors of an encoder, and its last text layers or adapters if they are trained."""
    features = Embeddings.load(run_dir.features, check=False)
    heads = read_heads(run_dir.start).train()
    blocks = TextBlocks.load(run_dir.start / TEXT_BLOCKS_FILE)
    collator = FeatureCollator(
        _read_vectors(dataset, features, blocks),
        max_history=config.train.max_history,
        modalities=config.train.modalities,
    )
    rows = {item_id: row for row, item_id in enumerate(dataset.item_ids())}
    unreadable = {rows[item_id]: reason for item_id, reason in features.unreadable.items()}
    source, layers = ItemSource.of(config.vlm), config.vlm.towers.trained_text_layers
    if layers:
        with_text = np.flatnonzero(features.vectors[TEXT].any(axis=1)).tolist()
        heads.text_layers = last_text_layers(
            source.load(), layers, dataset.texts(), with_text, blocks, progress=progress
        )
    if config.vlm.adapters:
        heads.adapters = AdaptedTowers(
            dual_encoder(source.load()),
            config.vlm.lora,
            texts=dataset.texts(),
            image_path=dataset.image_path,
            blocks=blocks,
            picture_bytes=config.train.picture_memory_mib * _MIB,
            recompute=config.vlm.activation_checkpointing or config.train.cached_gradients,
        )
    return TrainingParts(
        heads, collator, lambda: unreadable, lambda directory, _: save_heads(directory, heads, source, blocks)
    )


def _read_vectors(
    dataset: Dataset, features: Embeddings, blocks: TextBlocks | None
) -> Mapping[str, NDArray[np.float32]]:
    """What the heads read: the encoder's vectors, those of texts joined with TF-IDF if there are such blocks."""
    if blocks is None:
        return features.vectors
    return {**features.vectors, TEXT: blocks.join(features.vectors[TEXT], dataset.texts())}
