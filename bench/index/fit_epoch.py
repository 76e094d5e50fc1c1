"""Times one epoch of the sequence encoder over a million interactions.

    python -m bench.index.fit_epoch                                          # less than a minute on two cores
    python -m bench.index.fit_epoch --interactions 20000 --items 500 --out /tmp/fit.json

Made histories and made modality vectors (text 256, image 128 components), the default configuration. Times the fit
alone, with the drawing of windows and without validation, as `vlm2rec fit-encoder` does it after every epoch.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from bench.measurements import commit, machine
from training.config.encoder_config import EncoderConfig
from training.data.sequences import Sequences, Targets, popularity
from training.embedding.store import Embeddings
from training.encoder.fit import fit
from training.encoder.slot_model import SlotModel

OUT = Path(__file__).parents[1] / "results" / "fit-epoch.json"
_EVENTS_A_USER = 20
_WIDTHS = {"text": 256, "image": 128}


def made_histories(interactions: int, items: int, rng: np.random.Generator) -> Sequences:
    """Users of 20 events each on average, items by a power law."""
    users = max(1, interactions // _EVENTS_A_USER)
    cuts = np.sort(rng.integers(0, interactions + 1, users - 1))
    offsets = np.concatenate([[0], cuts, [interactions]]).astype(np.int64)
    share = 1 / np.arange(1, items + 1)
    rows = np.searchsorted(np.cumsum(share / share.sum()), rng.random(interactions)).clip(max=items - 1)
    return Sequences([f"u{user}" for user in range(users)], offsets, rng.permutation(items)[rows].astype(np.int64))


def made_embeddings(items: int, rng: np.random.Generator) -> Embeddings:
    """Unit vectors in all directions."""

    def units(width: int) -> NDArray[np.float32]:
        rows = rng.standard_normal((items, width), dtype=np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    return Embeddings([f"i{item}" for item in range(items)], {name: units(width) for name, width in _WIDTHS.items()})


def measured(interactions: int, items: int, threads: int) -> dict[str, Any]:
    """Fit one epoch.

    Args:
        interactions: events of all histories.
        items: of the catalogue.
        threads: of PyTorch.

    Returns:
        ``seconds`` of the epoch and its loss, the sizes and the configuration.
    """
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    train, config = made_histories(interactions, items, rng), EncoderConfig(epochs=1, patience=1)
    torch.manual_seed(config.seed)
    model = SlotModel(made_embeddings(items, rng), popularity(train, items), config)
    nobody = Targets([], np.zeros(0, dtype=np.int64), [])
    with tempfile.TemporaryDirectory() as place, Progress() as bar:
        task = bar.add_task("epoch", total=1.0)
        started = time.perf_counter()
        log = fit(
            model, train, nobody, config, Path(place) / "fit", fingerprint="bench",
            step_done=lambda share: bar.update(task, completed=share),
        )  # fmt: skip
        seconds = time.perf_counter() - started
    return {
        "interactions": interactions,
        "items": items,
        "threads": threads,
        "seconds": round(seconds, 3),
        "loss": log.epochs[0]["loss"],
        "config": config.model_dump(mode="json"),
        "machine": machine(),
        "commit": commit(),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--interactions", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = measured(options.interactions, options.items, options.threads)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{found['seconds']:.1f} s an epoch of {found['interactions']:,} interactions; written to {options.out}")


if __name__ == "__main__":
    main()
