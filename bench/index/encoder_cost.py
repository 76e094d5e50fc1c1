"""Measures what sequence encoders of several widths and layers cost an answer: processor time under ONNX Runtime.

    python -m bench.index.encoder_cost

The sizes are 2 layers of 128, the default of `fit-encoder` (2 of 64) and half of that (1 of 64).
They run in turns in one thread on the same full histories, so only the size differs. Time is that of the process on a
processor, the median over the rounds. Writes JSON.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from bench.index.catalogues import LAYOUT
from bench.index.encoder import MAX_HISTORY, write_encoder
from bench.measurements import commit, machine
from index.search.encoder import OnnxSequenceEncoder
from training.config.encoder_config import EncoderConfig

_DEFAULT: Final = EncoderConfig()
SIZES: Final = ((128, 2), (_DEFAULT.width, _DEFAULT.layers), (_DEFAULT.width, 1))
BATCHES: Final = (1, 4, 16)
_CALLS_OF_A_ROUND: Final = 20


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("bench/results/encoder-cost.json"))
    options = parser.parse_args()
    found = {
        "rounds": options.rounds,
        "microseconds_an_answer": cost(options.rounds),
        "machine": machine(),
        "load_average": round(os.getloadavg()[0], 2),
        "commit": commit(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def cost(rounds: int) -> dict[str, Any]:
    """Microseconds of processor time an answer, by size of the batch and of the encoder."""
    names = {(width, layers): f"{layers} x {width}" for width, layers in SIZES}
    with tempfile.TemporaryDirectory() as directory:
        encoders = {}
        for size, name in names.items():
            write_encoder(Path(directory, f"{name}.onnx"), *size)
            encoders[name] = OnnxSequenceEncoder(Path(directory, f"{name}.onnx"))
    found: dict[str, Any] = {}
    for batch in BATCHES:
        histories = list(np.random.default_rng(0).normal(size=(batch, MAX_HISTORY, LAYOUT.dim)).astype(np.float32))
        times: dict[str, list[float]] = {name: [] for name in encoders}
        for _ in range(rounds):
            for name, encoder in encoders.items():
                began = time.process_time()
                for _ in range(_CALLS_OF_A_ROUND):
                    encoder.encode(histories)
                times[name].append((time.process_time() - began) / (_CALLS_OF_A_ROUND * batch) * 1e6)
        found[f"batch {batch}"] = {name: round(median(spent), 1) for name, spent in times.items()}
    return found


if __name__ == "__main__":
    main()
