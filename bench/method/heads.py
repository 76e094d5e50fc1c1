"""Compares losses on frozen backbones by direct ranking: variants, three seeds, paired intervals over users.

    python -m bench.method.heads DATA --interactions FILE --work .bench/heads/films --out heads.json
    python -m bench.method.heads DATA --work .bench/heads/films --variants sft-names r2-names --seeds 0 1 2 --test

Each unit is a run of `vlm2rec train --preset towers-minilm` (the extra `towers`) and the NDCG@10 of ranking every
validation user by its vectors, with ``--test`` also every test user. Choose on validation, then read test once. The
backbone's vectors are made once and copied to the other runs. It can be killed at any moment and continues where it
ended; a unit lies in WORK/VARIANT/SEED.
"""

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.measurements import commit
from bench.method.method_plan import R1, R3, RELATION_TEMPERATURES, SFT, relations
from bench.method.method_readings import FUSED, POPULARITY, Reading, Readings
from training.backbones.trained_model import FEATURES_DIRECTORY, TRAINING_DIRECTORY, TrainedModel
from training.config.run_config import CONFIG_FILE, load_config, to_toml
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import Targets, popularity
from training.encoder.job import split_dataset
from training.evaluation.vlm_systems import TRAINED, direct_systems
from training.finetune.trainer import TrainingProgress, train_vlm
from training.ranking import metrics
from training.ranking.baselines import Popularity, Ranker
from training.ranking.ranking import rank_targets

PRESET: Final = "towers-minilm"
CUT: Final = 10
VALIDATION, TEST = "validation", "test"
_NO_NAMES: Final[Mapping[str, Any]] = {"vlm.heads.text_terms": 0}
_DEFAULT_LOSS: Final[Mapping[str, Any]] = {
    "loss.wpcl_kind": "margin", "loss.alpha": 1.0, "loss.weak_by": "ema", "loss.crtr_weight": 0.1,
}  # fmt: skip
_GAPS: Final = ("one_sided", "auc")
VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "sft": {**SFT, **_NO_NAMES},
    "sft-names": SFT,
    "default-names": _DEFAULT_LOSS,
    "r2": _NO_NAMES,
    "r2-names": {},
    "r1-.12-names": {**R1, "loss.negative_shift": 0.12},
    "r1-.06-names": {**R1, "loss.negative_shift": 0.06},
    "r3-names": R3,
    **{f"gap-{kind}-names": {**_DEFAULT_LOSS, "loss.weak_by": "auc", "loss.gap_kind": kind} for kind in _GAPS},
    **{f"r2-crtr-{temperature:g}-names": relations(temperature) for temperature in RELATION_TEMPERATURES},
    "sft-sum-names": {**SFT, "loss.fusion": "sum"},
    "r2-sum-names": {"loss.fusion": "sum"},
}
"""Name → what differs from the preset, which is R2 with names (docs/experiments/vlm.md)."""
_SAME_FUSION: Final = (name for name in VARIANTS if name.startswith(("r1-", "r3-", "gap-", "r2-crtr-")))
PAIRS: Final = (
    *(("r2-names", "sft-names"), ("r2-names", "sft"), ("default-names", "sft-names"), ("r2", "sft")),
    *((name, "sft-names") for name in _SAME_FUSION),
    ("r2-sum-names", "sft-sum-names"),
)
"""Ratios to print, of those that were run."""


@dataclass(frozen=True)
class HeadsData:
    """A data set with its held-out events.

    Attributes:
        dataset: catalogue and interactions.
        train: histories that are trained on.
        parts: part → its users' next items.
    """

    dataset: Dataset
    train: Any
    parts: Mapping[str, Targets]

    @classmethod
    def load(cls, data: Path, interactions: Path | None) -> "HeadsData":
        """Read and split as `vlm2rec train` does."""
        dataset = load_dataset(data, interactions=interactions)
        parts = split_dataset(dataset, 0.0).parts
        return cls(dataset, parts.train, {VALIDATION: parts.validation, TEST: parts.test})


def run_unit(world: HeadsData, unit: Path, overrides: Mapping[str, Any], features: Path | None) -> TrainedModel:
    """Train, or resume; a unit whose configuration has changed is trained again.

    Args:
        world: the data.
        unit: directory of the run.
        overrides: of the preset.
        features: the backbone's vectors of another unit; None: encode them.
    """
    config = load_config(None, PRESET, overrides)
    stored = unit / CONFIG_FILE
    if stored.is_file() and stored.read_text(encoding="utf-8") != to_toml(config):
        shutil.rmtree(unit)
    training = unit / TRAINING_DIRECTORY
    if features is not None and not (training / FEATURES_DIRECTORY).is_dir():
        aside = training / f".{FEATURES_DIRECTORY}.part"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(features, aside)
        aside.replace(training / FEATURES_DIRECTORY)
    training.mkdir(parents=True, exist_ok=True)
    stored.write_text(to_toml(config), encoding="utf-8")
    reported = -1

    def report(now: TrainingProgress) -> None:
        nonlocal reported
        if now.step // 100 != reported:
            reported = now.step // 100
            _console.print(f"{unit.parent.name}/{unit.name}: step {now.step} of {now.steps}")

    train_vlm(
        world.dataset, world.train, training, config, validation=world.parts[VALIDATION], resume=True, report=report
    )
    return TrainedModel.of(unit)


