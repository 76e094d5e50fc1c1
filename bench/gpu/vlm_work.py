"""Makes the inputs of the training bench: a Qwen2.5-VL with random weights and a shop whose prompts are full."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModel, PreTrainedTokenizerBase, Qwen2_5_VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from training.backbones.attention import pack_vision_attention
from training.backbones.backbone import Backbone, train_tokenizer
from training.backbones.prompts import END, IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START
from training.config.run_config import RunConfig, load_config
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import Sequences, leave_one_out
from training.data.training_pairs import TrainingPairs

PRESET = "qwen2.5-vl-3b"
_WORDS = 1_000
_VOCABULARY = 4_096
_HELD_OUT = 2


@dataclass(frozen=True)
class Shape:
    """A model and the sizes at which it is measured.

    Attributes:
        text: of the language model.
        vision: of the vision tower.
        side: pixels of a picture's side; it reaches the model as large as it is.
        overrides: dotted keys of the configuration that differ from the preset's.
        items: of the shop; every one has a picture and more words than are read.
        batches: windows of a training step, ascending.
        embedded: items of an embedding pass, ascending.
        products: sizes n of the n × n products that the matrix rate is measured by.
    """

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    side: int
    items: int
    batches: tuple[int, ...]
    embedded: tuple[int, ...]
    products: tuple[int, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> RunConfig:
        """Of the preset for the real model, as far as it is not overridden."""
        pixels = {f"vlm.{bound}_picture_pixels": self.side**2 for bound in ("min", "max")}
        return load_config(preset=PRESET, overrides=pixels | dict(self.overrides))


THREE_B = Shape(
    text={
        "vocab_size": 151_936,
        "hidden_size": 2_048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128_000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    vision={
        "depth": 32,
        "hidden_size": 1_280,
        "intermediate_size": 3_420,
        "num_heads": 16,
        "out_hidden_size": 2_048,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
    side=224,
    items=512,
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    embedded=(16, 32, 64, 128, 256, 512),
    products=(4_096, 8_192, 16_384),
)
"""Qwen2.5-VL-3B: 3,754,622,976 weights, as published. Pictures of 64 visual tokens, the most of the preset."""

TOY = Shape(
    text={
        "vocab_size": 600,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
    },
    vision={
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    side=84,
    items=24,
    batches=(2, 4),
    embedded=(8,),
    products=(128,),
    overrides={"vlm.max_text_tokens": 8, "train.max_history": 3, "vlm.lora.rank": 2, "train.chunk_tokens": 128},
)
"""Shows in seconds that everything runs; its figures mean nothing."""


def made_shop(directory: Path, shape: Shape, history: int) -> Dataset:
    """Write and read a shop in which every prompt is as long as it can be.

    Args:
        directory: where it goes.
        shape: items, picture sizes, and how many users there must be.
        history: items of a history; every user has as many and the ones held out.
    """
    rng = np.random.default_rng(0)
    (directory / "images").mkdir(parents=True)
    words = np.array([f"word{number:03d}" for number in range(_WORDS)])
    with (directory / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "text", "image"])
        for row in range(shape.items):
            few = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(few).resize((shape.side, shape.side)).save(directory / "images" / f"{row}.png")
            description = " ".join(rng.choice(words, shape.config().vlm.max_text_tokens))
            writer.writerow([f"i{row}", f"thing {row}", description, f"images/{row}.png"])
    with (directory / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in range(shape.batches[-1]):
            for place, row in enumerate(rng.choice(shape.items, history + 1 + _HELD_OUT, replace=False)):
                writer.writerow([f"u{user}", f"i{row}", 1_000_000 + place])
    return load_dataset(directory)


def longest_pairs(dataset: Dataset) -> tuple[TrainingPairs, NDArray[np.int64]]:
    """The training pairs, and the number of every user's last one, whose window is the whole history."""
    train = leave_one_out(Sequences.from_interactions(dataset.interactions, dataset.item_ids())).train
    pairs = TrainingPairs.of(train)
    return pairs, np.flatnonzero(np.diff(pairs.users, append=-1) != 0).astype(np.int64)


def random_backbone(shape: Shape, dataset: Dataset, config: RunConfig, device: torch.device) -> Backbone:
    """The model with random weights, on its device, as :func:`training.backbones.backbone.load_backbone` would hand it
    over.
    """
    tokenizer = train_tokenizer([text for text in dataset.texts() if text is not None], _vocabulary(shape))
    with torch.device(device):
        model = AutoModel.from_config(
            model_config(shape, tokenizer),
            dtype=getattr(torch, config.vlm.dtype),
            attn_implementation=config.vlm.attention,
        )
    pack_vision_attention(model)
    size = {"shortest_edge": config.vlm.min_picture_pixels, "longest_edge": config.vlm.max_picture_pixels}
    return Backbone(model, tokenizer, Qwen2VLImageProcessorPil(size=size, patch_size=shape.vision["patch_size"]))


def model_config(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    """Configuration of the model; the special tokens are the tokenizer's, everything else as published."""
    ids = tokenizer.get_vocab()
    return Qwen2_5_VLConfig(
        text_config={**shape.text, **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), ids[END])},
        vision_config=dict(shape.vision),
        image_token_id=ids[IMAGE_PAD],
        video_token_id=ids[VIDEO_PAD],
        vision_start_token_id=ids[VISION_START],
        vision_end_token_id=ids[VISION_END],
    )


def _vocabulary(shape: Shape) -> int:
    return min(_VOCABULARY, int(shape.text["vocab_size"]))
