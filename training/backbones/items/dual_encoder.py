"""Encodes items with a dual encoder: SigLIP, SigLIP 2 and CLIP, whose two towers share one space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel

from index.items.slots import IMAGE, TEXT
from training.backbones.items.item_encoder import Inputs, unit_rows
from training.backbones.pretrained import check_complete, check_pinned, reading
from training.errors import BackboneError

MODEL_TYPES = ("siglip", "siglip2", "clip")
"""``model_type`` of the supported models; the SigLIP 2 models of fixed resolution call themselves ``siglip``."""
_PADDED_IN_TRAINING = ("siglip", "siglip2")
_PICTURE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")


class DualEncoder:
    """A model with ``get_text_features`` and ``get_image_features``; implements ``ItemEncoder``.

    SigLIP and SigLIP 2 were trained on lower-case texts that are padded to the full length, with the padding attended
    to; they are prepared in the same way, from ``input_ids`` alone. CLIP gets an attention mask.

    Args:
        model: of a supported type.
        tokenizer: of the model.
        image_processor: of the model.
        max_text_tokens: most tokens of a text; not more than the model has positions.

    Attributes:
        model: as given.
        tokenizer: as given; it pads on the right.
        image_processor: as given.
        max_tokens: most tokens of a text, special ones included.
        padded_length: tokens that each text is padded to; None where it is the longest text of a batch.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, image_processor: Any, max_text_tokens: int) -> None:  # noqa: ANN401 - classes of transformers per family
        self.model: PreTrainedModel = model
        self.tokenizer, self.image_processor = tokenizer, image_processor
        # Both families were trained with padding on the right; some tokenizer classes pad on the left by default.
        self.tokenizer.padding_side = "right"
        config = cast("Any", model.config)
        positions = int(config.text_config.max_position_embeddings)
        self.max_tokens = min(max_text_tokens, positions)
        self.padded_length = positions if config.model_type in _PADDED_IN_TRAINING else None
        text, image = _lengths(config)
        self.dims: Mapping[str, int] = {TEXT: text, IMAGE: image}
        self.picture_pixels = _pixels(config.vision_config)

    @classmethod
    def load(
        cls, source: str | Path, *, revision: str | None, dtype: str, attention: str, max_text_tokens: int
    ) -> "DualEncoder":
        """Read a dual encoder through ``from_pretrained``.

        Args:
            source: directory or hub id.
            revision: commit of a hub id.
            dtype: ``float32`` or ``bfloat16``.
            attention: implementation of attention in transformers.
            max_text_tokens: most tokens of a text.

        Raises:
            BackboneError: it is not pinned, is missing or unreadable, lacks weights, or is of another type.
        """
        check_pinned(source, revision)
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        with reading(source, attention=attention):
            model_type = AutoConfig.from_pretrained(source, **options).model_type
            if model_type not in MODEL_TYPES:
                raise BackboneError(
                    f"{source}: a dual encoder must be one of {', '.join(MODEL_TYPES)}, got {model_type!r}; choose a "
                    "SigLIP, SigLIP 2 or CLIP model, or another vlm.family"
                )
            model, found = AutoModel.from_pretrained(
                source, dtype=getattr(torch, dtype), attn_implementation=attention, output_loading_info=True, **options
            )
            check_complete(source, found["missing_keys"])
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            processor = cast("Any", AutoImageProcessor).from_pretrained(source, use_fast=False, **options)
        return cls(model.eval(), tokenizer, processor, max_text_tokens)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """See ``ItemEncoder``."""
        if self.padded_length is None:
            made = self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
            return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}
        lower = [text.lower() for text in texts]
        # Cut first, so that a limit below the model's length keeps the padding that it was trained with.
        made = self.tokenizer(lower, truncation=True, max_length=self.max_tokens)
        padded = self.tokenizer.pad(
            {"input_ids": made["input_ids"]}, padding="max_length", max_length=self.padded_length, return_tensors="pt"
        )
        return {"input_ids": padded["input_ids"]}

    def prepare_pictures(self, pictures: Sequence[Image.Image]) -> Inputs:
        """See ``ItemEncoder``."""
        made = self.image_processor(images=list(pictures), return_tensors="pt")
        dtype = self.model.dtype
        return {
            name: made[name].to(dtype) if name == "pixel_values" else made[name]
            for name in _PICTURE_INPUTS
            if name in made
        }

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """See ``ItemEncoder``."""
        model = cast("Any", self.model)
        features = model.get_text_features if modality == TEXT else model.get_image_features
        return unit_rows(features(**inputs, return_dict=True).pooler_output)


def _lengths(config: Any) -> tuple[int, int]:  # noqa: ANN401 - a configuration of transformers per family
    """D of the text and of the image vectors."""
    if config.model_type == "clip":
        return int(config.projection_dim), int(config.projection_dim)
    text = getattr(config.text_config, "projection_size", None) or config.text_config.hidden_size
    return int(text), int(config.vision_config.hidden_size)


def _pixels(vision: Any) -> int:  # noqa: ANN401 - a configuration of transformers per family
    """Pixels of an encoded picture."""
    if getattr(vision, "num_patches", None):  # SigLIP 2 of variable resolution has a budget of patches
        return int(vision.num_patches) * int(vision.patch_size) ** 2
    return int(vision.image_size) ** 2
