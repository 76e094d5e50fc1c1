"""Trains RecTools' SASRec on item ids and ranks with it on our split, targets and protocol.

`python -m bench.method.sasrec DATA --out ranks.parquet`, then `vlm2rec evaluate … --ranks ranks.parquet`. It trains in
an environment of its own (numpy < 2) and returns scores; the code that ranks our own systems ranks them. RecTools
learns only the newest events of a session, so histories are cut into windows that share one event: every event is
learned as a next item, as with our encoder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.serving.environments import python_for
from training.data.dataset import load_dataset
from training.data.sequences import Sequences, Targets
from training.encoder.job import split_dataset
from training.evaluation.evaluate import TargetSet, rank_sets, target_sets
from training.ranking.saved_ranks import save_ranks

NAME = "SASRec on IDs (RecTools)"
_PEER = Path(__file__).parents[1] / "peers" / "rectools_sasrec.py"


class GivenScores:
    """Scores of targets in their order, block by block; asked once from the first target to the last.

    Args:
        scores: (targets, n) float32.
    """

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self._scores, self._done = scores, 0

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32 of the next B targets."""
        start = self._done
        self._done += len(histories)
        return self._scores[start : self._done]


def windows(train: Sequences, history: int) -> list[NDArray[np.int64]]:
    """Histories cut from their end into windows of ``history`` + 1 events, each sharing one event with the next."""
    return [
        rows[max(0, end - history - 1) : end]
        for rows in map(train.of, range(len(train)))
        for end in range(len(rows), 1, -history)
    ]


def main() -> int:
    """Train, rank, and write the file of ranks."""
    options = _options()
    dataset = load_dataset(options.data, interactions=options.interactions)
    split = split_dataset(dataset, options.cold_items)
    part = target_sets(split, on_validation=options.validation, most=options.targets)[0]
    with tempfile.TemporaryDirectory() as place:
        read, write = Path(place) / "in.npz", Path(place) / "out.npz"
        cut = windows(split.parts.train, options.history)
        _write(read, cut, split.parts.validation, part, len(dataset), options.history)
        names = ("history", "factors", "rate", "epochs", "every", "patience", "seed", "threads")
        settings = json.dumps({name: getattr(options, name) for name in names})
        subprocess.run([python_for("rectools"), _PEER, read, write, settings], check=True)
        with np.load(write) as made:
            scores, known, epoch = made["scores"], made["known"], int(made["epoch"])
    ranked = rank_sets([part], {NAME: (GivenScores(scores), known)})
    save_ranks(options.out, ranked)
    row = ranked[0].measured().row(NAME)
    print(f"{NAME}, epoch {epoch}, {part.name}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.values.items()))
    return 0


def _write(
    path: Path, cut: list[NDArray[np.int64]], validation: Targets, part: TargetSet, items: int, history: int
) -> None:
    newest = {
        "train": cut,
        "validation_whole": validation.histories,
        "validation": [rows[-history:] for rows in validation.histories],
        "target": [rows[-history:] for rows in part.targets.histories],
    }
    arrays = {f"{name}_lengths": np.array([len(rows) for rows in found]) for name, found in newest.items()}
    arrays |= {f"{name}_rows": np.concatenate(found) for name, found in newest.items()}
    np.savez(path, items=items, validation_targets=validation.targets, **arrays)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--interactions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--validation", action="store_true", help="rank the validation targets instead of test")
    parser.add_argument("--targets", type=int, help="at most so many, as for `vlm2rec evaluate`")
    parser.add_argument("--cold-items", type=float, default=0.0, help="as encoder.cold_items of the run beside it")
    parser.add_argument("--history", type=int, default=10)
    parser.add_argument("--factors", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--every", type=int, default=3, help="epochs between two looks at validation")
    parser.add_argument("--patience", type=int, default=4, help="looks without a better one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
