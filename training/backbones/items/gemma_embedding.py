"""Encodes items with EmbeddingGemma 2, which reads texts and pictures with one bidirectional encoder."""

# Published (Google, 2026): a document is written "title: … | text: …", the hidden states of all attended tokens are
# averaged, and activations overflow in float16, so it is never used. Vectors may be cut to their first coordinates.

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel

from index.items.slots import IMAGE, TEXT
from training.backbones.items.item_encoder import Inputs, unit_rows
from training.backbones.items.pooling import pooled
from training.backbones.pretrained import check_complete, check_pinned, reading
from training.errors import BackboneError

MODEL_TYPE = "embedding_gemma2"
_DOCUMENT = "title: none | text: "


class GemmaEmbedding:
    """EmbeddingGemma 2; implements ``ItemEncoder``.

    Args:
        model: in float32 or bfloat16.
        tokenizer: of the model.
        image_processor: of the model.
        max_text_tokens: most tokens of a text, the prompt included.
        length: first coordinates to keep; None keeps all.

    Attributes:
        model: as given.
        tokenizer: as given.
        image_processor: as given.

    Raises:
        BackboneError: the model is in float16, or it has fewer coordinates.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,  # noqa: ANN401 - classes of transformers
        image_processor: Any,  # noqa: ANN401
        *,
        max_text_tokens: int,
        length: int | None,
    ) -> None:
        config = cast("Any", model.config)
        full = int(config.text_config.embedding_dim)
        if model.dtype == torch.float16:
            raise BackboneError("EmbeddingGemma 2 overflows in float16; set vlm.dtype to float32 or bfloat16")
        if length is not None and length > full:
            raise BackboneError(f"vlm.vector_length must be at most {full} for this model, got {length}; lower it")
        self.model = model
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self._tokens, self._length = max_text_tokens, length
        self._begin, self._shown, self._end = config.boi_token_id, config.image_token_id, config.eoi_token_id
        self._first = config.text_config.bos_token_id
        self.dims: Mapping[str, int] = dict.fromkeys((TEXT, IMAGE), length or full)
        soft = int(image_processor.max_soft_tokens) * int(image_processor.pooling_kernel_size) ** 2
        self.picture_pixels = soft * int(image_processor.patch_size) ** 2

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        revision: str | None,
        dtype: str,
        attention: str,
        max_text_tokens: int,
        length: int | None,
    ) -> "GemmaEmbedding":
        """Read EmbeddingGemma 2 through ``from_pretrained``.

        Args:
            source: directory or hub id.
            revision: commit of a hub id.
            dtype: ``float32`` or ``bfloat16``.
            attention: implementation of attention in transformers.
            max_text_tokens: most tokens of a text.
            length: first coordinates to keep; None keeps all.

        Raises:
            BackboneError: it is not pinned, is missing or unreadable, lacks weights, or is another model.
        """
        check_pinned(source, revision)
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        with reading(source, attention=attention):
            model_type = AutoConfig.from_pretrained(source, **options).model_type
            if model_type != MODEL_TYPE:
                raise BackboneError(
                    f'{source}: the model must be {MODEL_TYPE} for vlm.family = "embeddinggemma-2", got '
                    f"{model_type!r}; choose another model or family"
                )
            model, found = AutoModel.from_pretrained(
                source, dtype=getattr(torch, dtype), attn_implementation=attention, output_loading_info=True, **options
            )
            check_complete(source, found["missing_keys"])
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            processor = cast("Any", AutoImageProcessor).from_pretrained(source, use_fast=False, **options)
        return cls(model.eval(), tokenizer, processor, max_text_tokens=max_text_tokens, length=length)

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """See ``ItemEncoder``."""
        made = self.tokenizer(
            [_DOCUMENT + text for text in texts],
            padding=True,
            truncation=True,
            max_length=self._tokens,
            return_tensors="pt",
        )
        return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}

    def prepare_pictures(self, pictures: Sequence[Image.Image]) -> Inputs:
        """See ``ItemEncoder``."""
        made = self.image_processor(images=list(pictures), return_tensors="pt")
        counts = [int(count) for count in made["num_soft_tokens_per_image"]]
        around = list(self.tokenizer("")["input_ids"])  # what the tokenizer puts before and after any text
        first = around[:1] if around[:1] == [self._first] else []
        prompts = [[*first, self._begin, *[self._shown] * n, self._end, *around[len(first) :]] for n in counts]
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([prompt + [self.tokenizer.pad_token_id] * (width - len(prompt)) for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(width)[None, :] < lengths[:, None]).long(),
            "pixel_values": made["pixel_values"].to(self.model.dtype),
            "image_position_ids": made["image_position_ids"],
        }

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """See ``ItemEncoder``."""
        del modality
        hidden = cast("Any", self.model)(**inputs).last_hidden_state
        return unit_rows(pooled(hidden.float(), inputs["attention_mask"], "mean"), self._length)
