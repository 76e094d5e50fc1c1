"""Fits slots and sequence encoder to histories, epoch by epoch, and resumes after an interruption."""

# Every position of a training window predicts the next item. In a share of the windows some slots are left out of the
# history and of the competing items, and the rest is re-scaled as it would be stored, so that a query is useful for
# an item with only a text, only a picture, or no behaviour (modality dropout, Neverova et al., 2016; on both sides is
# our reading). After each epoch validation targets are ranked exactly, against the vectors as they will be stored;
# the best epoch is kept.
#
# Everything random depends on the seed, the epoch and the step alone, so a killed run continues exactly.

import itertools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from index.items.slots import BEHAVIOUR
from training.config.encoder_config import EncoderConfig
from training.data.sequences import Sequences, Targets, evenly_spaced
from training.encoder.averaging import WeightAverage
from training.encoder.next_item_loss import NO_TARGET, full_softmax_loss, sampled_softmax_loss, slot_scale
from training.encoder.slot_model import SlotModel, stored_vectors, torch_encoder
from training.encoder.windows import automatic_batch_size, batches, rows_of, shown_of, weights_of, window_events
from training.errors import TrainingDiverged
from training.lists.fit_lists import ServedValidation
from training.ranking import metrics
from training.ranking.ranking import rank_targets
from training.ranking.slot_ranker import SlotRanker
from training.runs import checkpoints
from training.runs.learning_rate import LearningRateSchedule

_BEST_FILE = "best.safetensors"
_FINGERPRINT_FILE = "fingerprint"
_NEGATIVE_POWER = 0.5
_LAST_RATE = 0.1
_GRADIENT_NORM = 5.0

Report = Callable[[Mapping[str, Any]], None]
"""Called after every epoch with its line of the log."""


@dataclass(frozen=True)
class FitLog:
    """The log of a fit.

    Attributes:
        epochs: one line per epoch: loss in nats, validation NDCG@10 and HR@10 of the slots, NDCG@10 of what is served.
        best_epoch: number of the epoch whose weights the model has, from 0.
    """

    epochs: list[dict[str, Any]]
    best_epoch: int


