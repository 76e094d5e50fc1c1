"""Trains RecTools' SASRec on item ids and ranks with it on our split, targets and protocol.

`python -m bench.method.sasrec DATA --out ranks.parquet`, then `vlm2rec evaluate … --ranks ranks.parquet`. It trains in
an environment of its own (numpy < 2) and returns vectors; the code that ranks our own systems ranks them. RecTools
learns only the newest events of a session, so histories are cut into windows that share one event: every event is
learned as a next item, as with our encoder.

`--layers ligr --loss sampled_softmax` is eSASRec (arXiv 2508.06450). `--published NAME` takes the settings that the
authors of that paper chose for a data set, `toys` or `sports`, with the layers of SASRec or of eSASRec as asked for.
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
from training.data.sequences import Sequences, Targets, evenly_spaced
from training.encoder.job import split_dataset
from training.evaluation.evaluate import TargetSet, rank_sets, target_sets
from training.ranking.saved_ranks import save_ranks

NAMES = {"sasrec": "SASRec on IDs (RecTools)", "ligr": "eSASRec on IDs (RecTools)"}
"""Row label of each kind of layers."""

_SHARED = {"history": 50, "factors": 64, "blocks": 1, "heads": 1, "dropout": 0.2, "loss": "sampled_softmax"}
PUBLISHED: dict[str, dict[str, object]] = {
    "toys": _SHARED | {"feed": 1, "negatives": 256, "rate": 1e-3, "epochs": 200, "patience": 17},
    "sports": _SHARED | {"feed": 2, "negatives": 256, "rate": 1e-3, "epochs": 200, "patience": 17},
}
"""Settings by data set, from the table of hyperparameters published with arXiv 2508.06450.

Its patience is 50 epochs; ours counts looks at validation, one in three epochs.
"""

_VALIDATION_USERS = 5_000  # of the looks at validation, as EncoderConfig.validation_users
_PEER = Path(__file__).parents[1] / "peers" / "rectools_sasrec.py"


class GivenVectors:
    """Scores of targets in their order, block by block; asked once from the first target to the last.

    Args:
        users: (targets, d) float32.
        items: (n, d) float32; a score is an inner product of the two.
    """

    def __init__(self, users: NDArray[np.float32], items: NDArray[np.float32]) -> None:
        self._users, self._items, self._done = users, items, 0

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32 of the next B targets."""
        start = self._done
        self._done += len(histories)
        return np.asarray(self._users[start : self._done] @ self._items.T, dtype=np.float32)


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
        names = (
            *("history", "factors", "blocks", "heads", "dropout", "layers", "feed", "loss", "negatives"),
            *("rate", "epochs", "every", "patience", "seed", "threads"),
        )
        settings = json.dumps({name: getattr(options, name) for name in names})
        subprocess.run([python_for("rectools"), _PEER, read, write, settings], check=True)
        with np.load(write) as made:
            given, known, epoch = GivenVectors(made["users"], made["items"]), made["known"], int(made["epoch"])
    name = NAMES[options.layers]
    ranked = rank_sets([part], {name: (given, known)})
    save_ranks(options.out, ranked)
    row = ranked[0].measured().row(name)
    print(f"{name}, epoch {epoch}, {part.name}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.values.items()))
    return 0


def _write(
    path: Path, cut: list[NDArray[np.int64]], validation: Targets, part: TargetSet, items: int, history: int
) -> None:
    some = evenly_spaced(validation, _VALIDATION_USERS)
    newest = {
        "train": cut,
        "validation_whole": some.histories,
        "validation": [rows[-history:] for rows in some.histories],
        "target": [rows[-history:] for rows in part.targets.histories],
    }
    arrays = {f"{name}_lengths": np.array([len(rows) for rows in found]) for name, found in newest.items()}
    arrays |= {f"{name}_rows": np.concatenate(found) for name, found in newest.items()}
    np.savez(path, items=items, validation_targets=some.targets, **arrays)


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
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--layers", choices=sorted(NAMES), default="sasrec")
    parser.add_argument("--feed", type=int, default=4, help="width of the feed-forward part of ligr layers, × factors")
    parser.add_argument("--loss", choices=("softmax", "sampled_softmax"), default="softmax")
    parser.add_argument("--negatives", type=int, default=256, help="uniform negatives of the sampled softmax")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--every", type=int, default=3, help="epochs between two looks at validation")
    parser.add_argument("--patience", type=int, default=4, help="looks without a better one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--published", choices=sorted(PUBLISHED), help="settings published for this data set")
    chosen = parser.parse_args()
    if chosen.published:
        parser.set_defaults(**PUBLISHED[chosen.published])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
