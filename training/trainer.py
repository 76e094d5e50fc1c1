"""Contrastive fine-tuning of a vision-language model: history → next item.

One step encodes the four prompts of every pair (history and next item, text and picture), takes the loss of
docs/method.md over the batch, and moves the weights by AdamW under a linear warm-up and a cosine. accelerate places the
model, casts and clips; the loop itself is ours because a contrastive loss needs the vectors of the whole batch at once.
A run can be killed at any time: a resumed one has the same data order, dropout and loss curve.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from index.slots import IMAGE, TEXT
from training import checkpoints
from training.backbone import Backbone, load_backbone, make_backbone
from training.batches import Collator, PairBatch, spread
from training.config import RunConfig
from training.dataset import Dataset
from training.errors import ConfigError, TrainingDiverged
from training.losses import MethodLoss, ModalityPairs, method_loss
from training.model_identity import MODEL_DIRECTORY
from training.pairs import TrainingPairs
from training.pictures import PictureStore, colour_statistics
from training.prompts import prompt_hash
from training.sequences import Sequences
from training.vlm import VlmEmbedder, adapt, save_embedder

LOG_FILE = "log.jsonl"
UNREADABLE_FILE = "unreadable.json"
_CHECKPOINTS = "checkpoints"
_START = "start"
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
    """What changes from step to step beside weights and moments."""

    step: int = 0
    lead: float = 0.0
    window: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def train_vlm(
    dataset: Dataset,
    train: Sequences,
    directory: Path,
    config: RunConfig,
    *,
    resume: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Train a model, or go on training it.

    Args:
        dataset: the catalogue.
        train: training histories only.
        directory: of the run's training: checkpoints, ``log.jsonl``, and in the end ``model``.
        config: of the run.
        resume: go on from the newest checkpoint; without one, start.
        report: called after every step.

    Returns:
        Directory of the trained model, for :func:`training.vlm.load_embedder`.

    Raises:
        ConfigError: the directory holds another run, or this one is to start where one is already.
        BackboneError: the model cannot be loaded.
        DatasetError: there is no pair to train on.
        TrainingDiverged: the loss or a gradient is not finite.
    """
    pairs = TrainingPairs.of(train)
    _claim(directory, _fingerprint(dataset, train, config), resume=resume)
    finished = directory / MODEL_DIRECTORY
    if finished.is_dir():
        return finished
    backbone = _start(dataset, directory, config)
    run = _Run(dataset, pairs, directory, config, backbone)
    run.to_the_end(report)
    write_unreadable(directory, dataset, run.pictures)
    aside = directory / f".{MODEL_DIRECTORY}.part"
    save_embedder(
        aside, run.embedder, backbone, source=config.vlm.model, revision=config.vlm.revision,
        max_text_tokens=config.vlm.max_text_tokens, max_history=config.train.max_history,
    )  # fmt: skip
    aside.rename(finished)
    return finished


