"""Tiny random checkpoints of each class that encodes items, written by save_pretrained, and items for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    EmbeddingGemma2Config,
    EmbeddingGemma2Model,
    Gemma4VisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.embedding_gemma2.configuration_embedding_gemma2 import EmbeddingGemma2TextConfig
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

COLOURS = ("crimson", "teal", "amber", "violet", "olive", "coral")
WORDS = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "green", "blue", "shoe", "hat", "Red", "a", "of", "the", *COLOURS
)  # fmt: skip
BEGIN, END, SHOWN = (len(WORDS) + number for number in range(3))
"""Ids of the tokens around and inside a picture of EmbeddingGemma 2."""
TEXTS = ("Red shoe", "a hat of the blue", "green")
SIDE = 32
_TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_SEEN = {**_TEXT, "image_size": SIDE, "patch_size": 8}


def word_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """One token a word, between [CLS] and [SEP]; padded on the right."""
    ids = {word: number for number, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", **options
    )


def _dual(name: str) -> tuple[PreTrainedModel, Any]:
    text = {**_TEXT, "vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    if name == "clip":
        config = CLIPConfig(
            text_config=CLIPTextConfig(**text, max_position_embeddings=12, projection_dim=10).to_dict(),
            vision_config=CLIPVisionConfig(**_SEEN, projection_dim=10).to_dict(),
            projection_dim=10,
        )
        size = {"shortest_edge": SIDE}
        return CLIPModel(config), CLIPImageProcessorPil(size=size, crop_size={"height": SIDE, "width": SIDE})
    text["max_position_embeddings"] = 8
    if name == "siglip":
        made = SiglipConfig(text_config=text, vision_config=_SEEN)
        return SiglipModel(made), SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    seen = {**_TEXT, "patch_size": 8, "num_patches": 16}
    made2 = Siglip2Config(text_config=text, vision_config=seen)
    return Siglip2Model(made2), Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)


def write_dual(directory: Path, name: str) -> Path:
    """A tiny SigLIP, SigLIP 2 or CLIP."""
    torch.manual_seed(3)
    model, processor = _dual(name)
    model.save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def write_text_encoder(directory: Path) -> Path:
    """A tiny BERT without the weights of its pooler, as sentence encoders are often published."""
    torch.manual_seed(4)
    config = BertConfig(**_TEXT, vocab_size=len(WORDS), max_position_embeddings=12, pad_token_id=0)
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    word_tokenizer(model_max_length=12).save_pretrained(directory)
    return directory


def write_image_model(directory: Path, name: str = "resnet", *, pooler: bool = True) -> Path:
    """A tiny ViT or ResNet."""
    torch.manual_seed(5)
    if name == "vit":
        ViTModel(ViTConfig(**_SEEN), add_pooling_layer=pooler).save_pretrained(directory)
    else:
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        ResNetModel(config).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(directory)
    return directory


def write_gemma(directory: Path) -> Path:
    """A tiny EmbeddingGemma 2 without an audio tower."""
    torch.manual_seed(7)
    text = EmbeddingGemma2TextConfig(
        **_TEXT, vocab_size=SHOWN + 3, num_key_value_heads=1, head_dim=8, global_head_dim=8, embedding_dim=12,
        hidden_size_per_layer_input=4, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    vision = Gemma4VisionConfig(
        **_TEXT, num_key_value_heads=2, head_dim=8, patch_size=4, pooling_kernel_size=3, position_embedding_size=64
    )
    config = EmbeddingGemma2Config(
        text_config=text, vision_config=vision, audio_config=None, boi_token_id=BEGIN, eoi_token_id=END,
        image_token_id=SHOWN, video_token_id=SHOWN + 1, audio_token_id=SHOWN + 2,
    )  # fmt: skip
    EmbeddingGemma2Model(config).save_pretrained(directory)
    word_tokenizer().save_pretrained(directory)
    Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, pooling_kernel_size=3).save_pretrained(directory)
    return directory


def pictures() -> list[Image.Image]:
    """Three pictures of different shapes."""
    rng = np.random.default_rng(0)
    sizes = ((40, 24), (32, 32), (20, 50))
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1."""
    return rows / rows.norm(dim=-1, keepdim=True)


def check_vectors(found: Tensor, expected: Tensor) -> None:
    """Rows of length 1 that equal the expected ones."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
