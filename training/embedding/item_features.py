"""Stores the vectors that a frozen encoder gives each item, once, and brings them up to date."""

from pathlib import Path

from training.backbones.items.source import ItemSource
from training.backbones.items.trained_heads import ItemEmbedding
from training.config.run_config import EmbedConfig
from training.data.dataset import Dataset
from training.embedding.job import Progress, embed_catalogue, pending_items
from training.embedding.store import Embeddings


def update_features(
    dataset: Dataset,
    source: ItemSource,
    directory: Path,
    config: EmbedConfig,
    *,
    progress: Progress = lambda _step, _done, _all: None,
) -> Embeddings:
    """Encode the new and changed items of a catalogue; a shard that is complete survives an interruption.

    Args:
        dataset: the catalogue.
        source: names the encoder.
        directory: of the stored vectors.
        config: sizes of shards and batches.
        progress: called with the progress of each step; an error that it raises ends the work like a kill.

    Returns:
        Vectors of the whole catalogue, in its order.

    Raises:
        BackboneError: the encoder cannot be loaded.
        EmbeddingsError: no item has a text or a readable picture, or the encoder gives a value that is not finite.
    """
    model = source.provenance()
    pending = pending_items(dataset, model, directory, progress=progress)
    done = embed_catalogue(
        dataset,
        pending,
        lambda: ItemEmbedding(source, source.load(), None, directory, model),
        directory,
        shard_items=config.shard_items,
        batch_items=config.batch_items,
        progress=progress,
    )
    return done.embeddings
