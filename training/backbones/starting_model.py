"""Makes or loads the model that a run starts from: from scratch for the catalogue, or pretrained with adapters."""

from pathlib import Path
from typing import Any, cast

from torch import nn

from training.backbones.backbone import Backbone, load_backbone, make_backbone
from training.backbones.vlm import adapt
from training.config.vlm_config import VlmConfig
from training.data.dataset import Dataset
from training.data.pictures import colour_statistics


def make_start(dataset: Dataset, vlm: VlmConfig, seed: int, directory: Path) -> None:
    """Write a backbone with random weights and a tokenizer that knows the catalogue's words.

    Args:
        dataset: the catalogue.
        vlm: shape and picture sizes.
        seed: of the weights.
        directory: to write to.
    """
    make_backbone(
        dataset.texts(),
        **vlm.scratch.model_dump(),
        picture_pixels=(vlm.min_picture_pixels, vlm.max_picture_pixels),
        colours=colour_statistics(dataset.image_path, len(dataset)),
        seed=seed,
    ).save(directory)


def load_start(vlm: VlmConfig, from_scratch: Path) -> Backbone:
    """Read the backbone that training starts from.

    Args:
        vlm: the model and how to load it.
        from_scratch: directory of :func:`make_start`, read if ``vlm.model`` is not set.

    Raises:
        BackboneError: it cannot be loaded.
    """
    return load_backbone(
        from_scratch if vlm.model is None else vlm.model,
        revision=vlm.revision,
        dtype=vlm.dtype,
        attention=vlm.attention,
        picture_pixels=(vlm.min_picture_pixels, vlm.max_picture_pixels),
    )


def trainable(backbone: Backbone, vlm: VlmConfig) -> nn.Module:
    """The backbone's model, with adapters if it is pretrained, recomputing activations if configured.

    Raises:
        BackboneError: no layer has one of the names in ``vlm.lora.targets``.
    """
    model: nn.Module = backbone.model
    if vlm.model is not None:
        lora = vlm.lora
        model = adapt(backbone, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets)
    if vlm.activation_checkpointing:
        cast("Any", backbone.model).activation_checkpointing_enable({"use_reentrant": False})
    return model
