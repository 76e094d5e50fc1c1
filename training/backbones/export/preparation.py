"""Writes what prepares texts and pictures for exported towers: tokenizer, image processor, and every other step."""

from pathlib import Path
from typing import Any

from training.backbones.efficientnet_lite import SIDE
from training.backbones.export.tower_graph import TowerEncoder
from training.backbones.items.dual_encoder import DualEncoder
from training.backbones.items.text_blocks import TEXT_BLOCKS_FILE, TextBlocks
from training.backbones.items.towers import ImageTower
from training.backbones.prompts import PLAIN_TEXT
from training.data.picture_reader import longest_side

TOKENIZER_DIRECTORY = "tokenizer"
PROCESSOR_DIRECTORY = "image_processor"


def write_text_preparation(encoder: TowerEncoder, blocks: TextBlocks | None, directory: Path) -> dict[str, Any]:
    """Write the tokenizer, and the blocks of TF-IDF if the text head reads them.

    Args:
        encoder: of the run.
        blocks: of the run.
        directory: of the export.

    Returns:
        JSON-able: every step from an item's text to the inputs, in its order.
    """
    tower = encoder if isinstance(encoder, DualEncoder) else encoder.text
    tower.tokenizer.save_pretrained(directory / TOKENIZER_DIRECTORY)
    padded = isinstance(encoder, DualEncoder) and encoder.padded_length is not None
    steps: dict[str, Any] = {
        "replace": dict(PLAIN_TEXT),
        "lower_case": padded,
        "tokenizer": TOKENIZER_DIRECTORY,
        "max_tokens": tower.max_tokens,
        "padding_side": tower.tokenizer.padding_side,
        "pad_to": encoder.padded_length if isinstance(encoder, DualEncoder) and padded else "longest",
    }
    if blocks is None:
        return steps
    blocks.save(directory / TEXT_BLOCKS_FILE)
    return steps | {"terms": {"file": TEXT_BLOCKS_FILE, "length": blocks.directions.shape[1]}}


def write_picture_preparation(encoder: TowerEncoder, directory: Path) -> dict[str, Any]:
    """Write the image processor, if it is one of transformers.

    Args:
        encoder: of the run.
        directory: of the export.

    Returns:
        JSON-able: every step from a picture to the inputs, in its order.
    """
    steps: dict[str, Any] = {
        "frame": "first",
        "orientation": "EXIF",
        "transparency": "over white",
        "colours": "RGB",
        "shrink": {"longest_side": longest_side(encoder.picture_pixels), "resampling": "box"},
    }
    tower = encoder if isinstance(encoder, DualEncoder) else encoder.image
    if isinstance(tower, DualEncoder | ImageTower):
        tower.image_processor.save_pretrained(directory / PROCESSOR_DIRECTORY)
        return steps | {"image_processor": PROCESSOR_DIRECTORY}
    size = {"height": SIDE, "width": SIDE}
    return steps | {"resize": {**size, "resampling": "bicubic"}, "subtract": 127, "divide": 128}
