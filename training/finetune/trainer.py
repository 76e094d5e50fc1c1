"""Fine-tunes a model with the contrastive loss of docs/method.md, and resumes interrupted runs."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from training.backbones.batches import PairBatch
from training.backbones.items.source import ItemSource
from training.backbones.pretrained import check_pinned
from training.backbones.vlm import VlmEmbedder
from training.config.run_config import RunConfig
from training.data.dataset import Dataset
from training.data.learnable_pairs import check_learnable
from training.data.sequences import Sequences, Targets
from training.data.training_pairs import TrainingPairs
from training.embedding.job import Progress
from training.errors import ConfigError, TrainingDiverged
from training.finetune.batch_prefetch import prefetched
from training.finetune.distributed import ProcessGroup, check_restarts, launch_name
from training.finetune.parts import make_starting_model, training_parts
from training.finetune.processes.agreement import check_inputs, check_weights
from training.finetune.processes.run_checkpoints import RunCheckpoints
from training.finetune.processes.run_copy import RunCopy
from training.finetune.processes.sharding import full_weights, reshard, shard_weights
from training.finetune.run_directory import RunDirectory, run_fingerprint
from training.finetune.run_log import RunLog
from training.finetune.step import ContrastiveStep, StepResult, learning_rate_schedule
from training.finetune.trained_events import record_newest_event
from training.finetune.trainer_state import TrainerState
from training.finetune.unreadable_pictures import record_unreadable
from training.finetune.validation import METRIC, DirectRanking

_IDS_SHOWN = 20


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a run.

    Attributes:
        step: steps done.
        steps: steps in all.
        loss: of the last step; None before the first.
    """

    step: int
    steps: int
    loss: float | None


Report = Callable[[TrainingProgress], None]


def train_vlm(
    dataset: Dataset,
    train: Sequences,
    directory: Path,
    config: RunConfig,
    *,
    validation: Targets | None = None,
    newest_event: int | None = None,
    resume: bool = False,
    report: Report = lambda _: None,
    embedding: Progress = lambda _step, _done, _all: None,
) -> Path:
    """Train a model, or resume its training.

    Under `torchrun` every process calls this; the first one writes the files. Machines may have disks of their own,
    with the same data set; what the others need of the run is copied to them, unless the weights are sharded. Processes
    that `torchrun` starts again resume.

    Args:
        dataset: the catalogue.
        train: training histories only.
        directory: of the run's training, see :mod:`training.finetune.run_directory`.
        config: of the run.
        validation: held-out events, needed if ``train.validate_every`` is set.
        newest_event: time of the newest event that decides the weights, seconds since 1970 UTC; None: not recorded.
        resume: continue from the newest checkpoint; without one, start.
        report: called after every step, in the first process alone.
        embedding: called while a frozen encoder embeds the catalogue, or texts pass frozen layers, before the first
            step.

    Returns:
        Directory of the trained model, for ``load_embedder`` or, of trained heads, ``load_heads``.

    Raises:
        ConfigError: the directory holds another run, or this run without ``resume``, or a process is training in it;
            or the configuration asks for validation without events, or for more processes than windows in a batch; or
            the processes read different configurations, data or models, or do not share a directory that they must.
        BackboneError: the model cannot be loaded.
        DatasetError: there is no pair to train on, or none with a modality on both sides.
        TrainingDiverged: the loss or a gradient is not finite.
        OutOfMemory: a step does not fit into memory.
    """
    # Without `cpu`, accelerate joins no group of processes where there is no GPU, and each would train alone.
    accelerator = Accelerator(mixed_precision=config.train.precision, cpu=not torch.accelerator.is_available())
    processes, run_dir = ProcessGroup(accelerator), RunDirectory(directory)
    _check(config, validation, processes)
    pairs = _pairs(dataset, train, config, trained=run_dir.model.is_dir())
    fingerprint = run_fingerprint(dataset, train, validation, config)
    check_inputs(processes, config, dataset, fingerprint)
    claim = run_dir.claimed(fingerprint, resume=resume, launch=launch_name())
    with claim if processes.first else contextlib.nullcontext():
        if processes.first and newest_event is not None:
            record_newest_event(directory, newest_event)
        if processes.first:
            make_starting_model(dataset, config, run_dir, embedding)
        processes.wait()
        if not processes.agreed(run_dir.model.is_dir()):
            run_copy = RunCopy(run_dir, processes, must_share=config.train.shard)
            trainer = Trainer(dataset, pairs, validation, run_dir, run_copy, config, accelerator, processes)
            trainer.run(report, embedding)
        processes.leave()
    return run_dir.model


