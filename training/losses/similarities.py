"""Computes the scaled similarities between histories and next items, and the masks of what may be compared."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.config.types import Fusion
from training.losses.modality_pairs import ModalityPairs

MASKED = float("-inf")
_MIN_NORM = 1e-6


@dataclass(frozen=True)
class Similarities:
    """Scaled similarities of a batch with what may be compared.

    Attributes:
        logits: (B, B) float32 or float64, row = history, column = next item, divided by the temperature.
        negatives: (B, B) bool, the columns that count as negatives of a row; never the diagonal.
        rows: (B,) bool, the rows whose own pair is defined.
    """

    logits: Tensor
    negatives: Tensor
    rows: Tensor


def false_negatives(item_ids: Tensor, histories: Tensor) -> Tensor:
    """Which columns must not be negatives of a row: the same item, or an item of the row's history.

    Args:
        item_ids: (B,) int64, the next items.
        histories: (B, L) int64, the items before them, padded with −1.

    Returns:
        (B, B) bool, True = excluded. The diagonal is always True: a pair is not a negative of itself.
    """
    distinct, code = torch.unique(item_ids, return_inverse=True)
    position = torch.searchsorted(distinct, histories.contiguous()).clamp(max=len(distinct) - 1)
    position = position.masked_fill(distinct[position] != histories, len(distinct))  # not an item of this batch
    seen = torch.zeros(len(item_ids), len(distinct) + 1, dtype=torch.bool, device=item_ids.device)
    seen.scatter_(1, position, value=True)
    excluded: Tensor = seen[:, code] | (code[:, None] == code[None, :])
    return excluded


def similarities(pairs: ModalityPairs, excluded: Tensor, temperature: float) -> Similarities:
    """S^m = z_s^m (z_i^m)ᵀ / τ of one modality.

    Args:
        pairs: vectors and presence.
        excluded: (B, B) bool from :func:`false_negatives`.
        temperature: τ > 0.

    Returns:
        Logits with the mask of this modality: an item without the modality is not a negative.
    """
    logits = inner_products(pairs.sequences, pairs.items) / temperature
    return Similarities(logits, ~excluded & pairs.item_present[None, :] & off_diagonal(logits), pairs.present)


def fused_similarities(
    text: ModalityPairs, image: ModalityPairs, excluded: Tensor, temperature: float, fusion: Fusion
) -> Similarities:
    """S over both modalities; where one modality is missing, the other alone.

    Args:
        text: vectors of the text prompts.
        image: vectors of the image prompts.
        excluded: (B, B) bool from :func:`false_negatives`.
        temperature: τ > 0.
        fusion: ``sum`` is the published one, z = normalise(z^text + z^image) on either side, so S has cross terms;
            ``concat`` is the mean of the S^m over the modalities that a history and an item share, as in serving.

    Returns:
        Logits; a row or column without any modality (``concat``: without a shared one) is masked out.
    """
    if fusion == "sum":
        logits = inner_products(_fuse(text, image, items=False), _fuse(text, image, items=True)) / temperature
        comparable = (text.sequence_present | image.sequence_present)[:, None] & (
            text.item_present | image.item_present
        )[None, :]
    else:
        shared_text = text.sequence_present[:, None] & text.item_present[None, :]
        shared_image = image.sequence_present[:, None] & image.item_present[None, :]
        by_text = inner_products(text.sequences, text.items).masked_fill(~shared_text, 0.0)
        by_image = inner_products(image.sequences, image.items).masked_fill(~shared_image, 0.0)
        shared = shared_text.to(by_text.dtype) + shared_image.to(by_text.dtype)
        logits = (by_text + by_image) / shared.clamp(min=1.0) / temperature
        comparable = shared_text | shared_image
    return Similarities(logits, ~excluded & comparable & off_diagonal(logits), comparable.diagonal())


def fused_parts(
    text: ModalityPairs, image: ModalityPairs, temperature: float, fusion: Fusion
) -> tuple[Tensor, Tensor, Tensor]:
    """What each modality adds to the fused S where a history and an item share both.

    Args:
        text: vectors of the text prompts.
        image: vectors of the image prompts.
        temperature: τ > 0.
        fusion: ``concat``: S is the sum of both parts; ``sum``: S has cross terms beside them.

    Returns:
        The parts of text and image, (B, B) each, and (B, B) bool, where both modalities are shared.
    """
    scale = torch.full((), 2.0 * temperature, dtype=text.sequences.dtype, device=text.sequences.device)
    if fusion == "sum":
        lengths = (_summed(text, image, items=side).norm(dim=1).clamp(min=_MIN_NORM) for side in (False, True))
        of_sequences, of_items = lengths
        scale = of_sequences[:, None] * of_items[None, :] * temperature
    shared = (text.sequence_present & image.sequence_present)[:, None] & (text.item_present & image.item_present)[None]
    by_text, by_image = (inner_products(side.sequences, side.items) / scale for side in (text, image))
    return by_text, by_image, shared


def log_confidence(scores: Similarities) -> Tensor:
    """(B,) log of softmax(S_b)[b] over the row's own pair and its negatives."""
    compared = scores.negatives | ~off_diagonal(scores.logits)
    return torch.log_softmax(scores.logits.masked_fill(~compared, MASKED), dim=1).diagonal()


