"""Loads a Qwen-VL model with its tokenizer and image processor, or makes a small one from scratch."""

# Pretrained or made from scratch, a backbone is a directory or hub id that is read through ``from_pretrained``; code
# from the hub is never run. The image processor is the one for Pillow pictures, and the processor's video part is
# never loaded, so torchvision is not needed.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from training.backbones.attention import pack_vision_attention
from training.backbones.pretrained import check_complete, check_pinned, quiet, reading
from training.backbones.prompts import END, IMAGE_PAD, SPECIAL_TOKENS, VIDEO_PAD, VISION_END, VISION_START, wording
from training.data.pictures import ImageProcessor
from training.errors import BackboneError

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
"""``model_type`` of the supported models."""
_MOST_TEXTS = 200_000


@dataclass(frozen=True)
class Backbone:
    """A loaded vision-language model.

    Attributes:
        model: without a language-modelling head.
        tokenizer: of the model.
        image_processor: of the model, with the requested picture sizes.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    image_processor: ImageProcessor

    def save(self, directory: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write all three parts so that :func:`load_backbone` reads them back.

        Args:
            directory: created if needed.
            weights: of the model by name, in place of its own.
        """
        with quiet():
            self.model.save_pretrained(directory, state_dict=None if weights is None else dict(weights))
        self.save_processors(directory)

    def save_processors(self, directory: Path) -> None:
        """Write the tokenizer and the image processor only."""
        self.tokenizer.save_pretrained(directory)
        cast("Any", self.image_processor).save_pretrained(directory)


def load_backbone(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    attention: str = "sdpa",
    picture_pixels: tuple[int, int] | None = None,
) -> Backbone:
    """Read a backbone through ``from_pretrained``.

    Args:
        source: directory or hub id.
        revision: commit of a hub id.
        dtype: ``float32`` or ``bfloat16``.
        attention: implementation of attention in transformers.
        picture_pixels: fewest and most pixels of a preprocessed picture; None keeps the processor's values.

    Raises:
        BackboneError: it is not pinned, is missing or unreadable, lacks weights, or is not of the Qwen-VL family.
    """
    check_pinned(source, revision)
    options = {"revision": revision, "trust_remote_code": False}
    with reading(source, attention=attention):
        _check_family(source, AutoConfig.from_pretrained(source, **options).model_type)
        model, found = AutoModel.from_pretrained(
            source,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            output_loading_info=True,
            **options,
        )
        check_complete(source, found["missing_keys"])
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        image_processor = cast("Any", AutoImageProcessor).from_pretrained(source, use_fast=False, **options)
    pack_vision_attention(model)
    if picture_pixels is not None:
        image_processor.size = {"shortest_edge": picture_pixels[0], "longest_edge": picture_pixels[1]}
    return Backbone(model, tokenizer, image_processor)


def _check_family(source: str | Path, model_type: str) -> None:
    if model_type not in FAMILIES:
        raise BackboneError(
            f"{source}: the model must be one of {', '.join(FAMILIES)}, got {model_type!r}; choose a Qwen-VL model"
        )


def make_backbone(
    texts: Sequence[str | None],
    *,
    vocabulary: int,
    hidden_size: int,
    layers: int,
    heads: int,
    intermediate_size: int,
    vision_hidden_size: int,
    vision_layers: int,
    vision_heads: int,
    vision_intermediate_size: int,
    patch_size: int,
    initializer_range: float,
    picture_pixels: tuple[int, int],
    colours: tuple[Sequence[float], Sequence[float]] | None = None,
    seed: int,
) -> Backbone:
    """A small Qwen2.5-VL with random weights and a byte-level BPE tokenizer trained on the catalogue.

    Args:
        texts: the catalogue's texts; the tokenizer learns from at most the first 200,000.
        vocabulary: most tokens.
        hidden_size: width of the language model and length of the embeddings.
        layers: decoder layers.
        heads: attention heads.
        intermediate_size: width of the MLPs.
        vision_hidden_size: width of the vision tower.
        vision_layers: its blocks.
        vision_heads: its attention heads.
        vision_intermediate_size: width of its MLPs.
        patch_size: pixels of a patch's side.
        initializer_range: standard deviation of the weights.
        picture_pixels: fewest and most pixels of a preprocessed picture.
        colours: mean and standard deviation of the catalogue's red, green and blue (0 … 1), by which pictures are
            normalised; None keeps those of CLIP, which make pictures on a bright ground nearly alike.
        seed: of the weights.
    """
    tokenizer = train_tokenizer([text for text in texts[:_MOST_TEXTS] if text is not None], vocabulary)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "rope_parameters": _rotary(hidden_size // heads // 2),
        "initializer_range": initializer_range,
    }
    vision = {
        "depth": vision_layers,
        "hidden_size": vision_hidden_size,
        "intermediate_size": vision_intermediate_size,
        "num_heads": vision_heads,
        "patch_size": patch_size,
        "out_hidden_size": hidden_size,
        "initializer_range": initializer_range,
    }
    model = _random_model(text, vision, tokenizer.get_vocab(), seed)
    return Backbone(model, tokenizer, _picture_processor(picture_pixels, patch_size, colours))


def _random_model(
    text: Mapping[str, Any], vision: Mapping[str, Any], ids: Mapping[str, int], seed: int
) -> Qwen2_5_VLModel:
    """The model with random weights; every block of its vision tower attends to the whole picture."""
    whole = {"fullatt_block_indexes": list(range(vision["depth"]))}
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), ids[END])
    config = Qwen2_5_VLConfig(text_config={**text, **tokens}, vision_config={**vision, **whole}, **_special_ids(ids))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2_5_VLModel(config)


def _special_ids(ids: Mapping[str, int]) -> dict[str, Any]:
    """Ids of the tokens for pictures and their bounds."""
    return {
        "image_token_id": ids[IMAGE_PAD],
        "video_token_id": ids[VIDEO_PAD],
        "vision_start_token_id": ids[VISION_START],
        "vision_end_token_id": ids[VISION_END],
    }


def _picture_processor(
    pixels: tuple[int, int], patch_size: int, colours: tuple[Sequence[float], Sequence[float]] | None
) -> "ImageProcessor":
    size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}
    processor = Qwen2VLImageProcessorPil(size=size, patch_size=patch_size)
    if colours is not None:
        processor.image_mean, processor.image_std = list(colours[0]), list(colours[1])
    return cast("ImageProcessor", processor)


def _rotary(half_head: int) -> dict[str, Any]:
    """Rotary positions of time, height and width over half a head's width."""
    third = half_head // 3
    sections = [half_head - 2 * third, third, third]
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections}


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (any text can be written with it) with the special tokens of the Qwen-VL family.

    Args:
        texts: texts to learn the merges from, besides the prompts' own wording.
        vocabulary: most tokens, at least 256 bytes and the special tokens.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([*texts, *(wording() * max(8, len(texts)))], trainer)
    made = cast("Any", PreTrainedTokenizerFast)(
        tokenizer_object=bpe, eos_token=END, pad_token=END, extra_special_tokens=list(SPECIAL_TOKENS[1:])
    )
    return cast("PreTrainedTokenizerFast", made)
