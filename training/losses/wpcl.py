"""Computes WPCL, the contrastive loss of the weak modality with heavier negatives."""

import torch
from torch import Tensor

from training.config.types import WpclKind
from training.losses.modality_balance import ModalityBalance
from training.losses.similarities import MASKED, Similarities, log_confidence, mean_over, off_diagonal


@torch.no_grad()
def negative_log_weights(
    by_text: Similarities,
    by_image: Similarities,
    balance: ModalityBalance,
    *,
    kind: WpclKind,
    alpha: float,
    hardness: float,
) -> Tensor:
    """Log of the weights ω_bj of the weak modality's negatives (our reading).

    ``margin`` gives every negative of a row the same β_b = 1 + α g_b. With p(positive) near 1 / B this leaves the
    direction of the gradient as it is. The other two change which negatives count:
    ``per_negative``: ω_bj = 1 + α relu(σ(S^w_bj − S^w_bb) − σ(S^s_bj − S^s_bb)), 1 where j lacks the strong modality;
    ``hard_negatives``: ω_bj = n_b softmax_j(η S^w_bj) over the n_b negatives of the row, so their mean is 1.

    Args:
        by_text: similarities of the text.
        by_image: similarities of the image.
        balance: the weak modality of each row, and the gap of ``margin``.
        kind: of the weights.
        alpha: α.
        hardness: η.

    Returns:
        (B, B) without gradient; what is not a negative has any finite value.
    """
    if kind == "margin":
        return torch.log1p(alpha * balance.gap)[:, None].expand_as(by_text.logits)
    weak, strong = _of_rows(by_text, by_image, balance.image_weak), _of_rows(by_text, by_image, ~balance.image_weak)
    if kind == "hard_negatives":
        masked = (hardness * weak.logits).masked_fill(~weak.negatives, MASKED)
        count = weak.negatives.sum(dim=1, keepdim=True).clamp(min=1)
        return (masked.log_softmax(dim=1) + count.to(masked.dtype).log()).masked_fill(~weak.negatives, 0.0)
    confused, also = (torch.sigmoid(side.logits - side.logits.diagonal()[:, None]) for side in (weak, strong))
    more = (confused - also).clamp(min=0.0).masked_fill(~strong.negatives, 0.0)
    return torch.log1p(alpha * more)


def wpcl_loss(by_text: Similarities, by_image: Similarities, balance: ModalityBalance, log_weights: Tensor) -> Tensor:
    """The weak modality's InfoNCE with log ω added to the logits of its negatives.

    Args:
        by_text: similarities of the text.
        by_image: similarities of the image.
        balance: the weak modality of each row.
        log_weights: (B, B) from :func:`negative_log_weights`.

    Returns:
        Scalar, lower is better: −mean_b log(e^{S_bb} / (e^{S_bb} + Σ ω_bj e^{S_bj})) over the rows with both
        modalities; 0 without such a row.
    """
    weak = _of_rows(by_text, by_image, balance.image_weak)
    raised = weak.logits + log_weights * off_diagonal(weak.logits)
    return mean_over(-log_confidence(Similarities(raised, weak.negatives, balance.rows)), balance.rows)


def mean_log_weight(
    log_weights: Tensor, by_text: Similarities, by_image: Similarities, balance: ModalityBalance
) -> Tensor:
    """Scalar, mean of log ω over a row's negatives, then over the rows with both modalities and a negative."""
    negatives = _of_rows(by_text, by_image, balance.image_weak).negatives
    count = negatives.sum(dim=1)
    means = (log_weights * negatives).sum(dim=1) / count.clamp(min=1)
    return mean_over(means, balance.rows & (count > 0))


def _of_rows(by_text: Similarities, by_image: Similarities, image: Tensor) -> Similarities:
    """Row by row the image's similarities where ``image`` (B,) bool says so, else the text's."""
    return Similarities(
        torch.where(image[:, None], by_image.logits, by_text.logits),
        torch.where(image[:, None], by_image.negatives, by_text.negatives),
        by_text.rows & by_image.rows,
    )
