"""Finds the weaker modality of each row, and by how much it is weaker."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.config.types import GapKind, WeakBy
from training.losses.similarities import Similarities, auc, log_confidence, mean_over, own_scale

GAP_CLIP = 4.0
"""Largest log-ratio gap that counts (our reading)."""


@dataclass(frozen=True)
class ModalityBalance:
    """Which modality is weak, and by how much; no gradient flows through any of it.

    Attributes:
        difference: (B,) text − image, of log c or of AUC; above 0 the image is weaker in this row.
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
    """The weak modality of every row from the confidences c^m = softmax(S^m)[b], or from AUC (our reading).

    Args:
        by_text: similarities of the text.
        by_image: similarities of the image.
        weak_by: ``ema``: one weak modality for the batch, by the moving average that includes this batch;
            ``row``: the lower confidence of each row; ``auc``: as ``ema``, of the AUC.
        gap_kind: ``log_ratio`` and ``probability`` compare without regard to which modality is weak; ``one_sided``,
            ``own_scale`` and ``auc`` are 0 in rows where the weak modality is not the weaker one.
        confidence_gap: the moving average before this batch.
        decay: weight of the old average; a batch without a qualifying row leaves the average unchanged.

    Returns:
        The balance. An average of exactly 0 leaves the weak modality undecided: every gap is then 0, so β = 1.
    """
    rows = by_text.rows & by_image.rows
    measure = auc if weak_by == "auc" else log_confidence
    difference = (measure(by_text) - measure(by_image)).masked_fill(~rows, 0.0)
    average = torch.full((), confidence_gap, dtype=difference.dtype, device=difference.device)
    if bool(rows.any()):
        average = decay * average + (1 - decay) * mean_over(difference, rows)
    image_weak = difference > 0 if weak_by == "row" else (average > 0).expand_as(rows)
    gap = _gap(by_text, by_image, image_weak, gap_kind).masked_fill(~rows, 0.0)
    if weak_by != "row":
        gap = torch.where(average == 0, torch.zeros_like(gap), gap)
    return ModalityBalance(difference, gap, image_weak, rows, average)


def _gap(by_text: Similarities, by_image: Similarities, image_weak: Tensor, kind: GapKind) -> Tensor:
    """(B,) g ≥ 0."""
    if kind == "auc":
        return _lead_of_strong(auc(by_text) - auc(by_image), image_weak)
    if kind == "own_scale":
        by_text, by_image = own_scale(by_text), own_scale(by_image)
    log_text, log_image = log_confidence(by_text), log_confidence(by_image)
    if kind == "probability":
        return (log_text.exp() - log_image.exp()).abs()
    difference = log_text - log_image
    return (difference.abs() if kind == "log_ratio" else _lead_of_strong(difference, image_weak)).clamp(max=GAP_CLIP)


def _lead_of_strong(difference: Tensor, image_weak: Tensor) -> Tensor:
    """The part of text − image by which the strong modality leads; 0 where the weak one leads."""
    return torch.where(image_weak, difference, -difference).clamp(min=0.0)