class _Run:
    """One run from where its newest checkpoint is to its end."""

    def __init__(
        self, dataset: Dataset, pairs: TrainingPairs, directory: Path, config: RunConfig, backbone: Backbone
    ) -> None:
        self._config, self._pairs, self._directory = config, pairs, directory
        self._item_ids = dataset.item_ids()
        options, lora = config.train, config.vlm.lora
        torch.manual_seed(options.seed)
        model: nn.Module = backbone.model
        if config.vlm.model is not None:
            model = adapt(backbone, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets)
        if config.vlm.activation_checkpointing:
            cast("Any", backbone.model).activation_checkpointing_enable({"use_reentrant": False})
        self.embedder = VlmEmbedder(model)
        self._optimizer = torch.optim.AdamW(_weight_groups(self.embedder, options.weight_decay, options.vision_rate))
        self._accelerator = Accelerator(mixed_precision=options.precision)
        self._model, self._adam = self._accelerator.prepare(self.embedder, self._optimizer)
        self.pictures = PictureStore(
            dataset.image_path, backbone.image_processor, memory_bytes=options.picture_memory_mib * _MIB
        )
        self._collator = Collator(
            backbone.tokenizer,
            dataset.texts(),
            self.pictures,
            max_text_tokens=config.vlm.max_text_tokens,
            max_history=options.max_history,
            chunk_tokens=options.chunk_tokens,
            modalities=options.modalities,
        )
        self._state = _State()
        last = checkpoints.newest(directory / _CHECKPOINTS)
        if last is not None:
            self._state = _State(**checkpoints.restore(last, self.embedder, self._optimizer))
        _cut_log(directory / LOG_FILE, self._state.step)

    def to_the_end(self, report: Callable[[Progress], None]) -> None:
        """Every step that is left."""
        options, state = self._config.train, self._state
        self._model.train()
        written = time.monotonic()
        report(Progress(state.step, options.steps, None))
        for numbers in self._pairs.batches(options.batch_size, options.seed, state.step):
            if state.step >= options.steps:
                break
            started = time.monotonic()
            windows = self._pairs.windows(numbers, options.max_history, every=options.pairs == "every")
            values = self._step(self._collator.pairs(windows))
            state.step += 1
            state.window.append(values)
            state.seconds += time.monotonic() - started
            if state.step % options.log_every == 0 or state.step == options.steps:
                self._log()
            due = state.step % options.checkpoint_steps == 0
            if due or time.monotonic() - written > options.checkpoint_seconds:
                self._checkpoint()
                written = time.monotonic()
            report(Progress(state.step, options.steps, values["loss"]))

    def _step(self, batch: PairBatch) -> dict[str, float]:
        """One optimiser step; returns what the log averages."""
        options, state = self._config.train, self._state
        torch.manual_seed(hash((options.seed, state.step)) % 2**63)
        rate = options.learning_rate * schedule(state.step, options.steps, options.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        device = self._accelerator.device
        with self._accelerator.autocast():
            outputs = self._model(batch.prompts.to(device))
        loss = self._loss(outputs, batch, device)
        if not math.isfinite(loss.total.item()):
            raise self._diverged("loss", loss.total.item(), batch)
        self._accelerator.backward(loss.total)
        norm = float(self._accelerator.clip_grad_norm_(self.embedder.parameters(), options.gradient_clip))
        if not math.isfinite(norm):
            raise self._diverged("norm of the gradient", norm, batch)
        self._adam.step()
        self._adam.zero_grad()
        if loss.lead is not None:
            state.lead = loss.lead.item()
        return {
            "loss": loss.total.item(),
            **_terms(loss),
            "pairs": float(loss.rows),
            "gradient_norm": norm,
            "learning_rate": rate,
        }

    def _loss(self, outputs: Tensor, batch: PairBatch, device: torch.device) -> MethodLoss:
        options = self._config.loss
        sides = {name: self._side(outputs, batch, name) for name in (TEXT, IMAGE)}
        return method_loss(
            sides[TEXT],
            sides[IMAGE],
            batch.item_ids.to(device),
            batch.histories.to(device),
            lead=self._state.lead,
            **options.model_dump(),
        )

    @staticmethod
    def _side(outputs: Tensor, batch: PairBatch, modality: str) -> ModalityPairs:
        """A modality's vectors; all absent if it is not trained."""
        nowhere = torch.full_like(batch.item_ids, -1)
        sequences = batch.sequences.get(modality, nowhere).to(outputs.device)
        items = batch.items.get(modality, nowhere).to(outputs.device)
        return ModalityPairs(spread(outputs, sequences), spread(outputs, items), sequences >= 0, items >= 0)

    def _diverged(self, what: str, value: float, batch: PairBatch) -> TrainingDiverged:
        ids = [self._item_ids[row] for row in batch.item_ids.tolist()]
        shown = ", ".join(ids[:_IDS_SHOWN]) + (" …" if len(ids) > _IDS_SHOWN else "")
        return TrainingDiverged(
            f"the {what} must be finite, got {value} in step {self._state.step + 1}; lower train.learning_rate or "
            f"raise loss.temperature and start a new run. Next items of the batch: {shown}"
        )

    def _log(self) -> None:
        """One line: the mean of every value since the last line."""
        state = self._state
        names = {name: None for values in state.window for name in values}
        means = {
            name: math.fsum(found) / len(found)
            for name in names
            if (found := [values[name] for values in state.window if name in values])
        }
        line = {"step": state.step, **means, "lead": state.lead, "seconds": round(state.seconds, 3)}
        with (self._directory / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        state.window.clear()

    def _checkpoint(self) -> None:
        state = self._state
        saved = {"step": state.step, "lead": state.lead, "window": state.window, "seconds": state.seconds}
        checkpoints.write(
            self._directory / _CHECKPOINTS,
            state.step,
            self.embedder,
            self._optimizer,
            saved,
            keep=self._config.train.keep_checkpoints,
        )


def schedule(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: linear up over the warm-up, then half a cosine down to 0.

    Args:
        step: steps done before this one, from 0.
        steps: in all.
        warmup: share of the steps.

    Returns:
        In (0, 1]; the first step is never 0, the last one nearly.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising + 0.5) / max(1, steps - rising)))


