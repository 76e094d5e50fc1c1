"""Identifies the trained model of a run by its files, and loads it only when something must be embedded."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.backbones.identity import LICENCES, MODEL_DIRECTORY, provenance
from training.backbones.licences import licences
from training.config.run_config import RunConfig, load_run_config

if TYPE_CHECKING:
    from training.backbones.items.trained_heads import ItemEmbedding
    from training.backbones.vlm import Embedding

TRAINING_DIRECTORY = "train"
EMBEDDINGS_DIRECTORY = "embeddings"
FEATURES_DIRECTORY = "features"
"""Stored vectors of a frozen encoder, in the directory of the training."""


@dataclass(frozen=True)
class TrainedModel:
    """The trained model of a run.

    Attributes:
        run: the run directory.
        config: of the training.
        provenance: see :func:`training.backbones.identity.provenance`; with the ``licences`` of the pretrained models,
            an empty list for a model made from scratch.
    """

    run: Path
    config: RunConfig
    provenance: dict[str, Any]

    @classmethod
    def of(cls, run: Path) -> "TrainedModel":
        """The model of a run directory.

        Raises:
            BackboneError: it has no trained model, or a file cannot be read.
            ConfigError: its configuration cannot be read.
        """
        config = load_run_config(run)
        directory = run / TRAINING_DIRECTORY / MODEL_DIRECTORY
        if config.vlm.encodes_items:
            from training.backbones.items.trained_heads import heads_provenance

            made = heads_provenance(directory)
        else:
            made = provenance(directory, dtype=config.vlm.dtype, attention=config.vlm.attention)
        return cls(run, config, made | {LICENCES: licences(config.vlm)})

    @property
    def embeddings(self) -> Path:
        """Directory of the run's embeddings."""
        return self.run / EMBEDDINGS_DIRECTORY

    def load(self) -> "Embedding | ItemEmbedding":
        """Load the model.

        Raises:
            BackboneError: a part is missing or unreadable.
        """
        if self.config.vlm.encodes_items:
            from training.backbones.items.trained_heads import load_heads

            directory = self.run / TRAINING_DIRECTORY
            return load_heads(directory / MODEL_DIRECTORY, directory / FEATURES_DIRECTORY)
        from training.backbones.vlm import load_embedder

        vlm = self.config.vlm
        directory = self.run / TRAINING_DIRECTORY / MODEL_DIRECTORY
        return load_embedder(directory, dtype=vlm.dtype, attention=vlm.attention)
