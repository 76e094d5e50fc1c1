"""Tiny checkpoints of encoders of items."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.backbones.item_models import write_dual, write_image_model, write_text_encoder


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
