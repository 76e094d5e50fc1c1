"""Computes WPCL, the contrastive loss of the weak modality with heavier negatives."""

import torch
from torch import Tensor

from training.losses.modality_balance import ModalityBalance
from training.losses.similarities import Similarities, log_confidence, mean_over, off_diagonal


def wpcl_loss(by_text: Similarities, by_image: Similarities, balance: ModalityBalance, log_beta: Tensor) -> Tensor:
    """The weak modality's InfoNCE with log β added to the logits of its negatives.

    Args:
        by_text: similarities of the text.
        by_image: similarities of the image.
        balance: the weak modality of each row.
        log_beta: (B,) log β ≥ 0, without gradient.

    Returns:
        Scalar, lower is better: −mean_b log(e^{S_bb} / (e^{S_bb} + β_b Σ e^{S_bj})) over the rows with both
        modalities; 0 without such a row.
    """
    weak = balance.image_weak[:, None]
    logits = torch.where(weak, by_image.logits, by_text.logits)
    negatives = torch.where(weak, by_image.negatives, by_text.negatives)
    raised = logits + log_beta[:, None] * off_diagonal(logits)
    return mean_over(-log_confidence(Similarities(raised, negatives, balance.rows)), balance.rows)