def unit_gains(world: HeadsData, run: TrainedModel, part: str, unit: Path) -> dict[str, NDArray[np.float64]]:
    """Reading → (users,) NDCG@10 of a part; computed once and kept in the unit's directory."""
    kept = unit / f"gains-{part}.npz"
    mark = (unit / TRAINING_DIRECTORY / "fingerprint").read_text(encoding="utf-8")
    if kept.is_file():
        with np.load(kept) as found:
            if str(found["fingerprint"]) == mark:
                return {name: found[name] for name in found.files if name != "fingerprint"}
    targets = world.parts[part]
    systems = direct_systems(run, world.dataset, targets.histories)
    gains = {
        name.removeprefix(TRAINED).removeprefix(", ").removesuffix(" only") or FUSED: _gains(ranker, targets, findable)
        for name, (ranker, findable) in systems.items()
        if name.startswith(TRAINED)
    }
    aside = kept.with_name(f".{part}.part.npz")
    np.savez_compressed(aside, fingerprint=np.array(mark), **gains)  # type: ignore[arg-type]  # its stub knows no names
    aside.replace(kept)
    return gains


def _gains(ranker: Ranker, targets: Targets, findable: NDArray[np.bool_]) -> NDArray[np.float64]:
    return metrics.gains(rank_targets(ranker, targets, findable).full, CUT)


def compared(readings: Readings, variants: Iterable[str]) -> dict[str, Any]:
    """Means by variant and reading, and the ratios of `PAIRS` with their 95 % intervals."""
    known = list(variants)
    means = {
        name: {
            "seeds": readings.seeds(Reading(name)),
            **{of: round(readings.mean(Reading(name, of)), 5) for of in (FUSED, "text", "image")},
        }
        for name in known
    }
    ratios = {}
    for above, below in PAIRS:
        for of in (FUSED, "text", "image"):
            found = readings.ratio(Reading(above, of), Reading(below, of))
            if found is not None:
                ratios[f"{above} ÷ {below}, {of}"] = [
                    round(number, 4) for number in (found.ratio, found.low, found.high)
                ]
    return {"ndcg@10": means, POPULARITY: round(readings.mean(Reading(POPULARITY)), 5), "ratios": ratios}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run every unit that has no result and compare them."""
    world = HeadsData.load(options.data, options.interactions)
    parts = (VALIDATION, TEST) if options.test else (VALIDATION,)
    gains: dict[str, dict[str, dict[int, Any]]] = {part: {} for part in parts}
    features: Path | None = None
    for seed in options.seeds:
        for name in options.variants:
            unit = options.work / name / str(seed)
            run = run_unit(world, unit, {**VARIANTS[name], "train.seed": seed}, features)
            features = features or unit / TRAINING_DIRECTORY / FEATURES_DIRECTORY
            for part in parts:
                gains[part].setdefault(name, {})[seed] = unit_gains(world, run, part, unit)
    found: dict[str, Any] = {"preset": PRESET, "commit": commit(), "items": len(world.dataset)}
    popular = Popularity(popularity(world.train, len(world.dataset)))
    everything = np.ones(len(world.dataset), dtype=np.bool_)
    for part in parts:
        readings = Readings(gains[part], _gains(popular, world.parts[part], everything))
        found[part] = {"users": len(world.parts[part])} | compared(readings, options.variants)
    return found


def show(found: Mapping[str, Any]) -> None:
    """Print the comparison."""
    for part in (VALIDATION, TEST):
        if part not in found:
            continue
        table = Table(
            "variant", "seeds", FUSED, "text", "image", title=f"NDCG@{CUT}, {part}, {found[part]['users']} users"
        )
        for name, means in found[part][f"ndcg@{CUT}"].items():
            table.add_row(name, str(len(means["seeds"])), *(f"{means[of]:.4f}" for of in (FUSED, "text", "image")))
        _console.print(table)
        for name, (ratio, low, high) in found[part]["ratios"].items():
            _console.print(f"{name}: {ratio:.3f} [{low:.3f}, {high:.3f}]")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data set")
    parser.add_argument("--interactions", type=Path, help="instead of those in DATA")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["sft", "sft-names", "r2-names"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--test", action="store_true", help="read test too; do it once, for what validation chose")
    parser.add_argument("--work", type=Path, required=True, help="kept between runs")
    parser.add_argument("--out", type=Path, help="JSON with the figures")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = arguments(given)
    found = measure(options)
    show(found)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


_console = Console(highlight=False, soft_wrap=True)

if __name__ == "__main__":
    main()
