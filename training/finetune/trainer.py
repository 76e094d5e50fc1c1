"""Contrastive fine-tuning of a vision-language model: history → next item.

One step encodes the four prompts of every pair (history and next item, text and picture), takes the loss of
docs/method.md over the batch, and moves the weights by AdamW under a linear warm-up and a decay. accelerate sets up the
processes and devices, casts and clips; what stays ours, and why, is told in docs/adr ("the training loop stays ours").
A run can be killed at any time: a resumed one has the same data order, dropout and loss curve.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from training.backbones.backbone import check_pinned
from training.backbones.batches import Collator, PairBatch
from training.backbones.starting_model import load_start, make_start, trainable
from training.backbones.vlm import VlmEmbedder, save_embedder
from training.config.run_config import RunConfig
from training.data.dataset import Dataset
from training.data.learnable_pairs import check_learnable
from training.data.pictures import PictureStore
from training.data.sequences import Sequences, Targets
from training.data.training_pairs import TrainingPairs
from training.errors import ConfigError, TrainingDiverged
from training.finetune.batch_prefetch import prefetched
from training.finetune.direct_ranking import METRIC, DirectRanking
from training.finetune.distributed import ProcessGroup
from training.finetune.run_directory import RunDirectory, run_fingerprint
from training.finetune.run_log import RunLog
from training.finetune.step import ContrastiveStep, Step
from training.losses.method_loss import MethodLoss
from training.runs import checkpoints

UNREADABLE_FILE = "unreadable.json"
_IDS_SHOWN = 20
_MIB = 2**20


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        step: steps done.
        steps: steps in all.
        loss: of the last step; None before the first.
    """

    step: int
    steps: int
    loss: float | None


@dataclass
class _State:
    """What changes from step to step beside weights and moments.

    Attributes:
        step: steps done.
        lead: moving average of the loss.
        window: values of the steps since the last line of the log.
        seconds: time in steps, waiting for batches included.
        best: highest validation metric so far; None before the first validation.
        best_step: the step that it was measured after.
        worse: validations since then.
    """

    step: int = 0
    lead: float = 0.0
    window: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    worse: int = 0


