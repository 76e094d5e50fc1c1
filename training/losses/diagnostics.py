"""Measures how text and image fare beside each other in a training batch, for the log."""

# Everything is measured on the vectors of a training batch, without gradient and in float32 at least. A modality that
# collapses shows in all of it: its gradient fades, its confidence falls behind, its vectors use few directions.

import math

import torch
from torch import Tensor

from training.config.types import MODALITIES
from training.losses.modality_balance import weak_modality
from training.losses.modality_pairs import ModalityPairs
from training.losses.similarities import false_negatives, log_confidence, similarities

MOST_ROWS = 1_024
"""Vectors from which the spectrum and the distances are computed; a batch may have many more."""


def balance_of(
    text: ModalityPairs, image: ModalityPairs, item_ids: Tensor, histories: Tensor, *, temperature: float
) -> dict[str, float]:
    """The confidence of each modality in its own pairs, and which modality is weaker.

    Args:
        text: vectors of the text prompts.
        image: vectors of the image prompts.
        item_ids: (B,) int64, next items.
        histories: (B, L) int64, items that are not negatives, padded with −1.
        temperature: τ > 0.

    Returns:
        ``confidence text`` and ``confidence image``: mean log c^m ≤ 0, higher is better, over the rows that have the
        modality; ``gap``: mean |log c^text − log c^image| clipped at 4; ``image_weak``: share of the rows with both in
        which the image is the weaker one. A figure without a qualifying row is left out.
    """
    excluded = false_negatives(item_ids, histories)
    with torch.no_grad():
        by_text, by_image = (similarities(side.widened(), excluded, temperature) for side in (text, image))
        found = {
            f"confidence {name}": log_confidence(scores)[scores.rows].mean().item()
            for name, scores in zip(MODALITIES, (by_text, by_image), strict=True)
            if bool(scores.rows.any())
        }
    rows = weak_modality(by_text, by_image, weak_by="row", gap_kind="log_ratio")
    if bool(rows.rows.any()):
        found["gap"] = rows.gap[rows.rows].mean().item()
        found["image_weak"] = (rows.difference > 0)[rows.rows].float().mean().item()
    return found


def spread_of_items(text: ModalityPairs, image: ModalityPairs) -> dict[str, float]:
    """The spread of the items' vectors.

    Args:
        text: vectors of the text prompts.
        image: vectors of the image prompts.

    Returns:
        ``effective rank text|image`` and ``uniformity text|image`` of the items that have the modality, and
        ``cross-modal gap``: distance between the two modalities' centres (Liang et al., arXiv 2203.02053), in 0 … 2.
        A modality of fewer than two items is left out.
    """
    found: dict[str, float] = {}
    centres = []
    for name, modality in zip(MODALITIES, (text.widened(), image.widened()), strict=True):
        vectors = modality.items.detach()[modality.item_present]
        if len(vectors) < 2:
            continue
        vectors = vectors[:MOST_ROWS]
        found[f"effective rank {name}"] = effective_rank(vectors)
        found[f"uniformity {name}"] = uniformity(vectors)
        centres.append(vectors.mean(dim=0))
    if len(centres) == len(MODALITIES):
        found["cross-modal gap"] = torch.linalg.vector_norm(centres[0] - centres[1]).item()
    return found


def effective_rank(vectors: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values (Roy and Vetterli, 2007).

    Args:
        vectors: (n, D).

    Returns:
        From 1 (all in one direction) to min(n, D) (equally many in all); 0 if all are zero.
    """
    values = torch.linalg.svdvals(vectors.to(torch.promote_types(vectors.dtype, torch.float32)))
    total = values.sum()
    if not total > 0:
        return 0.0
    shares = values / total
    return math.exp(-torch.special.xlogy(shares, shares).sum().item())


def uniformity(vectors: Tensor) -> float:
    """Log of the mean of e^{−2 ‖x − y‖²} over pairs of different rows (Wang and Isola, 2020).

    Args:
        vectors: (n, D), n ≥ 2, rows of length 1.

    Returns:
        At most 0, where all vectors are one; lower is more evenly spread.
    """
    distances = torch.pdist(vectors)
    return (torch.logsumexp(-2 * distances.square(), dim=0) - math.log(len(distances))).item()


def squared_gradients(text: ModalityPairs, image: ModalityPairs) -> dict[str, float]:
    """Squared norm of the loss's gradient on each modality's vectors, pair by pair.

    Args:
        text: vectors that retained their gradient; None counts as 0.
        image: the same for the image.

    Returns:
        ``gradient <modality>`` → Σ of squares over histories and items; they add up over the processes,
        and the root of the sum is the norm.
    """
    return {
        f"gradient {name}": sum(
            vectors.grad.square().sum().item()
            for vectors in (modality.sequences, modality.items)
            if vectors.grad is not None
        )
        for name, modality in zip(MODALITIES, (text, image), strict=True)
    }
