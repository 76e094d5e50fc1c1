"""Fits the sequence encoder with one setting changed at a time and compares the fits user by user on validation.

    python -m bench.method.encoder_trials DATA [DATA …] --work .bench/encoder --out trials.json --trials negatives-2048

DATA is the directory of a data set, or a file of interactions in it. Features are those of `vlm2rec embed --no-vlm`,
made once for each data set. A trial has 8 epochs, no refit and no export. The last epoch is measured, so that
trials do not differ by the choice of the epoch; with ``--best`` it is chosen as by `fit-encoder`. A trial gives NDCG@10
of the slots alone and of what is served, slots and item-to-item lists together with weights chosen anew, and both as
ratios to the trial ``base`` of the same seed with paired 95 % intervals. Test is not read. A trial is stored when it is
done, and a killed run goes on.
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.measurements import Measurements
from index.lists.item_lists import ItemLists
from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import LeaveOneOut, Targets, popularity
from training.embedding.baseline_job import baseline_embeddings
from training.embedding.store import Embeddings
from training.encoder.fit import fit
from training.encoder.job import split_dataset
from training.encoder.slot_model import SlotModel, slot_layout, stored_vectors, torch_encoder
from training.lists.fit_lists import CandidateLists, ServedValidation, make_lists
from training.lists.list_ranker import ListRanker
from training.lists.validation_pool import ValidationPool
from training.lists.weights import choose_weights
from training.ranking import metrics
from training.ranking.baselines import Ranker
from training.ranking.ranking import rank_targets
from training.ranking.slot_ranker import SlotRanker

BASE: Final = "base"
ALONE, SERVED = "alone", "served"
CUT: Final = 10
TRIALS: Final[Mapping[str, Mapping[str, Any]]] = {
    BASE: {},
    "negatives-2048": {"negatives": 2_048},
    "full-softmax": {"sampled_above": 20_000},
    "temperature-.04": {"temperature": 0.04},
    "temperature-.07": {"temperature": 0.07},
    "width-128": {"width": 128},
    "layers-1": {"layers": 1},
    "layers-3": {"layers": 3},
    "history-20": {"max_history": 20},
    "history-50": {"max_history": 50},
    "shrinkage-2": {"behaviour_shrinkage": 2.0},
    "shrinkage-10": {"behaviour_shrinkage": 10.0},
    "slot-dropout-.15": {"slot_dropout": 0.15},
    "cold-dropout-0": {"cold_dropout": 0.0},
    "behaviour-128": {"behaviour_dim": 128},
    "rate-.002": {"learning_rate": 2e-3},
    "rate-.008": {"learning_rate": 8e-3},
    "decay-.1": {"weight_decay": 0.1},
}
"""Name → what differs from the defaults."""


@dataclass(frozen=True)
class Features:
    """A data set as every trial reads it.

    Attributes:
        name: of the data set.
        dataset: catalogue and interactions.
        embeddings: features without a vision-language model.
        parts: training and validation.
        fingerprint: of the split.
    """

    name: str
    dataset: Dataset
    embeddings: Embeddings
    parts: LeaveOneOut
    fingerprint: str

    @classmethod
    def load(cls, data: Path, work: Path) -> "Features":
        """Read a data set and make its features, once.

        Args:
            data: directory, or a file of interactions in it.
            work: features are kept in WORK/NAME/embeddings.
        """
        directory = data if data.is_dir() else data.parent
        dataset = load_dataset(directory, interactions=None if data.is_dir() else data)
        embeddings, _ = baseline_embeddings(dataset, work / directory.name / "embeddings", again=False)
        split = split_dataset(dataset, 0.0)
        return cls(name_of(data), dataset, embeddings, split.parts, split.fingerprint)

    @cached_property
    def lists(self) -> CandidateLists:
        """Item-to-item lists; no trial changes them.

        Raises:
            SystemExit: no list has an entry.
        """
        config = trial_config({}, self, seed=0, epochs=1)
        counts = popularity(self.parts.train, len(self.dataset))
        findable = counts >= config.min_events
        for vectors in self.embeddings.vectors.values():
            findable |= np.asarray(vectors.any(axis=1))
        layout = slot_layout(config, self.embeddings)
        made = make_lists(layout, self.dataset.texts(), self.embeddings.vectors, findable, self.parts, config)
        if made is None:
            raise SystemExit(f"{self.name}: no item-to-item list has an entry, so nothing is served beside the slots")
        return made


def name_of(data: Path) -> str:
    """Name of a data set in results: that of its directory, with the file of the interactions where one is given."""
    return data.name if data.is_dir() else f"{data.parent.name}-{data.stem}"


def trial_config(changes: Mapping[str, Any], features: Features, *, seed: int, epochs: int) -> EncoderConfig:
    """The defaults with the changes of a trial.

    Args:
        changes: of `TRIALS`.
        features: whose catalogue decides on automatic settings.
        seed: of the fit.
        epochs: largest number of epochs, over which the learning rate falls.
    """
    config = EncoderConfig.model_validate({"epochs": epochs, "seed": seed, "refit": False, **changes})
    return config.for_catalogue(len(features.dataset))


def run_trial(
    features: Features, config: EncoderConfig, work: Path, *, best: bool = False
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Fit once, or resume, and rank the validation users.

    Args:
        features: the data.
        config: of the trial.
        work: directory of this trial's checkpoints; removed at the end.
        best: choose the epoch as `fit-encoder` does; false: take the last one.

    Returns:
        Figures of the trial, and (users,) NDCG@10 of the slots alone and of what is served.
    """
    torch.manual_seed(config.seed)
    lists, parts = features.lists, features.parts
    model = SlotModel(features.embeddings, popularity(parts.train, len(features.dataset)), config)
    mark = f"{features.fingerprint} {config.model_dump_json()}"
    served = ServedValidation(lists, config) if best else None
    validation = parts.validation if best else Targets([], np.zeros(0, dtype=np.int64), [])
    log = fit(
        model,
        parts.train,
        validation,
        config,
        work,
        fingerprint=mark,
        served=served,
        stop_after=None if best else config.epochs,
        report=_report,
    )
    ranker = SlotRanker(stored_vectors(model, config.precision), torch_encoder(model), config.max_history)
    gains = {ALONE: _gains(ranker, ranker.findable, lists, config)}
    weighed = _weighed(ranker, lists, config)
    gains[SERVED] = _gains(ListRanker(weighed, ranker), ranker.findable, lists, config)
    figures = {
        "best_epoch": log.best_epoch + 1,
        "epochs": len(log.epochs),
        "loss": log.epochs[log.best_epoch]["loss"],
        "ndcg@10": {name: float(values.mean()) for name, values in gains.items()},
        "weights": dict(weighed.weights.weights),
        "recency": float(weighed.weights.recency[1]),
        "by_epoch": [[line.get("ndcg@10"), line.get("served_ndcg@10")] for line in log.epochs],
    }
    shutil.rmtree(work)
    return figures, gains


