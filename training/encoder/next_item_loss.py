"""Computes the loss of the sequence encoder: full or sampled softmax of the next item at every position."""

# Full softmax over a small catalogue; above that a sampled softmax whose negatives are weighted by the inverse of
# their expected number of draws (Bengio and Senécal, 2008), while the target keeps its exact term.
#
# Each window may see only some of the slots ("slot dropout"), so an item has another stored vector in each. All of
# them are the item's unit slots side by side times a scale: stored = units · kept / √(slots kept and present).

import torch
from torch import Tensor
from torch.nn import functional

NO_TARGET = -1
_IMPOSSIBLE = -1e9


def slot_scale(kept: Tensor, present: Tensor) -> Tensor:
    """The factor on the unit slots of an item in a window.

    Args:
        kept: (B, slots) bool, slots that a window sees.
        present: (m, slots) bool, slots that an item has.

    Returns:
        (B, m) float32, 1 / √(slots kept and present), 0 where there is none.
    """
    count = kept.float() @ present.float().T
    return torch.where(count > 0, count.clamp(min=1).rsqrt(), 0.0)


def full_softmax_loss(
    queries: Tensor,
    units: Tensor,
    targets: Tensor,
    scale: Tensor,
    temperature: float,
    weights: Tensor | None = None,
    shown: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of the targets among all items that have a slot in the window.

    Args:
        queries: (B, L, Σd), zero in the slots that a window does not see.
        units: (n, Σd) unit slots of the whole catalogue side by side, zero where absent.
        targets: (B, L) int64 rows of ``units``, −1 for none; a target without a slot in the window counts as none.
        scale: (B, n), see :func:`slot_scale`.
        temperature: τ; scores are divided by it.
        weights: (B, L) of the targets in the mean; None: all weigh the same.
        shown: (B, L, k) int64 rows of ``units`` that are negatives once more, −1 for none; None: there are none.

    Returns:
        Scalar in nats; 0 if there is no target.
    """
    logits = (queries @ units.T) * (scale / temperature)[:, None, :]
    logits = logits.masked_fill((scale == 0)[:, None, :], _IMPOSSIBLE)
    if shown is not None:
        logits = torch.cat([logits, _shown_logits(queries, units, targets, scale, temperature, shown)], dim=-1)
    return _mean_cross_entropy(logits, torch.where(_counted(targets, scale), targets, NO_TARGET), weights)


def sampled_softmax_loss(
    queries: Tensor,
    units: Tensor,
    targets: Tensor,
    scale: Tensor,
    sample: Tensor,
    log_expected: Tensor,
    temperature: float,
    weights: Tensor | None = None,
    shown: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of the targets, the sum over all other items estimated from shared negatives.

    ``−log(e^{s⁺} / (e^{s⁺} + Σ_j e^{s_j} / (m·Q_j)))`` over m negatives j ≠ target drawn with replacement from Q: the
    sum is an unbiased estimate of that over all other items.

    Args:
        queries: (B, L, Σd), zero in the slots that a window does not see.
        units: (n, Σd) unit slots of targets and negatives side by side, zero where absent.
        targets: (B, L) int64 rows of ``units``, −1 for none; a target without a slot in the window counts as none.
        scale: (B, n), see :func:`slot_scale`.
        sample: (m,) int64 rows of ``units``, the negatives.
        log_expected: (m,) ``log(m·Q_j)``, log of the expected number of draws of j.
        temperature: τ; scores are divided by it.
        weights: (B, L) of the targets in the mean; None: all weigh the same.
        shown: as for :func:`full_softmax_loss`.

    Returns:
        Scalar in nats; 0 if there is no target.
    """
    rows = targets.clamp(min=0)
    own = (queries * functional.embedding(rows, units)).sum(dim=-1) * scale.gather(1, rows) / temperature
    reach = scale[:, sample]
    others = (queries @ units[sample].T) * (reach / temperature)[:, None, :] - log_expected
    excluded = (reach == 0)[:, None, :] | (sample == rows[..., None])
    logits = torch.cat([own[..., None], others.masked_fill(excluded, _IMPOSSIBLE)], dim=-1)
    if shown is not None:
        logits = torch.cat([logits, _shown_logits(queries, units, targets, scale, temperature, shown)], dim=-1)
    return _mean_cross_entropy(logits, torch.where(_counted(targets, scale), 0, NO_TARGET), weights)


def _shown_logits(
    queries: Tensor, units: Tensor, targets: Tensor, scale: Tensor, temperature: float, shown: Tensor
) -> Tensor:
    """(B, L, k) logits of the items shown before each target; arguments as for :func:`full_softmax_loss`."""
    rows = shown.clamp(min=0)
    reach = scale.gather(1, rows.flatten(1)).view(rows.shape)
    logits = (functional.embedding(rows, units) @ queries[..., None])[..., 0] * reach / temperature
    excluded = (shown < 0) | (reach == 0) | (shown == targets[..., None])
    return logits.masked_fill(excluded, _IMPOSSIBLE)


def _counted(targets: Tensor, scale: Tensor) -> Tensor:
    return (targets >= 0) & (scale.gather(1, targets.clamp(min=0)) > 0)


def _mean_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    if not bool((targets != NO_TARGET).any()):
        return logits.sum() * 0.0
    if weights is not None:
        losses = functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET, reduction="none"
        )
        counted = torch.where(targets == NO_TARGET, 0.0, weights).flatten()
        return (losses * counted).sum() / counted.sum()
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)