def _weight_groups(model: nn.Module, weight_decay: float, vision_rate: float) -> list[dict[str, Any]]:
    """AdamW's groups: the vision tower has its own rate, biases and norms no decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            key = (vision_rate if "visual." in name else 1.0, weight_decay if weight.ndim > 1 else 0.0)
            groups.setdefault(key, []).append(weight)
    return [{"params": found, "factor": key[0], "weight_decay": key[1]} for key, found in groups.items()]


def _terms(loss: MethodLoss) -> dict[str, float]:
    """The terms that were computed, by name."""
    terms: Mapping[str, Tensor | None] = {
        "nce": loss.nce,
        "wpcl": loss.wpcl,
        "crtr": loss.crtr,
        "gap": loss.gap,
        "log_beta": loss.log_beta,
        "image_weak": loss.image_weak,
    }
    return {name: term.item() for name, term in terms.items() if term is not None}


def _start(dataset: Dataset, directory: Path, config: RunConfig) -> Backbone:
    """The backbone that training starts from; one from scratch is made once and then read like any other."""
    vlm = config.vlm
    pixels = (vlm.min_picture_pixels, vlm.max_picture_pixels)
    source: str | Path | None = vlm.model
    if source is None:
        source = directory / _START
        if not source.is_dir():
            aside = directory / f".{_START}.part"
            made = make_backbone(
                dataset.texts(),
                **vlm.scratch.model_dump(),
                picture_pixels=pixels,
                colours=colour_statistics(dataset.image_path, len(dataset)),
                seed=config.train.seed,
            )
            made.save(aside)
            aside.rename(source)
    return load_backbone(source, revision=vlm.revision, dtype=vlm.dtype, attention=vlm.attention, picture_pixels=pixels)


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


def _fingerprint(dataset: Dataset, train: Sequences, config: RunConfig) -> str:
    """16 hex digits over what the course of a run depends on."""
    digest = hashlib.sha256(prompt_hash().encode())
    shape = config.model_dump(mode="json", include={"vlm", "loss", "train"})
    for name in ("log_every", "checkpoint_steps", "checkpoint_seconds", "keep_checkpoints", "picture_memory_mib"):
        del shape["train"][name]
    digest.update(json.dumps(shape, sort_keys=True).encode())
    digest.update(json.dumps([dataset.item_ids(), dataset.texts()]).encode())
    digest.update(train.offsets.tobytes() + train.rows.tobytes())
    return digest.hexdigest()[:16]


def _claim(directory: Path, fingerprint: str, *, resume: bool) -> None:
    """Make the directory this run's own.

    Raises:
        ConfigError: it is another run's, or this run's and it is not to be resumed.
    """
    mark = directory / "fingerprint"
    if any((directory / name).is_dir() for name in (_START, _CHECKPOINTS, MODEL_DIRECTORY)):
        if not resume:
            raise ConfigError(f"{directory}: a training run is here already; go on with --resume, or use another --run")
        found = mark.read_text(encoding="utf-8").strip() if mark.is_file() else "unknown"
        if found != fingerprint:
            raise ConfigError(
                f"{directory}: this run was started with another configuration or other data ({found}, now "
                f"{fingerprint}); resume it with the same ones, or use another --run"
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    mark.write_text(fingerprint + "\n", encoding="utf-8")


def _cut_log(path: Path, step: int) -> None:
    """Take out lines of steps that will be done again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # a line cut short by a kill
            continue
    aside = path.with_suffix(".part")
    aside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    aside.replace(path)
