"""Computes CRTR, which aligns the similarity distributions of the two modalities."""

import torch
from torch import Tensor

from training.losses.modality_pairs import ModalityPairs
from training.losses.similarities import MASKED, inner_products, mean_over, off_diagonal


def crtr_loss(
    text: ModalityPairs,
    image: ModalityPairs,
    item_ids: Tensor,
    excluded: Tensor,
    *,
    temperature: float,
    relation_temperature: float,
    image_weak: Tensor | None,
    positive: bool = False,
) -> Tensor:
    """½ [KL(R^text ‖ R^image) + KL(R^image ‖ R^text)], the mean of sequence–item and item–item relations.

    Args:
        text: vectors of the text prompts.
        image: vectors of the image prompts.
        item_ids: (B,) int64; two rows of the same item are not compared with each other.
        excluded: (B, B) bool from :func:`training.losses.similarities.false_negatives`.
        temperature: τ.
        relation_temperature: τ_r; R^m = softmax of S^m / τ_r over the others that both modalities share.
        image_weak: (B,) bool to keep the gradient out of the strong side of each row, or None for both sides.
        positive: a history is compared with its own next item too.

    Returns:
        Scalar ≥ 0, lower is better; a row needs at least 2 shared items to compare, without any such row exactly 0.
    """
    both = text.item_present & image.item_present
    scale = temperature * relation_temperature
    left_out = excluded & off_diagonal(excluded) if positive else excluded
    to_items = _symmetric_kl(
        inner_products(text.sequences, text.items) / scale,
        inner_products(image.sequences, image.items) / scale,
        ~left_out & both[None, :],
        text.sequence_present & image.sequence_present,
        image_weak,
    )
    between_items = _symmetric_kl(
        inner_products(text.items, text.items) / scale,
        inner_products(image.items, image.items) / scale,
        (item_ids[:, None] != item_ids[None, :]) & both[None, :],
        both,
        image_weak,
    )
    return (to_items + between_items) / 2


def _symmetric_kl(by_text: Tensor, by_image: Tensor, others: Tensor, rows: Tensor, image_weak: Tensor | None) -> Tensor:
    """½ mean over rows of both KL directions between two softmaxes over the same others; 0 without a row."""
    rows = rows & (others.sum(dim=1) >= 2)
    others = others | ~rows[:, None]  # a row that does not count gets a full softmax instead of NaN
    if image_weak is not None:
        weak = image_weak[:, None]
        by_text = torch.where(weak, by_text.detach(), by_text)
        by_image = torch.where(weak, by_image, by_image.detach())
    log_text = torch.log_softmax(by_text.masked_fill(~others, MASKED), dim=1).masked_fill(~others, 0.0)
    log_image = torch.log_softmax(by_image.masked_fill(~others, MASKED), dim=1).masked_fill(~others, 0.0)
    # (p − q)(log p − log q) summed is KL(p‖q) + KL(q‖p); masked columns have p = q = 1 here and give 0.
    both_ways = ((log_text.exp() - log_image.exp()) * (log_text - log_image)).sum(dim=1)
    return mean_over(both_ways, rows) / 2