class Trainer:
    """Trains one model in one run directory, from its newest checkpoint to its end.

    Order of the data and dropout depend on the seed and the step alone, so a resumed run takes the same steps as one
    that was never interrupted. Why the loop is our own: docs/adr, "the training loop stays ours".

    Args:
        dataset: the catalogue.
        pairs: what to train on.
        validation: held-out events; None for no validation.
        run_dir: directory of the run, claimed by the caller.
        run_copy: what this process reads of the run.
        config: of the run.
        accelerator: sets up devices, casts and clips.
        processes: all processes of the run.
    """

    def __init__(
        self,
        dataset: Dataset,
        pairs: TrainingPairs,
        validation: Targets | None,
        run_dir: RunDirectory,
        run_copy: RunCopy,
        config: RunConfig,
        accelerator: Accelerator,
        processes: ProcessGroup,
    ) -> None:
        self._dataset, self._pairs, self._validation = dataset, pairs, validation
        self._run_dir, self._run_copy, self._config = run_dir, run_copy, config
        self._accelerator, self._processes = accelerator, processes

    def run(self, report: Report, embedding: Progress) -> None:
        """Set up, train to the end, save the model and close the log.

        Args:
            report: called after every step, in the first process alone.
            embedding: called while texts pass the frozen layers below trained ones.
        """
        self.setup(embedding)
        with contextlib.closing(self):
            self.train(report if self._processes.first else lambda _: None)
            self.save_model()

    def setup(self, embedding: Progress) -> None:
        """Load the model and its newest checkpoint, and prepare data, optimiser, schedule, validation and log.

        Args:
            embedding: called while texts pass the frozen layers below trained ones.
        """
        config, options = self._config, self._config.train
        torch.manual_seed(options.seed)
        self._setup_model(embedding)
        self._step = ContrastiveStep(self._embedder, self._accelerator, self._processes, config.loss, options)
        self._setup_data()
        self._state = TrainerState()
        self._checkpoints = RunCheckpoints(
            self._run_dir, self._run_copy, self._processes, self._embedder, self._step.optimizer,
            sharded=options.shard, keep=options.keep_checkpoints,
        )  # fmt: skip
        last = self._checkpoints.newest_step()
        if last is not None:
            self._state = TrainerState.from_json(self._checkpoints.restore(last))
        self._schedule = learning_rate_schedule(options)
        self._scheduler = self._schedule.attach(self._step.optimizer, steps_done=self._state.step)
        self._written = time.monotonic()
        self._log = RunLog(
            self._run_dir.log, self._run_dir.events, self._state.window, self._state.step, writes=self._processes.first
        )

    def _setup_model(self, embedding: Progress) -> None:
        """Load the model that every process starts from, and leave a part of it to each if it is sharded."""
        for directory in (self._run_dir.start, self._run_dir.features):
            self._run_copy.update(directory.relative_to(self._run_dir.path))
        self._parts = training_parts(self._dataset, self._config, self._run_copy.readable, progress=embedding)
        self._embedder, self._collator = self._parts.embedder, self._parts.collator
        check_weights(self._processes, self._embedder)
        if isinstance(self._embedder, VlmEmbedder) and self._config.train.shard:
            shard_weights(self._embedder, self._accelerator)

    def _setup_data(self) -> None:
        config, options = self._config, self._config.train
        self._ranking: DirectRanking | None = None
        if options.validate_every and self._validation is not None:
            self._ranking = DirectRanking(
                self._collator,
                self._processes,
                self._validation,
                len(self._dataset),
                users=options.validation_users,
                items=options.validation_items,
                fusion=config.loss.fusion,
                seed=options.seed,
                exclude_seen=config.encoder.exclude_seen,
                sharded=options.shard,
            )

    def train(self, report: Report) -> None:
        """Take every remaining step; then restore the best validated weights, if training may end early."""
        options, state = self._config.train, self._state
        self._embedder.train()
        report(TrainingProgress(state.step, options.steps, None))
        with contextlib.closing(prefetched(self._batches(), self._collate, workers=options.workers)) as batches:
            started = time.monotonic()
            for batch in batches:
                values = self.train_step(batch)
                state.seconds += time.monotonic() - started
                self._finish_step(values)
                report(TrainingProgress(state.step, options.steps, values["loss"]))
                if self._out_of_patience():
                    break
                started = time.monotonic()
        if options.patience and state.best_step not in {0, state.step}:
            self._checkpoints.restore(state.best_step)

    def train_step(self, batch: PairBatch) -> dict[str, float]:
        """Take one optimiser step.

        Args:
            batch: this process's part.

        Returns:
            Values whose means the log shows.

        Raises:
            TrainingDiverged: the loss or the gradient is not finite; the batch is in ``diverged.json``.
            OutOfMemory: the batch does not fit.
        """
        options, state = self._config.train, self._state
        rate = options.learning_rate * self._schedule.factor(state.step)
        diagnose = options.diagnose_every > 0 and (state.step + 1) % options.diagnose_every == 0
        result = self._step(batch, step=state.step, confidence_gap=state.confidence_gap, diagnose=diagnose)
        if result.diverged is not None:
            raise self._diverged(*result.diverged, result)
        if result.loss.confidence_gap is not None:
            state.confidence_gap = result.loss.confidence_gap.item()
        state.step += 1
        self._scheduler.step()
        return {
            "loss": result.loss.total.item(),
            **result.diagnostics,
            **result.loss.terms(),
            "pairs": float(result.loss.rows),
            "gradient_norm": result.gradient_norm or 0.0,
            "learning_rate": rate,
        }

    def validate(self) -> dict[str, float]:
        """Rank the held-out events and compare with the best validation so far.

        Returns:
            Metric name → value, higher is better; empty without validation.
        """
        state = self._state
        if self._ranking is None:
            return {}
        measured = self._ranking.measure(self._embedder, self._step.autocast)
        if state.best is None or measured[METRIC] > state.best:
            state.best, state.best_step, state.worse = measured[METRIC], state.step, 0
        else:
            state.worse += 1
        return measured

    def save_checkpoint(self) -> None:
        """Write weights, moments and state; the checkpoint of the best validation stays beside the newest ones."""
        self._written = time.monotonic()
        self._record_unreadable()  # first, as a run that goes on from here reads its pictures no more
        self._checkpoints.write(self._state.step, self._state.as_json(), best_step=self._state.best_step)

    def save_model(self) -> None:
        """Write the model and the list of unreadable pictures; every process must call this."""
        weights = None
        if isinstance(self._embedder, VlmEmbedder) and self._config.train.shard:
            reshard(self._embedder)
            weights = full_weights(self._embedder.model, trained_only=self._parts.adapted)
        if not self._processes.first:
            return
        self._record_unreadable()
        self._run_dir.make(self._run_dir.model, lambda aside: self._parts.save(aside, weights))

    def _record_unreadable(self) -> None:
        if self._processes.first:
            found = dict(self._parts.unreadable())  # a copy: threads that read ahead may add to it
            record_unreadable(self._run_dir.path, self._dataset, found)

    def close(self) -> None:
        """Close the log's event files; the log itself is complete, so that a full disk here hides no other error."""
        with contextlib.suppress(OSError):
            self._log.close()

    def _batches(self) -> Iterator[NDArray[np.int64]]:
        """This process's pair numbers of every remaining step."""
        options, step = self._config.train, self._state.step
        if self._out_of_patience():
            return
        remaining = range(step, options.steps)
        for _, numbers in zip(remaining, self._pairs.batches(options.batch_size, options.seed, step), strict=False):
            yield self._processes.share(numbers)

    def _collate(self, numbers: NDArray[np.int64]) -> PairBatch:
        options = self._config.train
        return self._collator.pairs(self._pairs.windows(numbers, options.max_history, every=options.pairs == "every"))

    def _finish_step(self, values: dict[str, float]) -> None:
        """Validate, write a line of the log and save a checkpoint, each if it is due."""
        options, state = self._config.train, self._state
        self._log.add(values)
        last = state.step == options.steps
        due = options.validate_every and (state.step % options.validate_every == 0 or last)
        validated = self.validate() if due else {}
        if validated or state.step % options.log_every == 0 or last:
            rest = {"lead": state.confidence_gap, **validated, "seconds": round(state.seconds, 3)}
            self._log.write(state.step, rest)
        overdue = time.monotonic() - self._written > options.checkpoint_seconds
        if options.shard:  # all write their parts at the same step
            overdue = self._processes.agreed(overdue)
        if validated or state.step % options.checkpoint_steps == 0 or overdue:
            self.save_checkpoint()

    def _out_of_patience(self) -> bool:
        return 0 < self._config.train.patience <= self._state.worse

    def _diverged(self, what: str, value: float, result: StepResult) -> TrainingDiverged:
        """Write the whole batch to ``diverged.json`` and return the error to raise."""
        ids = self._dataset.item_ids()
        targets = [ids[row] for row in result.batch.item_ids.tolist()]
        step = self._state.step + 1
        if self._processes.first:
            histories = [[ids[row] for row in rows if row >= 0] for rows in result.batch.histories.tolist()]
            record = {
                "step": step,
                "what": what,
                "value": str(value),
                "terms": {name: str(term) for name, term in result.loss.terms().items()},
                "next_items": targets,
                "left_out_of_negatives": histories,
            }
            self._run_dir.diverged.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        shown = ", ".join(targets[:_IDS_SHOWN]) + (" …" if len(targets) > _IDS_SHOWN else "")
        return TrainingDiverged(
            f"the {what} must be finite, got {value} in step {step}; lower train.learning_rate or raise "
            f"loss.temperature and start a new run. Next items of the batch (all in {self._run_dir.diverged}): {shown}"
        )


def _pairs(dataset: Dataset, train: Sequences, config: RunConfig, *, trained: bool) -> TrainingPairs:
    """Training pairs; what cannot be trained on is refused, unless the model is there."""
    if not trained:
        check_learnable(dataset, train, config.train.modalities)
    return TrainingPairs.of(train)


def _check(config: RunConfig, validation: Targets | None, processes: ProcessGroup) -> None:
    """Refuse a configuration that would fail later, before anything is written."""
    check_restarts()
    if config.vlm.encodes_items:
        ItemSource.of(config.vlm).check_pinned()
    elif config.vlm.model is not None:
        check_pinned(config.vlm.model, config.vlm.revision)
    if config.train.validate_every and (validation is None or not len(validation)):
        raise ConfigError(
            f"train.validate_every = {config.train.validate_every} needs held-out events and there are none; users "
            "need at least 3 interactions, or set it to 0"
        )
    if config.train.batch_size < processes.count:
        raise ConfigError(
            f"train.batch_size must be at least the number of processes ({processes.count}), got "
            f"{config.train.batch_size}"
        )
    if config.train.shard and processes.count == 1:
        raise ConfigError(
            "train.shard = true divides the weights over several processes, got 1; start it by torchrun, or set it to "
            "false"
        )
