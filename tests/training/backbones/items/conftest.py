"""Tiny checkpoints of encoders of items."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.backbones.item_models import write_dual, write_gemma, write_image_model, write_text_encoder
from training.backbones.backbone import load_backbone


@pytest.fixture
def dual_directory(tmp_path: Path) -> Callable[[str], Path]:
    """A tiny SigLIP, SigLIP 2 or CLIP."""
    return lambda name: write_dual(tmp_path / name, name)


@pytest.fixture
def text_directory(tmp_path: Path) -> Path:
    """A tiny BERT without a pooler."""
    return write_text_encoder(tmp_path / "bert")


@pytest.fixture
def image_directory(tmp_path: Path) -> Callable[..., Path]:
    """A tiny ViT or ResNet."""
    return lambda name, pooler=True: write_image_model(tmp_path / name, name, pooler=pooler)


@pytest.fixture
def gemma_directory(tmp_path: Path) -> Path:
    """A tiny EmbeddingGemma 2 without an audio tower."""
    return write_gemma(tmp_path / "gemma")


@pytest.fixture
def chat_directory(family_directory: Callable[..., Path]) -> Path:
    """A tiny Qwen3-VL whose tokenizer knows a chat, as the published one does."""
    directory = family_directory("qwen3_vl")
    backbone = load_backbone(directory)
    backbone.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    backbone.model.resize_token_embeddings(len(backbone.tokenizer))
    backbone.save(directory)
    for path in directory.glob("model-*.safetensors"):  # the shards before the vocabulary grew
        path.unlink()
    (directory / "model.safetensors.index.json").unlink(missing_ok=True)
    backbone.save(directory)
    return directory
