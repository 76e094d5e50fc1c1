"""Trains RecTools' SASRec in its own environment, on the files that `bench/method/sasrec.py` names.

Epochs are chosen on validation (NDCG@10, history masked); the vectors of the test targets are those of the best epoch.
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
from rectools.models.nn.transformers.ligr import LiGRLayers
from rectools.models.nn.transformers.sasrec import SASRecTransformerLayers

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
    gated = settings["layers"] == "ligr"
    model = SASRecModel(
        session_max_len=settings["history"],
        n_blocks=settings["blocks"],
        n_heads=settings["heads"],
        n_factors=settings["factors"],
        dropout_rate=settings["dropout"],
        loss=settings["loss"],
        n_negatives=settings["negatives"],
        use_key_padding_mask=gated,
        transformer_layers_type=LiGRLayers if gated else SASRecTransformerLayers,
        transformer_layers_kwargs={"ff_factors_multiplier": settings["feed"]} if gated else None,
        lr=settings["rate"],
        batch_size=128,
        epochs=settings["every"],
    )
    best, worse = -1.0, 0
    for done in range(settings["every"], settings["epochs"] + 1, settings["every"]):
        model.fit_partial(train, min_epochs=settings["every"], max_epochs=settings["every"])
        found = _ndcg(*_embedded(model, arrays, "validation", items), arrays)
        print(json.dumps({"epoch": done, "validation ndcg@10": found}), flush=True)
        if found > best:
            best, worse = found, 0
            users, all_items = _embedded(model, arrays, "target", items)
            np.savez(write, users=users, items=all_items, known=_known(arrays, items), epoch=done)
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


def _embedded(
    model: SASRecModel, arrays: dict[str, np.ndarray], name: str, items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Users (targets, d) and items (items, d), float32, whose inner products are the scores.

    A row is 0 for an item that the training has not seen, and for a history of such items. All scores of all targets
    do not fit into memory, and the public `recommend` would make a table of them.
    """
    dataset = _dataset(arrays[f"{name}_lengths"], arrays[f"{name}_rows"])
    count, preparator = len(arrays[f"{name}_lengths"]), model.data_preparator
    known_part = preparator.transform_dataset_u2i(dataset, np.arange(count))
    loader = preparator.get_dataloader_recommend(known_part, 256)
    some_users, some_items = model.lightning_model._get_user_item_embeddings(loader, None)  # noqa: SLF001
    users = np.zeros((count, some_users.shape[1]), dtype=np.float32)
    users[np.asarray(known_part.user_id_map.external_ids, dtype=np.int64)] = some_users.numpy()
    found, padding = np.zeros((items, some_users.shape[1]), dtype=np.float32), preparator.n_item_extra_tokens
    found[np.asarray(preparator.item_id_map.external_ids[padding:], dtype=np.int64)] = some_items.numpy()[padding:]
    return users, found


def _known(arrays: dict[str, np.ndarray], items: int) -> np.ndarray:
    return np.bincount(arrays["train_rows"], minlength=items) > 0


def _ndcg(users: np.ndarray, items: np.ndarray, arrays: dict[str, np.ndarray]) -> float:
    """Mean NDCG@10 over the validation targets, for choosing only."""
    targets, known = arrays["validation_targets"], _known(arrays, len(items))
    ends, seen, gains = np.cumsum(arrays["validation_whole_lengths"]), arrays["validation_whole_rows"], 0.0
    for user, (target, end, length) in enumerate(zip(targets, ends, arrays["validation_whole_lengths"], strict=True)):
        scores = np.where(known, items @ users[user], -np.inf)
        own = scores[target]
        scores[seen[end - length : end]] = -np.inf
        scores[target] = -np.inf
        rank = int((scores >= own).sum())
        gains += 1 / np.log2(rank + 2) if rank < _CUT and known[target] else 0.0
    return gains / max(len(targets), 1)


if __name__ == "__main__":
    main()
