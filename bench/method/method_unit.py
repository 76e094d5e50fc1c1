"""Runs one unit of `make bench-method`: trains, ranks every fresh user's next item and saves the ranks.

A unit lies in a directory of its own: ``plan`` (its fingerprint), ``train`` (see
:mod:`training.finetune.run_directory`), ``ranks.npz`` (per user and reading, so that every interval can be computed
again) and, written last, ``result.json``. It can be killed at any moment and continues; a unit whose plan has changed
is done again from its beginning.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import Timeout
from numpy.typing import NDArray

from bench.measurements import commit
from bench.method.method_plan import CataloguePlan, Unit
from bench.method.method_readings import FUSED, POPULARITY
from demo.build import EVALUATION_FILE, build_demo
from index.machine.locks import file_lock
from training.backbones.starting_model import load_start, make_start, trainable
from training.backbones.vlm import Embedding, VlmEmbedder, load_embedder
from training.config.run_config import RunConfig, load_config
from training.data.dataset import Dataset, load_dataset, read_interactions
from training.data.sequences import LeaveOneOut, Sequences, Targets, last_item, leave_one_out, popularity
from training.embedding.catalogue_encoder import CatalogueEncoder
from training.finetune.run_directory import RunDirectory, run_fingerprint
from training.finetune.trainer import TrainingProgress, train_vlm
from training.finetune.validation import Vectors, direct_ranks
from training.ranking import metrics
from training.ranking.baselines import Popularity
from training.ranking.ranking import rank_targets

FRESH, VALIDATION = "fresh", "validation"
CUT = 10
_ENCODED_AT_A_TIME = 2_048
_CHUNK_TOKENS = 4_096
"""On one core a quarter faster than groups of 32,768, which do not fit its cache."""
_PICTURE_BYTES = 2**30
_DECIMALS = 6
_TIED = " tied"
"""Ends the name of an array of ties; the array beside it has the mean ranks."""


class Busy(Exception):
    """Another process is at this unit."""


@dataclass(frozen=True)
class UnitData:
    """A catalogue with its split.

    Attributes:
        dataset: the catalogue.
        parts: of the training users.
        fresh: the next items of users that training never sees.
    """

    dataset: Dataset
    parts: LeaveOneOut
    fresh: Targets


@dataclass(frozen=True)
class UnitPlace:
    """The directory of a unit.

    Attributes:
        unit: which one.
        path: its directory.
    """

    unit: Unit
    path: Path

    @classmethod
    def of(cls, work: Path, unit: Unit) -> "UnitPlace":
        """The place of a unit under the directory of the bench."""
        return cls(unit, work / unit.name)

    @property
    def train(self) -> Path:
        """Directory of the training run."""
        return self.path / "train"

    def result(self) -> dict[str, Any] | None:
        """The result; None if the unit is missing or belongs to another plan."""
        try:
            found: dict[str, Any] = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if found.get("fingerprint") == self.unit.fingerprint else None

    def ranks(self) -> dict[str, metrics.Ranks]:
        """``fresh fused`` … → rank of each user's target; a file of before has no ties."""
        with np.load(self.path / "ranks.npz") as found:
            arrays = {name: found[name].astype(np.float64) for name in found.files}
        tied = {name: arrays.pop(name) for name in [*arrays] if name.endswith(_TIED)}
        return {name: metrics.Ranks.of_means(means, tied.get(f"{name}{_TIED}")) for name, means in arrays.items()}

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the directory for this plan and remove the files of another plan.

        Raises:
            Busy: another process is at it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(self.path / "lock"))
            except Timeout as error:
                raise Busy(f"{self.unit.name} is being done by another process") from error
            mark = self.path / "plan"
            if not mark.is_file() or mark.read_text(encoding="utf-8") != self.unit.fingerprint:
                for name in ("result.json", "ranks.npz", "plan"):
                    (self.path / name).unlink(missing_ok=True)
                shutil.rmtree(self.train, ignore_errors=True)
                mark.write_text(self.unit.fingerprint, encoding="utf-8")
            yield