class NegativeSampler:
    """Draws items in proportion to the square root of 1 + their training events.

    Args:
        counts: (n,) training events.
        competing: (n,) bool; the others are never drawn.
    """

    def __init__(self, counts: NDArray[np.int64], competing: NDArray[np.bool_]) -> None:
        self.competing = competing
        weights = np.where(competing, (counts + 1.0) ** _NEGATIVE_POWER, 0.0)
        self._share = weights / weights.sum()
        self._up_to = np.cumsum(self._share)

    @classmethod
    def of(cls, model: SlotModel, train: Sequences, config: EncoderConfig) -> "NegativeSampler":
        """Items with a slot compete; those without a training event only if the configuration says so.

        If no item with an event has a slot, there is nothing to learn, and all items with a slot compete.

        Args:
            model: its ``present`` gives the items with a slot.
            train: training histories.
            config: ``unseen_negatives``.
        """
        counts = np.bincount(train.rows, minlength=model.items)
        present = torch.stack(list(model.present.values())).any(dim=0).numpy()
        competing = present & ((counts > 0) | config.unseen_negatives)
        return cls(counts, competing if competing.any() else present)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Draw with repetition.

        Returns:
            (count,) int64 rows and (count,) float32 log of the expected number of times each is drawn.
        """
        rows = np.searchsorted(self._up_to, rng.random(count) * self._up_to[-1], side="right")
        return rows.astype(np.int64), np.log(count * self._share[rows]).astype(np.float32)


def fit(
    model: SlotModel,
    train: Sequences,
    validation: Targets,
    config: EncoderConfig,
    directory: Path,
    *,
    fingerprint: str,
    served: ServedValidation | None = None,
    stop_after: int | None = None,
    report: Report = lambda _line: None,
    step_done: Callable[[float], None] = lambda _share: None,
) -> FitLog:
    """Fit a model; afterwards it has the weights of the best epoch.

    Args:
        model: freshly made from the configuration's seed; changed in place.
        train: training histories.
        validation: held-out targets for early stopping; none = a fixed, short training.
        config: how to train.
        directory: of the checkpoints; one of the same fingerprint is resumed.
        fingerprint: of data and configuration, so that no checkpoint of others is used.
        served: measures slots and lists together, which then choose the best epoch; None: the slots alone do.
        stop_after: epochs of a refit: exactly so many, at the learning rates that they have among all configured ones.
        report: called after every epoch.
        step_done: called after every step with the completed share of the epoch.

    Raises:
        TrainingDiverged: the loss is not finite.
    """
    state = FitState(model, config, directory, fingerprint)
    stepper = Stepper(model, config, NegativeSampler.of(model, train, config))
    size = config.batch_size or automatic_batch_size(train, config.max_history)
    epochs = config.epochs if len(validation) or stop_after else min(config.epochs, config.patience)
    while state.epoch < (stop_after or epochs) and state.epoch - state.best_epoch <= config.patience:
        rng = np.random.default_rng([config.seed, state.epoch])
        windows = window_events(train, config.max_history, reversed_share=config.reversed_share, rng=rng)
        epoch = list(batches(windows, size, rng))
        steps, losses = len(epoch), []
        # The number of windows, and so of steps, differs from epoch to epoch.
        schedule = learning_rate_schedule(config, epochs * steps)
        scheduler = schedule.attach(state.optimizer, steps_done=state.epoch * steps)
        for step, batch in enumerate(epoch):
            torch.manual_seed(int(rng.integers(2**62)))
            weights = weights_of(train, batch)
            shown = shown_of(train, batch)
            losses.append(stepper.step(rows_of(train, batch), state.optimizer, rng, weights, shown))
            scheduler.step()
            state.average.update()
            step_done((step + 1) / steps)
        state.average.swap()
        figures = validate(model, validation, config, served)
        line = {"epoch": state.epoch, "loss": round(float(np.mean(losses)), 5)} | figures
        state.end_epoch(line)
        report(line)
    state.restore_best()
    return FitLog(state.lines, state.best_epoch)


def validate(
    model: SlotModel, validation: Targets, config: EncoderConfig, served: ServedValidation | None = None
) -> dict[str, float]:
    """NDCG@10 and HR@10 of at most ``validation_users`` evenly spaced targets, ranked exactly; {} without any.

    Args:
        model: to measure.
        validation: held-out targets.
        config: precision, and whether seen items are left out.
        served: adds figures of slots and lists together; None: the slots alone are measured.
    """
    if not len(validation):
        return {}
    model.eval()
    ranker = SlotRanker(stored_vectors(model, config.precision), torch_encoder(model), config.max_history)
    if served is not None:
        return served.figures(ranker)
    some = evenly_spaced(validation, config.validation_users)
    rank = rank_targets(ranker, some, ranker.findable, exclude_seen=config.exclude_seen).full
    return {"ndcg@10": float(metrics.gains(rank, 10).mean()), "hr@10": float(metrics.hits(rank, 10).mean())}


def learning_rate_schedule(config: EncoderConfig, steps: int) -> LearningRateSchedule:
    """Half a cosine over all steps, from the full rate to a tenth of it; the first steps are warmed up linearly."""
    return LearningRateSchedule(
        max(config.warmup_steps, 1), "cosine", decay_start=0, decay_steps=max(steps, 1), floor=_LAST_RATE
    )


class Stepper:
    """One optimiser step on one batch of windows.

    Args:
        model: to train.
        config: dropout, temperature and kind of softmax.
        sampler: of the negatives.
    """

    def __init__(self, model: SlotModel, config: EncoderConfig, sampler: NegativeSampler) -> None:
        self._model, self._config, self._sampler = model, config, sampler
        names = model.layout.names
        self._subsets = [s for size in range(1, len(names)) for s in itertools.combinations(names, size)]

    def step(
        self,
        batch: NDArray[np.int64],
        optimizer: torch.optim.Optimizer,
        rng: np.random.Generator,
        weights: NDArray[np.float32] | None = None,
        shown: NDArray[np.int64] | None = None,
    ) -> float:
        """Forward, backward, update.

        Args:
            batch: (B, L + 1) int64 rows, right-padded with −1.
            optimizer: over the model's weights; its rate is set.
            rng: draws slots, cold items and negatives.
            weights: (B, L + 1) of the events; None: all weigh the same.
            shown: (B, L + 1, k) int64 rows shown before each event, −1 for none; None: none is known.

        Returns:
            The loss before the update, in nats.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        self._model.train()
        optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch, rng, weights, shown)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss became {value}; lower encoder.learning_rate ({self._config.learning_rate}) or raise "
                f"encoder.temperature ({self._config.temperature})"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.parameters(), _GRADIENT_NORM)
        optimizer.step()
        return value

    def loss(
        self,
        batch: NDArray[np.int64],
        rng: np.random.Generator,
        weights: NDArray[np.float32] | None = None,
        shown: NDArray[np.int64] | None = None,
    ) -> Tensor:
        """The loss of a batch: full softmax over a small catalogue, else sampled.

        Args:
            batch: (B, L + 1) int64 rows, right-padded with −1.
            rng: draws slots, cold items and negatives.
            weights: (B, L + 1) of the events, of which targets count; None: all weigh the same.
            shown: (B, L + 1, k) int64 rows shown before each event, −1 for none; None: none is known.

        Returns:
            Scalar in nats.
        """
        model, config = self._model, self._config
        wanted = None if weights is None else torch.from_numpy(weights)[:, 1:]
        if shown is not None:  # an item that does not compete is no negative, however it was chosen
            shown = np.where((shown >= 0) & self._sampler.competing[shown], shown, -1)
        full = model.items <= config.sampled_above
        drawn, log_expected = self._sampler.draw(config.negatives, rng)
        extra = np.empty(0, dtype=np.int64) if shown is None else shown[shown >= 0]
        rows = np.arange(model.items) if full else np.unique(np.concatenate([batch[batch >= 0], drawn, extra]))
        units, present = self._units(torch.from_numpy(rows))
        local = torch.from_numpy(np.where(batch >= 0, np.searchsorted(rows, batch), NO_TARGET))
        seen = None
        if shown is not None:
            seen = torch.from_numpy(np.where(shown >= 0, np.searchsorted(rows, shown), NO_TARGET))[:, 1:]
        kept = self._kept_slots(len(batch), rng)
        scale, spread = slot_scale(kept, present), kept.float() @ model.slot_components
        before = local[:, :-1].clamp(min=0)
        histories = functional.embedding(before, units) * spread[:, None, :] * scale.gather(1, before)[..., None]
        queries = model.encoder.every_position(self._blanked(histories)) * spread[:, None, :]
        if full:
            scale = scale * torch.from_numpy(self._sampler.competing)
            return full_softmax_loss(queries, units, local[:, 1:], scale, config.temperature, wanted, seen)
        sample = torch.from_numpy(np.searchsorted(rows, drawn))
        expected = torch.from_numpy(log_expected)
        targets, temperature = local[:, 1:], config.temperature
        return sampled_softmax_loss(queries, units, targets, scale, sample, expected, temperature, wanted, seen)

    def _units(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(m, Σd) unit slots side by side and (m, slots) bool, with the behaviour vectors of some items dropped."""
        slots, names = self._model.unit_slots(rows), self._model.layout.names
        present = {name: self._model.present[name][rows] for name in names}
        if BEHAVIOUR in present and len(present) > 1:
            present[BEHAVIOUR] = present[BEHAVIOUR] & (torch.rand(len(rows)) >= self._config.cold_dropout)
        units = torch.cat([slots[name] * present[name][:, None] for name in names], dim=1)
        return units, torch.stack([present[name] for name in names], dim=1)

    def _kept_slots(self, windows: int, rng: np.random.Generator) -> Tensor:
        """(windows, slots) bool: all slots, or in a share of the windows one of the smaller sets, uniformly drawn."""
        names = self._model.layout.names
        chosen = np.ones((windows, len(names)), dtype=np.bool_)
        if self._subsets:
            fewer = rng.random(windows) < self._config.slot_dropout
            table = np.array([[name in subset for name in names] for subset in self._subsets])
            chosen[fewer] = table[rng.integers(len(table), size=int(fewer.sum()))]
        return torch.from_numpy(chosen)

    def _blanked(self, histories: Tensor) -> Tensor:
        """Blank a share of the items of the histories."""
        if not self._config.input_dropout:
            return histories
        return histories * (torch.rand(histories.shape[:2]) >= self._config.input_dropout)[..., None]


class FitState:
    """Optimiser, epoch and best weights of a fit, written to disk after every epoch."""

    def __init__(self, model: SlotModel, config: EncoderConfig, directory: Path, fingerprint: str) -> None:
        self._model, self._directory, self._fingerprint = model, directory, fingerprint
        matrices = [weight for name, weight in model.named_parameters() if _decays(name, weight)]
        others = [weight for name, weight in model.named_parameters() if not _decays(name, weight)]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        self.average = WeightAverage(model, config.averaging)
        self.epoch, self.best_epoch, self.lines = 0, 0, list[dict[str, Any]]()
        if not self._resume():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            (directory / _FINGERPRINT_FILE).write_text(fingerprint, encoding="utf-8")

    def end_epoch(self, line: dict[str, Any]) -> None:
        """Record an epoch and write everything; the model has the average and gets the trained weights back.

        The checkpoint is written last: after a kill in between, the epoch runs again and writes the same files.
        """
        self.lines.append(line)
        if self.epoch == 0 or "ndcg@10" not in line or _is_better(line, self.lines[self.best_epoch], self.lines):
            self.best_epoch = self.epoch
            partial = self._directory / f"{_BEST_FILE}.part"
            save_file({name: value.contiguous() for name, value in self._model.state_dict().items()}, partial)
            partial.replace(self._directory / _BEST_FILE)
        self.average.swap()
        self.epoch += 1
        self.average.save(self._directory / f"average-{self.epoch}.safetensors")
        state = {"epoch": self.epoch, "best_epoch": self.best_epoch, "lines": self.lines}
        checkpoints.write(self._directory, self.epoch, self._model, self.optimizer, state, keep=1)
        (self._directory / f"average-{self.epoch - 1}.safetensors").unlink(missing_ok=True)

    def _resume(self) -> bool:
        """Restore the newest checkpoint of the same data and configuration; False if there is none."""
        found = checkpoints.newest(self._directory)
        try:
            recorded = (self._directory / _FINGERPRINT_FILE).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return False
        if found is None or recorded != self._fingerprint:
            return False
        if not self.average.load(self._directory / f"average-{found.step}.safetensors"):
            return False
        state = checkpoints.restore(found, self._model, self.optimizer)
        self.epoch, self.best_epoch, self.lines = state["epoch"], state["best_epoch"], state["lines"]
        return True

    def restore_best(self) -> None:
        """Give the model the weights of the best epoch."""
        self._model.load_state_dict(load_file(self._directory / _BEST_FILE))
        self._model.eval()


def _is_better(line: Mapping[str, Any], kept: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an epoch is better than the one that is kept.

    What is served decides, unless the difference is within chance: an epoch is good if slots and lists together are
    within one standard error of the best so far (Breiman et al., 1984), and of the good ones the best is the one whose
    slots alone rank best. They answer where there are no lists: for new items, and with slot weights of a request.

    Args:
        line: of the newest epoch.
        kept: of the epoch that is kept.
        lines: of all epochs.
    """
    if "served_ndcg@10" not in line:
        return bool(line["ndcg@10"] > kept["ndcg@10"])
    best = max(lines, key=lambda each: float(each["served_ndcg@10"]))
    least = best["served_ndcg@10"] - best["served_error"]
    if line["served_ndcg@10"] < least:
        return False
    return bool(kept["served_ndcg@10"] < least or line["ndcg@10"] > kept["ndcg@10"])


def _decays(name: str, weight: Tensor) -> bool:
    """Whether a weight decays: matrices do, behaviour vectors (only their direction matters) and biases do not."""
    return weight.ndim == 2 and not name.startswith("behaviour")
