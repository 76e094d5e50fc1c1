"""Finds the weaker modality of each row from the confidence of text and image in their own pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.config.types import GapKind, WeakBy
from training.losses.similarities import Similarities, log_confidence, mean_over

GAP_CLIP = 4.0
"""Largest log-ratio gap that counts (our reading)."""


@dataclass(frozen=True)
class ModalityBalance:
    """Which modality is weak, and by how much; no gradient flows through any of it.

    Attributes:
        difference: (B,) log c^text − log c^image; above 0 the image is weaker in this row.
        gap: (B,) g ≥ 0; 0 where a tie leaves the weak modality undecided.
        image_weak: (B,) bool, the image counts as the weak modality of this row.
        rows: (B,) bool, rows with both modalities on both sides.
        confidence_gap: scalar, moving average of the mean difference after this batch; above 0 the image is weak.
    """

    difference: Tensor
    gap: Tensor
    image_weak: Tensor
    rows: Tensor
    confidence_gap: Tensor


@torch.no_grad()
def weak_modality(
    by_text: Similarities,
    by_image: Similarities,
    *,
    weak_by: WeakBy,
    gap_kind: GapKind,
    confidence_gap: float = 0.0,
    decay: float = 0.0,
) -> ModalityBalance:
    """The weak modality of every row from the confidences c^m = softmax(S^m)[b] (our reading).

    Args:
        by_text: similarities of the text.
        by_image: similarities of the image.
        weak_by: ``ema``: one weak modality for the batch, by the moving average that includes this batch;
            ``row``: the lower confidence of each row.
        gap_kind: ``log_ratio`` or ``probability``.
        confidence_gap: the moving average before this batch.
        decay: weight of the old average; a batch without a qualifying row leaves the average unchanged.

    Returns:
        The balance. An average of exactly 0 leaves the weak modality undecided: every gap is then 0, so β = 1.
    """
    rows = by_text.rows & by_image.rows
    log_text, log_image = log_confidence(by_text), log_confidence(by_image)
    difference = (log_text - log_image).masked_fill(~rows, 0.0)
    gap = difference.abs().clamp(max=GAP_CLIP)
    if gap_kind == "probability":
        gap = (log_text.exp() - log_image.exp()).masked_fill(~rows, 0.0).abs()
    average = torch.full((), confidence_gap, dtype=difference.dtype, device=difference.device)
    if bool(rows.any()):
        average = decay * average + (1 - decay) * mean_over(difference, rows)
    if weak_by == "row":
        return ModalityBalance(difference, gap, difference > 0, rows, average)
    gap = torch.where(average == 0, torch.zeros_like(gap), gap)
    return ModalityBalance(difference, gap, (average > 0).expand_as(rows), rows, average)
