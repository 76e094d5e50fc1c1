"""Computes InfoNCE, the contrastive loss of sequence → next item."""

from torch import Tensor

from training.losses.similarities import Similarities, log_confidence, mean_over


def info_nce(scores: Similarities) -> Tensor:
    """Cross-entropy of the diagonal among itself and the negatives, mean over the defined rows.

    Args:
        scores: logits and masks.

    Returns:
        Scalar ≥ 0, lower is better; exactly 0 if no row is defined. For B orthonormal pairs it is
        log(e^{1/τ} + B − 1) − 1/τ.
    """
    return mean_over(-log_confidence(scores), scores.rows)
