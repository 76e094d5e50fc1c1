"""Trains RecTools' SASRec in its own environment, on the files that `bench/method/sasrec.py` names.

Epochs are chosen on validation (NDCG@10, history masked); the scores of the test targets are those of the best epoch.
"""

import json
import sys

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

_CUT = 10


def main() -> None:
    """`rectools_sasrec.py IN.npz OUT.npz SETTINGS`; a line of JSON on stdout for every look at validation."""
    read, write, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(settings["threads"])
    seed_everything(settings["seed"])
    with np.load(read) as given:
        arrays = dict(given)
    items = int(arrays["items"])
    train = _dataset(arrays["train_lengths"], arrays["train_rows"])
    model = SASRecModel(
        session_max_len=settings["history"],
        n_blocks=2,
        n_heads=2,
        n_factors=settings["factors"],
        dropout_rate=0.2,
        loss="softmax",
        lr=settings["rate"],
        batch_size=128,
        epochs=settings["every"],
    )
    best, worse = -1.0, 0
    for done in range(settings["every"], settings["epochs"] + 1, settings["every"]):
        model.fit_partial(train, min_epochs=settings["every"], max_epochs=settings["every"])
        found = _ndcg(_scores(model, arrays, "validation", items), arrays)
        print(json.dumps({"epoch": done, "validation ndcg@10": found}), flush=True)
        if found > best:
            best, worse = found, 0
            np.savez(write, scores=_scores(model, arrays, "target", items), known=_known(arrays, items), epoch=done)
        else:
            worse += 1
            if worse == settings["patience"]:
                break


def _dataset(lengths: np.ndarray, rows: np.ndarray) -> Dataset:
    """Histories one after the other as RecTools' interactions; the order stands for time."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    times = pd.to_datetime(np.arange(len(rows)), unit="s")
    frame = pd.DataFrame({Columns.User: users, Columns.Item: rows, Columns.Weight: 1.0, Columns.Datetime: times})
    return Dataset.construct(frame)


def _scores(model: SASRecModel, arrays: dict[str, np.ndarray], name: str, items: int) -> np.ndarray:
    """(targets, items) float32; 0 for an item that the training has not seen, and for a history of such items."""
    lengths, rows = arrays[f"{name}_lengths"], arrays[f"{name}_rows"]
    dataset, users = _dataset(lengths, rows), np.arange(len(lengths))
    known = int(_known(arrays, items).sum())
    made = model.recommend(users, dataset, k=known, filter_viewed=False, on_unsupported_targets="ignore")
    scores = np.zeros((len(lengths), items), dtype=np.float32)
    scores[made[Columns.User].to_numpy(), made[Columns.Item].to_numpy()] = made[Columns.Score].to_numpy()
    return scores


def _known(arrays: dict[str, np.ndarray], items: int) -> np.ndarray:
    return np.bincount(arrays["train_rows"], minlength=items) > 0


def _ndcg(scores: np.ndarray, arrays: dict[str, np.ndarray]) -> float:
    """Mean NDCG@10 over the validation targets, for choosing only."""
    targets, known = arrays["validation_targets"], _known(arrays, scores.shape[1])
    users = np.arange(len(targets))
    rivals = np.tile(known, (len(targets), 1))
    rivals[np.repeat(users, arrays["validation_whole_lengths"]), arrays["validation_whole_rows"]] = False
    rivals[users, targets] = False
    ranks = (rivals & (scores >= scores[users, targets][:, None])).sum(axis=1)
    return float(np.where((ranks < _CUT) & known[targets], 1 / np.log2(ranks + 2), 0).mean())


if __name__ == "__main__":
    main()
