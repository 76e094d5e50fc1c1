"""Measures what impressions as extra negatives gain on simulated users, with full and with sampled softmax.

`python -m bench.method.impressions` prints a row for each softmax and number of negatives with validation NDCG@10 of
each seed, and writes them to a file. Users prefer two of 20 categories and are shown items by popularity; each item
that is shown is viewed with a probability that depends on its category alone.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import torch

from bench.measurements import Measurements
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import popularity
from training.embedding.store import Embeddings
from training.encoder.fit import fit
from training.encoder.job import split_dataset
from training.encoder.slot_model import SlotModel

CATEGORIES: Final = 20
PREFERRED: Final = 2
SHOWN: Final = 136  # a user
VIEWED_PREFERRED, VIEWED_OTHER = 0.35, 0.022
_START: Final = 1_790_000_000
_STEP_S: Final = 60
_FOLLOWED_S: Final = 10


def write_shop(directory: Path, *, users: int, items: int, seed: int) -> tuple[int, int]:
    """Write a data set of impressions and views.

    Args:
        directory: an existing, empty directory.
        users: number of users.
        items: number of items; item i is of category i mod 20, and the i-th most popular.
        seed: of everything random.

    Returns:
        The numbers of impressions and of views.
    """
    rng = np.random.default_rng(seed)
    category = np.arange(items) % CATEGORIES
    share = 1 / np.arange(1, items + 1) ** 0.7
    lines, impressions, views = ["user_id,item_id,timestamp,type"], 0, 0
    for user in range(users):
        preferred = rng.choice(CATEGORIES, PREFERRED, replace=False)
        shown = rng.choice(items, SHOWN, replace=False, p=share / share.sum())
        chance = np.where(np.isin(category[shown], preferred), VIEWED_PREFERRED, VIEWED_OTHER)
        for place, (item, viewed) in enumerate(zip(shown.tolist(), rng.random(SHOWN) < chance, strict=True)):
            at = _START + place * _STEP_S
            lines.append(f"u{user},i{item},{at},impression")
            impressions += 1
            if viewed:
                lines.append(f"u{user},i{item},{at + _FOLLOWED_S},view")
                views += 1
    (directory / "items.csv").write_text("item_id,title\n" + "".join(f"i{item},{item}\n" for item in range(items)))
    (directory / "interactions.csv").write_text("\n".join(lines) + "\n")
    (directory / "events.toml").write_text('weight_by = "type"\n')
    return impressions, views


def validation_ndcg(dataset: Dataset, config: EncoderConfig, directory: Path) -> float:
    """Validation NDCG@10 of the best epoch; higher is better.

    Args:
        dataset: impressions and views.
        config: how to fit; its number of extra negatives is the one to measure.
        directory: of the checkpoints, of this fit alone.
    """
    parts = split_dataset(dataset, 0.0, impressions=config.impression_negatives).parts
    ids = dataset.item_ids()
    embeddings = Embeddings(ids, {"text": np.eye(len(ids), dtype=np.float32)})  # not used: behaviour alone ranks
    torch.manual_seed(config.seed)
    model = SlotModel(embeddings, popularity(parts.train, len(ids)), config)
    log = fit(model, parts.train, parts.validation, config, directory, fingerprint="bench")
    return float(log.epochs[log.best_epoch]["ndcg@10"])


def main() -> int:
    """Print the table, and write each fit at once, so that a run which ended goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_500)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--negatives", type=int, nargs="+", default=[0, 5, 20])
    parser.add_argument("--out", type=Path, default=Path("bench/results/impressions.json"))
    parser.add_argument("--fresh", action="store_true", help="begin anew, whatever the file holds")
    options = parser.parse_args()
    settings = {name: value for name, value in vars(options).items() if name not in {"out", "fresh"}}
    measurements = Measurements(options.out, settings, fresh=options.fresh)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "shop").mkdir()
        impressions, views = write_shop(home / "shop", users=options.users, items=options.items, seed=0)
        sys.stdout.write(f"{views:,} views after {impressions:,} impressions\n")
        dataset = load_dataset(home / "shop")
        for softmax, above in (("full", 1_000_000), ("sampled", 0)):
            for count in options.negatives:
                keys = [f"{softmax} softmax/{count} impressions/seed {seed}" for seed in range(options.seeds)]
                for seed, key in enumerate(keys):
                    if key in measurements:
                        continue
                    config = EncoderConfig(
                        slots=("behaviour",), epochs=options.epochs, impression_negatives=count, seed=seed,
                        sampled_above=above, negatives=64, list_neighbours=0,
                    )  # fmt: skip
                    began = time.monotonic()
                    found = validation_ndcg(dataset, config, home / f"{softmax}-{count}-{seed}")
                    measurements.put(key, {"ndcg@10": found}, took_s=time.monotonic() - began)
                figures = [measurements[key]["ndcg@10"] for key in keys]
                shown = ", ".join(f"{figure:.4f}" for figure in figures)
                sys.stdout.write(f"{softmax} softmax, {count} impressions: {shown}; mean {np.mean(figures):.4f}\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
