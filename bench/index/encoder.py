"""Makes the sequence encoder of the benches: random weights, of the default size of `fit-encoder`, as ONNX.

    python -m bench.index.encoder .bench/encoder.onnx

Benches call :func:`made_encoder`. It runs this as a program of its own where no encoder of that size is kept, so that
the bench itself never loads torch beside the servers it measures.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.index.catalogues import LAYOUT
from training.config.encoder_config import EncoderConfig

MAX_HISTORY = 10  # what `vlm2rec fit-encoder` takes by default
_ROOT: Final = Path(__file__).parents[2]
_HEADS: Final = 2
_LEARNED = 0.04  # of the first weights: the query stays near the mean of its history, as a trained one does


def made_encoder(work: Path) -> Path:
    """The encoder of the benches, made if the one that is kept there is of another size, or of an unknown one.

    Args:
        work: gets ``encoder.onnx``, with its size in ``encoder.json``.

    Raises:
        subprocess.CalledProcessError: it cannot be made, as without PyTorch.
    """
    path = work / "encoder.onnx"
    record = record_of(path)
    if not path.exists() or not record.exists() or json.loads(record.read_text()) != shape():
        command = [sys.executable, "-m", "bench.index.encoder", str(path.absolute())]
        subprocess.run(command, cwd=_ROOT, check=True)
    return path


def shape() -> dict[str, float]:
    """All that the weights of an encoder of the benches are made from."""
    config = EncoderConfig()
    return {
        "width": config.width,
        "layers": config.layers,
        "heads": _HEADS,
        "max_history": MAX_HISTORY,
        "dim": LAYOUT.dim,
        "learned": _LEARNED,
    }


def size_name() -> str:
    """Layers and width of an encoder of the benches, as ``2 x 64``."""
    config = EncoderConfig()
    return f"{config.layers} x {config.width}"


def record_of(encoder: Path) -> Path:
    """Where the size of an encoder is written."""
    return encoder.with_suffix(".json")


def main() -> None:
    """Export to the path given."""
    path, made = Path(sys.argv[1]), shape()
    record = record_of(path)
    record.unlink(missing_ok=True)  # so that a broken export is made again
    write_encoder(path, int(made["width"]), int(made["layers"]))
    record.write_text(json.dumps(made) + "\n")


def write_encoder(path: Path, width: int, layers: int) -> None:
    """Export an encoder with random weights.

    Args:
        path: of the ONNX file; its directory is made.
        width: features inside the transformer.
        layers: transformer blocks.
    """
    import torch

    from training.encoder.model import SequenceEncoder
    from training.encoder.onnx_export import export_encoder

    torch.manual_seed(0)
    encoder = SequenceEncoder(LAYOUT.dim, MAX_HISTORY, width=width, layers=layers, heads=_HEADS).eval()
    with torch.no_grad():
        encoder.leave.weight.mul_(_LEARNED)
    path.parent.mkdir(parents=True, exist_ok=True)
    export_encoder(encoder, LAYOUT, path)


if __name__ == "__main__":
    main()