def train_vlm(
    dataset: Dataset,
    train: Sequences,
    directory: Path,
    config: RunConfig,
    *,
    validation: Targets | None = None,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Train a model, or go on training it.

    Under `torchrun` every process calls this; the first one writes the files.

    Args:
        dataset: the catalogue.
        train: training histories only.
        directory: of the run's training, see :mod:`training.finetune.run_directory`.
        config: of the run.
        validation: held-out events, needed if ``train.validate_every`` is set.
        resume: go on from the newest checkpoint; without one, start.
        report: called after every step, in the first process alone.

    Returns:
        Directory of the trained model, for :func:`training.backbones.vlm.load_embedder`.

    Raises:
        ConfigError: the directory holds another run, or this one is to start where one is already or is still going
            on; or the configuration asks for what cannot be: validation without events, more processes than a batch
            has windows.
        BackboneError: the model cannot be loaded.
        DatasetError: there is no pair to train on, or none with a modality on both sides.
        TrainingDiverged: the loss or a gradient is not finite.
        OutOfMemory: a step does not fit into memory.
    """
    pairs = TrainingPairs.of(train)
    # Without `cpu`, accelerate joins no group of processes where there is no GPU, and each would train alone.
    accelerator = Accelerator(mixed_precision=config.train.precision, cpu=not torch.accelerator.is_available())
    ranks, place = ProcessGroup(accelerator), RunDirectory(directory)
    _check(config, validation, ranks)
    if not place.model.is_dir():
        check_learnable(dataset, train, config.train.modalities)
    with contextlib.ExitStack() as until_the_end:
        if ranks.first:
            mark = run_fingerprint(dataset, train, validation, config)
            until_the_end.enter_context(place.claimed(mark, resume=resume))
            if config.vlm.model is None and not place.start.is_dir() and not place.model.is_dir():
                place.make(place.start, lambda aside: make_start(dataset, config.vlm, config.train.seed, aside))
        ranks.wait()
        if not place.model.is_dir():
            run = _Run(dataset, pairs, validation, place, config, accelerator, ranks)
            until_the_end.callback(run.close)
            run.to_the_end(report if ranks.first else lambda _: None)
            if ranks.first:
                run.save()
        ranks.leave()
    return place.model


class _Run:
    """One run from where its newest checkpoint is to its end."""

    def __init__(
        self,
        dataset: Dataset,
        pairs: TrainingPairs,
        validation: Targets | None,
        place: RunDirectory,
        config: RunConfig,
        accelerator: Accelerator,
        ranks: ProcessGroup,
    ) -> None:
        self._dataset, self._pairs, self._place, self._config, self._ranks = dataset, pairs, place, config, ranks
        options = config.train
        torch.manual_seed(options.seed)
        self._backbone = load_start(config.vlm, place.start)
        self._embedder = VlmEmbedder(trainable(self._backbone, config.vlm))
        self._move = ContrastiveStep(self._embedder, accelerator, ranks, config.loss, options)
        self._pictures = PictureStore(
            dataset.image_path, self._backbone.image_processor, memory_bytes=options.picture_memory_mib * _MIB
        )
        self._collator = Collator(
            self._backbone.tokenizer,
            dataset.texts(),
            self._pictures,
            max_text_tokens=config.vlm.max_text_tokens,
            max_history=options.max_history,
            chunk_tokens=options.chunk_tokens,
            chunk_patches=options.chunk_patches,
            modalities=options.modalities,
        )
        self._ranking: DirectRanking | None = None
        if options.validate_every and validation is not None:
            self._ranking = DirectRanking(
                self._collator,
                ranks,
                validation,
                len(dataset),
                users=options.validation_users,
                items=options.validation_items,
                fusion=config.loss.fusion,
                seed=options.seed,
                exclude_seen=config.encoder.exclude_seen,
            )
        self._state = _State()
        last = checkpoints.newest(place.checkpoints)
        if last is not None:
            self._state = _State(**checkpoints.restore(last, self._embedder, self._move.optimizer))
        self._written = time.monotonic()
        self._log = RunLog(place.log, place.events, self._state.window, self._state.step, writes=ranks.first)

    def to_the_end(self, report: Callable[[Progress], None]) -> None:
        """Every step that is left; then the best validated weights, if training could have ended early."""
        options, state = self._config.train, self._state
        self._embedder.train()
        report(Progress(state.step, options.steps, None))
        with contextlib.closing(prefetched(self._numbers(), self._collate, workers=options.workers)) as batches:
            started = time.monotonic()
            for batch in batches:
                values = self._step(batch)
                state.step += 1
                state.seconds += time.monotonic() - started
                self._keep(values)
                report(Progress(state.step, options.steps, values["loss"]))
                if self._out_of_patience():
                    break
                started = time.monotonic()
        if options.patience and state.best_step not in {0, state.step}:
            checkpoints.restore(
                checkpoints.at(self._place.checkpoints, state.best_step), self._embedder, self._move.optimizer
            )

    def close(self) -> None:
        """End what runs beside the training; the log is whole without it, so a full disk hides no other error here."""
        with contextlib.suppress(OSError):
            self._log.close()

    def save(self) -> None:
        """Write the model and the list of pictures that could not be used."""
        write_unreadable(self._place.path, self._dataset, self._pictures)
        vlm = self._config.vlm
        self._place.make(
            self._place.model,
            lambda aside: save_embedder(
                aside, self._embedder, self._backbone, source=vlm.model, revision=vlm.revision,
                max_text_tokens=vlm.max_text_tokens, max_history=self._config.train.max_history,
            ),
        )  # fmt: skip

    def _numbers(self) -> Iterator[NDArray[np.int64]]:
        """This rank's pair numbers of every step that is left."""
        options, step = self._config.train, self._state.step
        if self._out_of_patience():
            return
        left = range(step, options.steps)
        for _, numbers in zip(left, self._pairs.batches(options.batch_size, options.seed, step), strict=False):
            yield self._ranks.share(numbers)

    def _collate(self, numbers: NDArray[np.int64]) -> PairBatch:
        options = self._config.train
        return self._collator.pairs(self._pairs.windows(numbers, options.max_history, every=options.pairs == "every"))

    def _step(self, batch: PairBatch) -> dict[str, float]:
        """One optimiser step; returns what the log averages."""
        options, state = self._config.train, self._state
        rate = options.learning_rate * schedule(state.step, options.steps, options.warmup, options.decay)
        diagnose = options.diagnose_every > 0 and (state.step + 1) % options.diagnose_every == 0
        taken = self._move(batch, step=state.step, confidence_gap=state.lead, rate=rate, diagnose=diagnose)
        if taken.diverged is not None:
            raise self._diverged(*taken.diverged, taken)
        if taken.loss.confidence_gap is not None:
            state.lead = taken.loss.confidence_gap.item()
        return {
            "loss": taken.loss.total.item(),
            **taken.diagnostics,
            **_terms(taken.loss),
            "pairs": float(taken.loss.rows),
            "gradient_norm": taken.gradient_norm or 0.0,
            "learning_rate": rate,
        }

    def _keep(self, values: dict[str, float]) -> None:
        """After a step: validate, write a line and a checkpoint, each if it is due."""
        options, state = self._config.train, self._state
        self._log.add(values)
        validated = self._validate()
        if validated or state.step % options.log_every == 0 or state.step == options.steps:
            self._log.write(state.step, {"lead": state.lead, **validated, "seconds": round(state.seconds, 3)})
        due = bool(validated) or state.step % options.checkpoint_steps == 0
        if due or time.monotonic() - self._written > options.checkpoint_seconds:
            self._checkpoint()
            self._written = time.monotonic()

    def _diverged(self, what: str, value: float, taken: Step) -> TrainingDiverged:
        """What to raise; the whole batch is written down first."""
        ids = self._dataset.item_ids()
        targets = [ids[row] for row in taken.batch.item_ids.tolist()]
        step = self._state.step + 1
        if self._ranks.first:
            histories = [[ids[row] for row in rows if row >= 0] for rows in taken.batch.histories.tolist()]
            record = {
                "step": step,
                "what": what,
                "value": str(value),
                "terms": {name: str(term) for name, term in _terms(taken.loss).items()},
                "next_items": targets,
                "left_out_of_negatives": histories,
            }
            self._place.diverged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        shown = ", ".join(targets[:_IDS_SHOWN]) + (" …" if len(targets) > _IDS_SHOWN else "")
        return TrainingDiverged(
            f"the {what} must be finite, got {value} in step {step}; lower train.learning_rate or raise "
            f"loss.temperature and start a new run. Next items of the batch (all in {self._place.diverged}): {shown}"
        )

    def _validate(self) -> dict[str, float]:
        """What was measured after this step, if it is one to validate after; also keeps count of patience."""
        options, state = self._config.train, self._state
        due = options.validate_every and (state.step % options.validate_every == 0 or state.step == options.steps)
        if self._ranking is None or not due:
            return {}
        found = self._ranking.measure(self._embedder, self._move.autocast)
        if state.best is None or found[METRIC] > state.best:
            state.best, state.best_step, state.worse = found[METRIC], state.step, 0
        else:
            state.worse += 1
        return found

    def _out_of_patience(self) -> bool:
        return 0 < self._config.train.patience <= self._state.worse

    def _checkpoint(self) -> None:
        state = self._state
        if not self._ranks.first:
            return
        checkpoints.write(
            self._place.checkpoints,
            state.step,
            self._embedder,
            self._move.optimizer,
            asdict(state),
            keep=self._config.train.keep_checkpoints,
            beside={state.best_step},
        )


def schedule(step: int, steps: int, warmup: float, decay: str = "cosine") -> float:
    """Factor on the learning rate: linear up over the warm-up, then half a cosine or a line down to 0, or level.

    Args:
        step: steps done before this one, from 0.
        steps: in all.
        warmup: share of the steps.
        decay: ``cosine``, ``linear`` or ``constant``.

    Returns:
        In (0, 1]; the first step is never 0, and the last one at most nearly.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    done, left = step - rising + 0.5, max(1, steps - rising)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done / left)), "linear": 1 - done / left, "constant": 1.0}[decay]


def _check(config: RunConfig, validation: Targets | None, ranks: ProcessGroup) -> None:
    """What would fail later, before anything is written."""
    if config.vlm.model is not None:
        check_pinned(config.vlm.model, config.vlm.revision)
    if config.train.validate_every and (validation is None or not len(validation)):
        raise ConfigError(
            f"train.validate_every = {config.train.validate_every} needs held-out events and there are none; users "
            "need at least 3 interactions, or set it to 0"
        )
    if config.train.batch_size < ranks.count:
        raise ConfigError(
            f"train.batch_size must be at least the number of processes ({ranks.count}), got {config.train.batch_size}"
        )


def _terms(loss: MethodLoss) -> dict[str, float]:
    """The terms that were computed, by name."""
    terms: Mapping[str, Tensor | None] = {
        "nce": loss.nce,
        "wpcl": loss.wpcl,
        "crtr": loss.crtr,
        "unimodal": loss.unimodal,
        "gap": loss.gap,
        "log_beta": loss.log_beta,
        "image_weak": loss.image_weak,
    }
    return {name: term.item() for name, term in terms.items() if term is not None}


def write_unreadable(directory: Path, dataset: Dataset, pictures: PictureStore) -> None:
    """Write item id → reason for the pictures that could not be used to ``unreadable.json``.

    Args:
        directory: where the file goes.
        dataset: the catalogue.
        pictures: as far as they were asked for.
    """
    ids = dataset.item_ids()
    found = {ids[row]: reason for row, reason in sorted(pictures.unreadable.items())}
    (directory / UNREADABLE_FILE).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
