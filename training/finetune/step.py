"""Takes one optimiser step: encodes a batch, computes the loss over the global batch, updates the weights by AdamW."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from index.items.slots import IMAGE, TEXT
from training.backbones.batches import PairBatch, spread
from training.backbones.gradient_cache import Embedder, encode
from training.backbones.vlm import VISION
from training.config.run_config import LossConfig, TrainConfig
from training.errors import OutOfMemory
from training.finetune.distributed import ProcessGroup
from training.finetune.processes.sharding import own_part, whole
from training.losses import diagnostics
from training.losses.method_loss import MethodLoss, method_loss
from training.losses.modality_pairs import ModalityPairs
from training.runs.learning_rate import LearningRateSchedule

TEXT_LAYERS = "text_layers."
"""Start of the names of trained layers of a text encoder."""
ADAPTERS = "adapters."
"""Start of the names of adapters in a dual encoder."""
_VISION_MODEL = ".vision_model."
"""Part of the names of a dual encoder's image tower."""
_DROPOUT = 1
"""Seeds modality dropout differently from the order of the pairs."""
_HOST_IS_FULL = "DefaultCPUAllocator"
"""Part of PyTorch's message when the host's memory, not a GPU's, is exhausted; that error has no class of its own."""


@dataclass(frozen=True)
class GlobalBatch:
    """The pairs of all processes.

    Attributes:
        text: vectors of the text prompts; a gradient flows into those of this process.
        image: vectors of the image prompts; a gradient flows into those of this process.
        item_ids: (B,) int64 rows of the next items.
        histories: (B, L) int64 item rows that must not be negatives, padded with −1.
    """

    text: ModalityPairs
    image: ModalityPairs
    item_ids: Tensor
    histories: Tensor


@dataclass(frozen=True)
class StepResult:
    """The result of one step.

    Attributes:
        loss: its terms.
        gradient_norm: before clipping; None if the loss was not finite.
        batch: of all processes.
        diagnostics: see :mod:`training.losses.diagnostics`; empty unless requested.
    """

    loss: MethodLoss
    gradient_norm: float | None
    batch: GlobalBatch
    diagnostics: Mapping[str, float]

    @property
    def diverged(self) -> tuple[str, float] | None:
        """Name and value of what is not finite, in which case the weights are unchanged; None if all is finite."""
        total = self.loss.total.item()
        if not math.isfinite(total):
            return "loss", total
        if self.gradient_norm is not None and not math.isfinite(self.gradient_norm):
            return "norm of the gradient", self.gradient_norm
        return None


