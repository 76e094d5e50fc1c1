"""The loss of the sequence encoder: every position names the next item among all items, or among a sample of them.

Full softmax over a small catalogue; above that a sampled softmax whose negatives are weighted by the inverse of how
often they are drawn (Bengio and Senécal, 2008), while the target keeps its exact term.
"""

import torch
from torch import Tensor
from torch.nn import functional

_IMPOSSIBLE = -1e9


def full_softmax_loss(queries: Tensor, items: Tensor, targets: Tensor, present: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the targets among all present items.

    Args:
        queries: (N, Σd).
        items: (n, Σd) stored vectors of the whole catalogue.
        targets: (N,) int64 rows of ``items``, all present.
        present: (n,) bool, rows that have at least one slot; the others cannot be recommended and do not compete.
        temperature: τ; scores are divided by it.

    Returns:
        Scalar, in nats.
    """
    logits = queries @ items.T / temperature
    return functional.cross_entropy(logits.masked_fill(~present[None, :], _IMPOSSIBLE), targets)


def sampled_softmax_loss(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor,
    clash: Tensor,
    log_expected: Tensor,
    temperature: float,
) -> Tensor:
    """Mean cross-entropy of the targets, the sum over all other items estimated from shared negatives.

    ``−log(e^{s⁺} / (e^{s⁺} + Σ_j e^{s_j} / (m·Q_j)))`` over m negatives j ≠ target drawn with replacement from Q: the
    sum is an unbiased estimate of that over all other items.

    Args:
        queries: (N, Σd).
        positives: (N, Σd) vector of the target of each query.
        negatives: (m, Σd) vectors of the drawn items.
        clash: (N, m) bool, where the negative is the target itself and does not count.
        log_expected: (m,) ``log(m·Q_j)``, how often j is expected in the sample.
        temperature: τ; scores are divided by it.

    Returns:
        Scalar, in nats.
    """
    own = (queries * positives).sum(dim=1, keepdim=True) / temperature
    others = queries @ negatives.T / temperature - log_expected[None, :]
    logits = torch.cat([own, others.masked_fill(clash, _IMPOSSIBLE)], dim=1)
    return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
