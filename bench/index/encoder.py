"""Exports a sequence encoder with random weights to ONNX, of the default size of `fit-encoder`.

    python -m bench.index.encoder .bench/encoder.onnx

It is a program of its own, so that the bench itself never loads torch beside the servers it measures.
"""

import sys
from pathlib import Path

import torch

from bench.index.catalogues import LAYOUT
from training.config.encoder_config import EncoderConfig
from training.encoder.model import SequenceEncoder
from training.encoder.onnx_export import export_encoder

MAX_HISTORY = 10  # what `vlm2rec fit-encoder` takes by default
_LEARNED = 0.04  # of the first weights: the query stays near the mean of its history, as a trained one does


def main() -> None:
    """Export to the path given."""
    config = EncoderConfig()
    write_encoder(Path(sys.argv[1]), config.width, config.layers)


def write_encoder(path: Path, width: int, layers: int) -> None:
    """Export an encoder with random weights.

    Args:
        path: of the ONNX file; its directory is made.
        width: features inside the transformer.
        layers: transformer blocks.
    """
    torch.manual_seed(0)
    encoder = SequenceEncoder(LAYOUT.dim, MAX_HISTORY, width=width, layers=layers, heads=2).eval()
    with torch.no_grad():
        encoder.leave.weight.mul_(_LEARNED)
    path.parent.mkdir(parents=True, exist_ok=True)
    export_encoder(encoder, LAYOUT, path)


if __name__ == "__main__":
    main()