class ContrastiveStep:
    """Updates a model's weights, batch by batch.

    Args:
        embedder: the model, in training mode; sharded before if ``train.shard`` is set.
        accelerator: moves the model to its device, casts and clips.
        processes: all processes of the run.
        loss: the terms of the loss.
        train: peak rates, clipping, and use of memory.

    Attributes:
        optimizer: AdamW over the trained weights, each group at its peak rate.
    """

    def __init__(
        self,
        embedder: Embedder,
        accelerator: Accelerator,
        processes: ProcessGroup,
        loss: LossConfig,
        train: TrainConfig,
    ) -> None:
        self._accelerator, self._processes = accelerator, processes
        self._loss, self._options = loss, train
        self._embedder = embedder if train.shard else embedder.to(accelerator.device)
        self.optimizer = AdamW(_weight_groups(embedder, train))

    def __call__(self, own: PairBatch, *, step: int, confidence_gap: float, diagnose: bool = False) -> StepResult:
        """Take a step.

        Args:
            own: this process's part of the batch.
            step: steps done before; seed, step and number of the process seed dropout.
            confidence_gap: moving average before this batch, see :func:`training.losses.method_loss.method_loss`.
            diagnose: compute the diagnostics as well.

        Returns:
            The result; if the loss or the norm of the gradient is not finite, the weights are unchanged.

        Raises:
            OutOfMemory: the batch does not fit; the message says what to lower.
        """
        try:
            return self._take(own, step, confidence_gap, diagnose=diagnose)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not isinstance(error, torch.OutOfMemoryError) and _HOST_IS_FULL not in str(error):
                raise
            raise OutOfMemory(self._what_to_lower(step, error)) from error

    def autocast(self) -> AbstractContextManager[None]:
        """The context that the model runs under."""
        return cast("AbstractContextManager[None]", self._accelerator.autocast())

    def _take(self, own: PairBatch, step: int, confidence_gap: float, *, diagnose: bool) -> StepResult:
        torch.manual_seed(hash((self._options.seed, step, self._processes.number)) % 2**63)
        prompts = own.prompts.to(self._accelerator.device)
        encoded = encode(
            self._embedder,
            prompts,
            autocast=self.autocast,
            cached=self._options.cached_gradients,
            lockstep=self._processes if self._options.shard else None,
        )
        text, image = (_side(encoded.outputs, own, name) for name in (TEXT, IMAGE))
        if diagnose:
            for vectors in (text.sequences, text.items, image.sequences, image.items):
                vectors.retain_grad()
        batch = self._global(text, image, own)
        both = batch.text.present & batch.image.present
        hidden = hidden_modalities(both, self._loss.modality_dropout, seed=self._options.seed, step=step)
        loss = method_loss(
            batch.text,
            batch.image,
            batch.item_ids,
            batch.histories,
            self._loss,
            hidden=hidden,
            confidence_gap=confidence_gap,
        )
        if not math.isfinite(loss.total.item()):
            return StepResult(loss, None, batch, {})
        torch.autograd.backward([loss.total])
        encoded.backward()
        weights = list(self._embedder.parameters())
        if not self._options.shard:  # FSDP2 has summed them
            self._processes.sum_gradients(weights)
        diagnosed = self._diagnose(text, image, batch) if diagnose else {}
        norm = float(whole(self._accelerator.clip_grad_norm_(weights, self._options.gradient_clip)))
        if math.isfinite(norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return StepResult(loss, norm, batch, diagnosed)

    def _diagnose(self, text: ModalityPairs, image: ModalityPairs, batch: GlobalBatch) -> dict[str, float]:
        """Diagnostics of this batch, before its gradients are clipped."""
        squares = self._processes.summed(diagnostics.squared_gradients(text, image))
        towers = {"language model": 0.0, "vision tower": 0.0}
        for name, weight in self._embedder.named_parameters():
            if weight.grad is not None:
                towers["vision tower" if _is_vision(name) else "language model"] += (
                    own_part(weight.grad).float().square().sum().item()
                )
        if self._options.shard:
            towers = self._processes.summed(towers)
        norms = {name: math.sqrt(value) for name, value in squares.items()}
        norms |= {f"gradient {name}": math.sqrt(value) for name, value in towers.items()}
        sides = batch.text, batch.image
        return {
            **diagnostics.balance_of(*sides, batch.item_ids, batch.histories, temperature=self._loss.temperature),
            **diagnostics.spread_of_items(*sides),
            **norms,
        }

    def _global(self, text: ModalityPairs, image: ModalityPairs, own: PairBatch) -> GlobalBatch:
        """The pairs of all processes from the vectors of this one."""
        device = self._accelerator.device
        item_ids, histories = own.item_ids.to(device), own.histories.to(device)
        if self._processes.count == 1:
            return GlobalBatch(text, image, item_ids, histories)
        vectors = torch.cat([text.sequences, text.items, image.sequences, image.items], dim=1)
        flags = (text.sequence_present, text.item_present, image.sequence_present, image.item_present)
        numbers = torch.stack([item_ids, *(flag.long() for flag in flags)], dim=1)
        vectors, numbers = self._processes.gathered(vectors), self._processes.gathered(numbers)
        sides = vectors.chunk(4, dim=1)
        present = [column.bool() for column in numbers[:, 1:].unbind(dim=1)]
        return GlobalBatch(
            ModalityPairs(sides[0], sides[1], present[0], present[1]),
            ModalityPairs(sides[2], sides[3], present[2], present[3]),
            numbers[:, 0],
            self._processes.gathered(self._processes.padded(histories, -1)),
        )

    def _what_to_lower(self, step: int, error: Exception) -> str:
        options = self._options
        reason = (str(error).strip().splitlines() or ["no further reason"])[0]
        first = (
            f"lower train.chunk_tokens ({options.chunk_tokens}) and train.chunk_patches ({options.chunk_patches})"
            if options.cached_gradients
            else f"set train.cached_gradients = true, or lower train.batch_size ({options.batch_size})"
        )
        return (
            f"step {step + 1} needs more memory than is available ({reason}); {first}; "
            'vlm.activation_checkpointing = true and train.precision = "bf16" save memory as well, smaller '
            "vlm.max_picture_pixels and vlm.max_text_tokens most of all. "
            "Everything but batch size, precision, pixels and text may change for --resume"
        )


def hidden_modalities(both: Tensor, share: float, *, seed: int, step: int) -> Tensor | None:
    """Histories of which the fused loss sees one modality (modality dropout); the same in every process.

    Args:
        both: (B,) bool, pairs with both modalities on both sides.
        share: share of these pairs that lose one modality; both modalities are lost equally often.
        seed: of the run.
        step: steps done before.

    Returns:
        (B, 2) bool, whether the text and whether the image is hidden; None if the share is 0.
    """
    if not share:
        return None
    drawn = torch.from_numpy(np.random.default_rng([_DROPOUT, seed, step]).random((len(both), 2))).to(both.device)
    loses, is_text = both & (drawn[:, 0] < share), drawn[:, 1] < 0.5
    return torch.stack([loses & is_text, loses & ~is_text], dim=1)


def learning_rate_schedule(options: TrainConfig) -> LearningRateSchedule:
    """Warm-up over a share of the steps; the decay is sampled at the middle of each remaining step, so never 0."""
    warmup = max(1, round(options.warmup * options.steps))
    return LearningRateSchedule(
        warmup, options.decay, decay_start=warmup - 0.5, decay_steps=max(1, options.steps - warmup)
    )


def _side(outputs: Tensor, batch: PairBatch, modality: str) -> ModalityPairs:
    """A modality's vectors; all absent if it is not trained."""
    nowhere = torch.full_like(batch.item_ids, -1)
    sequences = batch.sequences.get(modality, nowhere).to(outputs.device)
    items = batch.items.get(modality, nowhere).to(outputs.device)
    return ModalityPairs(spread(outputs, sequences), spread(outputs, items), sequences >= 0, items >= 0)


def _is_vision(name: str) -> bool:
    return VISION in name or _VISION_MODEL in name


def _weight_groups(model: nn.Module, train: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's groups: vision tower, text layers and adapters have their own rates, biases and norms no decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            factor = train.vision_rate if _is_vision(name) else 1.0
            factor *= train.adapters_rate if name.startswith(ADAPTERS) else 1.0
            rate = train.learning_rate * (train.text_layers_rate if name.startswith(TEXT_LAYERS) else factor)
            groups.setdefault((rate, train.weight_decay if weight.ndim > 1 else 0.0), []).append(weight)
    return [{"params": weights, "lr": rate, "weight_decay": decay} for (rate, decay), weights in groups.items()]