def carry_out(unit: Unit, work: Path, *, report: Callable[[str, float], None] = lambda _step, _share: None) -> bool:
    """Run a unit, or resume it.

    Args:
        unit: which one.
        work: directory of the bench.
        report: called with the step and the share of it that is done.

    Returns:
        False if it was done already.

    Raises:
        Busy: another process is at it.
        TrainingError: training or ranking failed.
    """
    place = UnitPlace.of(work, unit)
    with place.claimed():
        if place.result() is not None:
            return False
        world = load_world(unit.catalogue, work, report=report)
        config = load_config(overrides=unit.overrides)
        embedding = (
            _untrained(unit, world, config, place) if unit.row.frozen else _trained(world, config, place, report)
        )
        started = time.perf_counter()
        ranks = _ranks(embedding, world, config, report)
        seconds = time.perf_counter() - started
        tied = {f"{name}{_TIED}": found.tied for name, found in ranks.items()}
        _write_arrays(place.path / "ranks.npz", {name: found.means for name, found in ranks.items()} | tied)
        log = read_log(place.train / "log.jsonl")
        result = {
            "fingerprint": unit.fingerprint,
            "commit": commit(),
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "load_average": round(os.getloadavg()[0], 2),
            "users": {FRESH: len(world.fresh), VALIDATION: len(world.parts.validation)},
            "fusion": config.loss.fusion,
            **{f"{name}@{CUT}": _means(ranks, of) for name, of in (("ndcg", metrics.gains), ("hr", metrics.hits))},
            "training_seconds": log.get("seconds", 0.0),
            "ranking_seconds": round(seconds, 1),
            "last_step": log.get("step", 0),
            "log": log,
            "config": config.model_dump(mode="json", include={"vlm", "loss", "train"}),
        }
        _write_text(place.path / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return True


def load_world(
    catalogue: CataloguePlan, work: Path, *, report: Callable[[str, float], None] = lambda _step, _share: None
) -> UnitData:
    """Load a catalogue; build it first if it is missing."""
    directory = work / catalogue.name
    directory.mkdir(parents=True, exist_ok=True)
    with file_lock(directory / "lock", wait=True):
        data = build_demo(directory / "data", **catalogue.demo, progress=report)
        dataset = load_dataset(data)
        parts = leave_one_out(Sequences.from_interactions(dataset.interactions, dataset.item_ids()))
        fresh = last_item(Sequences.from_interactions(read_interactions(data / EVALUATION_FILE), dataset.item_ids()))
    return UnitData(dataset, parts, fresh)


def read_log(path: Path) -> dict[str, Any]:
    """The newest value of each figure in a training log; a truncated line is ignored."""
    newest: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            newest |= json.loads(line)
    return newest


def _trained(world: UnitData, config: RunConfig, place: UnitPlace, report: Callable[[str, float], None]) -> Embedding:
    """Train or resume; a run that earlier code made and that cannot be resumed is started again."""
    train, validation, kept = world.parts.train, world.parts.validation, place.train / "fingerprint"
    now = run_fingerprint(world.dataset, train, validation, config)
    if kept.is_file() and kept.read_text(encoding="utf-8").strip() != now:
        shutil.rmtree(place.train)

    def tell(progress: TrainingProgress) -> None:
        report("training", progress.step / progress.steps)

    model = train_vlm(world.dataset, train, place.train, config, validation=validation, resume=True, report=tell)
    return load_embedder(model, dtype=config.vlm.dtype, attention=config.vlm.attention)


def _untrained(unit: Unit, world: UnitData, config: RunConfig, place: UnitPlace) -> Embedding:
    """The embedding of the untrained model."""
    run = RunDirectory(place.train)
    if config.vlm.model is None and not run.start.is_dir():
        run.path.mkdir(parents=True, exist_ok=True)
        run.make(run.start, lambda aside: make_start(world.dataset, config.vlm, unit.seed, aside))
    backbone = load_start(config.vlm, run.start)
    embedder = VlmEmbedder(trainable(backbone, config.vlm))
    return Embedding(embedder, backbone, config.vlm.max_text_tokens, config.train.max_history, {})


def _ranks(
    embedding: Embedding, world: UnitData, config: RunConfig, report: Callable[[str, float], None]
) -> dict[str, metrics.Ranks]:
    """Part and reading, popularity among them → ranks over the whole catalogue, the history masked."""
    names, fusion = config.train.modalities, config.loss.fusion
    encoder = CatalogueEncoder(
        embedding, world.dataset, picture_bytes=_PICTURE_BYTES, modalities=names, chunk_tokens=_CHUNK_TOKENS
    )
    items = encoder.items(np.arange(len(world.dataset)))
    popular = Popularity(popularity(world.parts.train, len(world.dataset)))
    found = {}
    for part, targets in ((VALIDATION, world.parts.validation), (FRESH, world.fresh)):
        histories = _encoded(encoder, targets, lambda share, part=part: report(f"ranking {part}", share))
        for reading, used in {FUSED: names, **{name: (name,) for name in names}}.items():
            found[f"{part} {reading}"] = direct_ranks(
                {name: histories[name] for name in used},
                {name: items[name] for name in used},
                targets.histories,
                targets.targets,
                fusion,
            )
        everything = np.ones(len(world.dataset), dtype=np.bool_)
        found[f"{part} {POPULARITY}"] = rank_targets(popular, targets, everything).full
    return found


def _encoded(encoder: CatalogueEncoder, targets: Targets, report: Callable[[float], None]) -> Vectors:
    """Vectors of all histories, batched by length to avoid padding."""
    order = np.argsort([len(history) for history in targets.histories], kind="stable")
    blocks: dict[str, list[NDArray[np.float32]]] = {}
    for start in range(0, len(order), _ENCODED_AT_A_TIME):
        chosen = order[start : start + _ENCODED_AT_A_TIME].tolist()
        for name, vectors in encoder.sequences([targets.histories[number] for number in chosen]).items():
            blocks.setdefault(name, []).append(vectors)
        report((start + len(chosen)) / len(order))
    back = np.argsort(order, kind="stable")
    return {name: np.concatenate(parts)[back] for name, parts in blocks.items()}


def _means(
    ranks: Mapping[str, metrics.Ranks], of: Callable[[metrics.Ranks, int], NDArray[np.float64]]
) -> dict[str, dict[str, float]]:
    """Part → reading → mean over the users."""
    means: dict[str, dict[str, float]] = {}
    for key, found in ranks.items():
        part, _, reading = key.partition(" ")
        means.setdefault(part, {})[reading] = round(float(of(found, CUT).mean()), _DECIMALS)
    return means


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _write_arrays(path: Path, arrays: Mapping[str, NDArray[np.float64]]) -> None:
    partial = path.with_name(f".{path.stem}.part.npz")
    np.savez_compressed(partial, **{name: found.astype(np.float32) for name, found in arrays.items()})
    partial.replace(path)