def auc(scores: Similarities) -> Tensor:
    """(B,) share of a row's negatives below its own pair, ties by half; 1 without a negative."""
    own = scores.logits.diagonal()[:, None]
    below = (scores.logits < own).to(own.dtype) + 0.5 * (scores.logits == own).to(own.dtype)
    count = scores.negatives.sum(dim=1)
    share = (below * scores.negatives).sum(dim=1) / count.clamp(min=1)
    return torch.where(count > 0, share, torch.ones_like(share))


def own_scale(scores: Similarities) -> Similarities:
    """The same with logits divided by the deviation of the negatives from the mean of their row; unchanged if it is 0.

    The temperature, and how narrow a cone a modality's vectors lie in, then do not matter.
    """
    negatives = scores.negatives & scores.rows[:, None]
    count = negatives.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (scores.logits * negatives).sum(dim=1, keepdim=True) / count
    deviation = ((scores.logits - mean) * negatives).square().sum().div(negatives.sum().clamp(min=1)).sqrt()
    scale = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return Similarities(scores.logits / scale, scores.negatives, scores.rows)


def mean_over(values: Tensor, rows: Tensor) -> Tensor:
    """Mean of (B,) values over the chosen rows; exactly 0, still joined to the graph, if none is chosen."""
    chosen = torch.where(rows, values, torch.zeros_like(values))
    return chosen.sum() / rows.sum().clamp(min=1)


def inner_products(left: Tensor, right: Tensor) -> Tensor:
    """Left times right transposed in float32 at least, also inside an autocast region."""
    wide = torch.promote_types(left.dtype, torch.float32)
    with torch.autocast(left.device.type, enabled=False):
        return left.to(wide) @ right.to(wide).T


def off_diagonal(square: Tensor) -> Tensor:
    """(B, B) bool, False on the diagonal."""
    return ~torch.eye(square.shape[0], dtype=torch.bool, device=square.device)


def _fuse(text: ModalityPairs, image: ModalityPairs, *, items: bool) -> Tensor:
    """(B, D) normalise(z^text + z^image) over the modalities that are present."""
    return functional.normalize(_summed(text, image, items=items), dim=1, eps=_MIN_NORM)


def _summed(text: ModalityPairs, image: ModalityPairs, *, items: bool) -> Tensor:
    """(B, D) z^text + z^image over the modalities that are present."""
    if items:
        parts = ((text.items, text.item_present), (image.items, image.item_present))
    else:
        parts = ((text.sequences, text.sequence_present), (image.sequences, image.sequence_present))
    wide = torch.promote_types(parts[0][0].dtype, torch.float32)
    first, second = (vectors.to(wide).masked_fill(~present[:, None], 0.0) for vectors, present in parts)
    return first + second
