"""Encodes items with two unrelated models: a text encoder beside an image model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from index.items.slots import IMAGE, TEXT
from training.backbones import efficientnet_lite
from training.backbones.items.item_encoder import Inputs, unit_rows
from training.backbones.items.pooling import TextPooling, pooled
from training.backbones.pretrained import check_complete, check_pinned, reading
from training.errors import BackboneError

_POOLER = "pooler."
"""A pooler that no file has weights for is not used, so it may be missing."""


class PictureModel(Protocol):
    """The image half of a pair of towers.

    Attributes:
        model: holds the weights.
        dim: D, the length of the vectors.
        pixels: most pixels that a picture is encoded with.
    """

    model: nn.Module
    dim: int
    pixels: int

    def prepare(self, pictures: Sequence[Image.Image]) -> Inputs:
        """Inputs for pictures in RGB."""
        ...

    def encode(self, inputs: Inputs) -> Tensor:
        """(n, D), not normalised."""
        ...


class TextTower:
    """A text encoder of ``AutoModel``.

    Args:
        model: its forward pass gives ``last_hidden_state``.
        tokenizer: of the model.
        pooling: how the tokens become one vector.
        max_text_tokens: most tokens of a text, special ones included.

    Attributes:
        model: as given.
        config: of the model.
        tokenizer: as given.
        pooling: as given.
        max_tokens: most tokens of a text, special ones included.
        dim: D, the length of the vectors.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, pooling: TextPooling, max_text_tokens: int) -> None:  # noqa: ANN401 - classes of transformers
        self.model, self.tokenizer, self.pooling = model, tokenizer, pooling
        self.config = config = cast("Any", model).config
        positions = getattr(config, "max_position_embeddings", None) or max_text_tokens
        self.max_tokens = min(max_text_tokens, int(positions), int(tokenizer.model_max_length))
        self.dim = int(config.hidden_size)

    def prepare(self, texts: Sequence[str]) -> Inputs:
        """Token ids, padded to the longest text, and their mask."""
        made = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}

    def encode(self, inputs: Inputs) -> Tensor:
        """(n, D), not normalised."""
        hidden = self.model(**inputs).last_hidden_state
        return pooled(hidden, inputs["attention_mask"], self.pooling)


class ImageTower:
    """An image model of ``AutoModel``, timm's wrapper included; implements ``PictureModel``.

    The vector is the model's pooled output; without one, the first token of a transformer or the mean over a feature
    map.

    Args:
        model: of transformers.
        image_processor: of the model.
        has_pooler: whether the weights of its pooler, if it has one, were read.

    Attributes:
        image_processor: as given.
    """

    def __init__(self, model: nn.Module, image_processor: Any, *, has_pooler: bool = True) -> None:  # noqa: ANN401 - classes of transformers
        self.model, self.image_processor, self._has_pooler = model, image_processor, has_pooler
        with torch.inference_mode():
            blank = self.prepare([Image.new("RGB", (64, 64), "white")])
            self.dim = int(self.encode(blank).shape[1])
        self.pixels = int(blank["pixel_values"].shape[-1] * blank["pixel_values"].shape[-2])

    def prepare(self, pictures: Sequence[Image.Image]) -> Inputs:
        """Pixels as the model's image processor makes them."""
        made = self.image_processor(images=list(pictures), return_tensors="pt")
        return {"pixel_values": made["pixel_values"].to(next(self.model.parameters()).dtype)}

    def encode(self, inputs: Inputs) -> Tensor:
        """(n, D), not normalised."""
        output = self.model(**inputs)
        found = getattr(output, "pooler_output", None)
        if found is not None and self._has_pooler:
            return cast("Tensor", found.flatten(1))
        hidden = cast("Tensor", output.last_hidden_state)
        return hidden[:, 0] if hidden.ndim == 3 else hidden.mean(dim=(2, 3))


class Towers:
    """A text encoder beside an image model; implements ``ItemEncoder``.

    Args:
        text: encodes texts.
        image: encodes pictures.

    Attributes:
        text: as given.
        image: as given.
    """

    def __init__(self, text: TextTower, image: PictureModel) -> None:
        self.text, self.image = text, image
        self.model: nn.Module = nn.ModuleDict({TEXT: text.model, IMAGE: image.model})
        self.dims: Mapping[str, int] = {TEXT: text.dim, IMAGE: image.dim}
        self.picture_pixels = image.pixels

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """See ``ItemEncoder``."""
        return self.text.prepare(texts)

    def prepare_pictures(self, pictures: Sequence[Image.Image]) -> Inputs:
        """See ``ItemEncoder``."""
        return self.image.prepare(pictures)

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """See ``ItemEncoder``."""
        return unit_rows(self.text.encode(inputs) if modality == TEXT else self.image.encode(inputs))


@dataclass(frozen=True)
class TowerSource:
    """Where a tower is read from.

    Attributes:
        model: directory or hub id.
        revision: commit of a hub id.
    """

    model: str
    revision: str | None


def load_text_tower(
    source: TowerSource, *, dtype: str, attention: str, pooling: TextPooling, max_text_tokens: int
) -> TextTower:
    """Read a text encoder through ``from_pretrained``.

    Args:
        source: of the model.
        dtype: ``float32`` or ``bfloat16``.
        attention: implementation of attention in transformers.
        pooling: how the tokens become one vector.
        max_text_tokens: most tokens of a text.

    Raises:
        BackboneError: it is not pinned, is missing or unreadable, lacks weights, or is no text encoder.
    """
    check_pinned(source.model, source.revision)
    options: dict[str, Any] = {"revision": source.revision, "trust_remote_code": False}
    with reading(source.model, attention=attention):
        model, missing = _model(source, dtype, attention)
        check_complete(source.model, [name for name in missing if not name.startswith(_POOLER)])
        tokenizer = AutoTokenizer.from_pretrained(source.model, **options)
    if getattr(model.config, "hidden_size", None) is None or model.get_input_embeddings() is None:
        raise BackboneError(
            f"{source.model}: vlm.towers.text_model must be a text encoder, got a model of the type "
            f"{model.config.model_type!r}; choose another model"
        )
    return TextTower(model.eval(), tokenizer, pooling, max_text_tokens)


def load_image_tower(source: TowerSource, *, dtype: str) -> PictureModel:
    """Read an image model through ``from_pretrained``, or EfficientNet-Lite0.

    Args:
        source: of the model.
        dtype: ``float32`` or ``bfloat16``.

    Raises:
        BackboneError: it is not pinned, is missing or unreadable, lacks weights, or is no image model.
    """
    check_pinned(source.model, source.revision)
    directory = Path(source.model)
    if directory.is_dir() and _model_type(directory) == efficientnet_lite.MODEL_TYPE:
        return efficientnet_lite.load(directory, dtype=dtype)
    options: dict[str, Any] = {"revision": source.revision, "trust_remote_code": False}
    with reading(source.model):
        model, missing = _model(source, dtype, None)
        check_complete(source.model, [name for name in missing if not name.startswith(_POOLER)])
        processor = cast("Any", AutoImageProcessor).from_pretrained(source.model, use_fast=False, **options)
        return ImageTower(model.eval(), processor, has_pooler=not missing)


def _model(source: TowerSource, dtype: str, attention: str | None) -> tuple[Any, list[str]]:
    """The model and the names of the weights that no file holds."""
    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    model, found = AutoModel.from_pretrained(
        source.model,
        dtype=getattr(torch, dtype),
        revision=source.revision,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    return model, sorted(found["missing_keys"])


def _model_type(directory: Path) -> str | None:
    try:
        found = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(found.get("model_type")) if isinstance(found, dict) else None