def _weighed(ranker: SlotRanker, candidates: CandidateLists, config: EncoderConfig) -> ItemLists:
    """The lists with weights beside the slots, in the direction that is best without the slots."""
    directed = candidates.directed_alone.ndcg > candidates.symmetric_alone.ndcg
    lists = candidates.directed if directed else candidates.symmetric
    pool = ValidationPool(
        ranker,
        candidates.validation,
        ranker.findable,
        lists,
        config.list_history,
        exclude_seen=config.exclude_seen,
    )
    chosen = choose_weights(pool, config.list_history)
    return ItemLists(len(ranker.findable), tuple(lists[name] for name in pool.names), chosen.weights)


def _gains(
    ranker: Ranker, findable: NDArray[np.bool_], lists: CandidateLists, config: EncoderConfig
) -> NDArray[np.float64]:
    return metrics.gains(rank_targets(ranker, lists.validation, findable, exclude_seen=config.exclude_seen).full, CUT)


def ratio(gains: NDArray[np.float64], base: NDArray[np.float64]) -> list[float]:
    """Ratio of the means over users with its paired 95 % interval.

    Args:
        gains: (users,) NDCG@10 of a trial.
        base: (users,) of the trial to compare with.

    Returns:
        Ratio, lower end, upper end.
    """
    drawn = metrics.resampled_means(np.stack([gains, base], axis=1))
    found = metrics.ratio_interval(gains, base, drawn[:, 0], drawn[:, 1])
    return [round(number, 3) for number in (found.ratio, found.low, found.high)]


def measure(options: argparse.Namespace) -> None:
    """Run every trial that has no result: a trial on all data sets, then the next one."""
    stored = Measurements(options.out, {"epochs": options.epochs, "best": options.best}, fresh=False)
    read: dict[Path, Features] = {}
    wanted = [name for name in options.trials if name != BASE]
    for seed in options.seeds:
        for trial in (BASE, *wanted):
            for data in options.data:
                name = f"{name_of(data)}/{trial}/{seed}"
                if name in stored:
                    continue
                started = time.monotonic()
                if data not in read:
                    read[data] = Features.load(data, options.work)
                    _console.print(f"{read[data].name}: {len(read[data].lists.validation)} validation users")
                config = trial_config(TRIALS[trial], read[data], seed=seed, epochs=options.epochs)
                _console.print(name)
                figures, gains = run_trial(read[data], config, options.work / name, best=options.best)
                kept = options.work / "gains" / f"{name.replace('/', '-')}.npz"
                kept.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(kept, **gains)  # type: ignore[arg-type]  # its stub knows no names
                with np.load(options.work / "gains" / f"{read[data].name}-{BASE}-{seed}.npz") as base:
                    figures["ratios"] = {each: ratio(gains[each], base[each]) for each in (ALONE, SERVED)}
                stored.put(name, figures, took_s=time.monotonic() - started)


def show(path: Path) -> None:
    """Print every stored trial."""
    table = Table("trial", "best epoch", ALONE, SERVED, f"{ALONE} ÷ base", f"{SERVED} ÷ base")
    for name, found in json.loads(path.read_text(encoding="utf-8"))["measurements"].items():
        means, ratios = found[f"ndcg@{CUT}"], found["ratios"]
        printed = ("{:.3f} [{:.3f}, {:.3f}]".format(*ratios[each]) for each in (ALONE, SERVED))
        epoch = f"{found['best_epoch']} of {found['epochs']}"
        table.add_row(name, epoch, f"{means[ALONE]:.4f}", f"{means[SERVED]:.4f}", *printed)
    _console.print(table)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="directories of data sets, or files of interactions in them")
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=[*TRIALS], help="in this order, after the base")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--best", action="store_true", help="choose the epoch as `fit-encoder` does")
    parser.add_argument("--work", type=Path, required=True, help="kept between runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON with every trial")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, store and print."""
    options = arguments(given)
    torch.set_num_threads(1)
    measure(options)
    show(options.out)


def _report(line: Mapping[str, Any]) -> None:
    _console.print(
        f"  epoch {line['epoch'] + 1}: "
        + ", ".join(f"{name} {line[name]:.4f}" for name in ("loss", "ndcg@10", "served_ndcg@10") if name in line)
    )


_console = Console(highlight=False, soft_wrap=True)

if __name__ == "__main__":
    main()
