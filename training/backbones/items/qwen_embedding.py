"""Encodes items with Qwen3-VL-Embedding, a Qwen3-VL model that was trained to embed."""

# Published (Qwen, 2026): a chat of a system line and one user turn, a picture before its text; the hidden state of the
# last attended token; vectors may be cut to their first coordinates before they are normalised (Matryoshka).

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from index.items.slots import IMAGE, TEXT
from training.backbones.backbone import Backbone
from training.backbones.items.item_encoder import Inputs, unit_rows
from training.backbones.items.pooling import pooled
from training.backbones.prompts import IMAGE_PAD, VISION_END, VISION_START, plain_text
from training.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_TYPE = "qwen3_vl"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
_SYSTEM = "Represent the user's input."
_BEFORE = f"{TURN_START}system\n{_SYSTEM}{TURN_END}\n{TURN_START}user\n"
_AFTER = f"{TURN_END}\n{TURN_START}assistant\n"


class QwenEmbedding:
    """Qwen3-VL-Embedding; implements ``ItemEncoder``.

    Args:
        backbone: a Qwen3-VL model, loaded.
        max_text_tokens: tokens kept of an item's text, without the chat around it.
        length: first coordinates to keep; None keeps all.

    Raises:
        BackboneError: it is another model, its tokenizer has no chat tokens, or it has fewer coordinates.
    """

    def __init__(self, backbone: Backbone, *, max_text_tokens: int, length: int | None) -> None:
        config = backbone.model.config
        if config.model_type != MODEL_TYPE:
            raise BackboneError(
                f'vlm.model must be a {MODEL_TYPE} model for vlm.family = "qwen3-vl-embedding", got '
                f"{config.model_type!r}; choose another model or family"
            )
        vocabulary = backbone.tokenizer.get_vocab()
        lacking = [token for token in (TURN_START, TURN_END) if token not in vocabulary]
        if lacking:
            raise BackboneError(f"vlm.model: its tokenizer lacks {', '.join(lacking)}; choose Qwen3-VL-Embedding")
        full = int(config.get_text_config().hidden_size)
        if length is not None and length > full:
            raise BackboneError(f"vlm.vector_length must be at most {full} for this model, got {length}; lower it")
        self.model: PreTrainedModel = cast("Any", backbone.model).eval()
        self._tokenizer, self._processor = backbone.tokenizer, backbone.image_processor
        self._limit, self._length = max_text_tokens, length
        self._merge = int(self._processor.merge_size) ** 2
        self._pad = vocabulary[IMAGE_PAD]
        self.dims: Mapping[str, int] = dict.fromkeys((TEXT, IMAGE), length or full)
        self.picture_pixels = int(self._processor.size["longest_edge"])

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """See ``ItemEncoder``."""
        kept = self._tokenizer([plain_text(text) for text in texts], add_special_tokens=False)["input_ids"]
        before, after = self._ids(_BEFORE), self._ids(_AFTER)
        return self._padded([[*before, *ids[: self._limit], *after] for ids in kept])

    def prepare_pictures(self, pictures: Sequence[Image.Image]) -> Inputs:
        """See ``ItemEncoder``; ``pixel_values`` counts patches, not pictures."""
        made = self._processor(images=list(pictures), return_tensors="pt")
        grids = made["image_grid_thw"]
        before, after = self._ids(_BEFORE + VISION_START), self._ids(VISION_END + _AFTER)
        sizes = (grids.prod(dim=1) // self._merge).tolist()
        inputs = self._padded([[*before, *[self._pad] * size, *after] for size in sizes])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == self._pad).int()
        return inputs | {"pixel_values": made["pixel_values"].to(self.model.dtype), "image_grid_thw": grids}

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """See ``ItemEncoder``."""
        del modality
        hidden = cast("Any", self.model)(**inputs, use_cache=False).last_hidden_state
        return unit_rows(pooled(hidden, inputs["attention_mask"], "last"), self._length)

    def _ids(self, text: str) -> list[int]:
        return cast("list[int]", self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _padded(self, prompts: Sequence[list[int]]) -> Inputs:
        """Token ids padded on the right, and their mask."""
        width = max(len(prompt) for prompt in prompts)
        filler = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([prompt + [filler] * (width - len(prompt)) for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return {"input_ids": ids, "attention_mask": (torch.arange(width)[None, :] < lengths[:, None]).long()}
