"""Moves the negatives of the fused loss from the strong modality to the weak one."""

import torch
from torch import Tensor

from training.config.types import Fusion
from training.losses.modality_balance import ModalityBalance
from training.losses.modality_pairs import ModalityPairs
from training.losses.similarities import Similarities, fused_parts


def shifted_negatives(
    fused: Similarities,
    text: ModalityPairs,
    image: ModalityPairs,
    balance: ModalityBalance,
    *,
    shift: float,
    temperature: float,
    fusion: Fusion,
) -> Similarities:
    """S̃_bb = S_bb and S̃_bj = S_bj + 2 γ_b (P^w_bj − P^s_bj), γ_b = γ tanh(g_b) (our reading).

    P^m is what modality m adds to S. With ``concat`` P^m = ½ S^m, so the repulsion of the weak modality's negatives has
    the weight ½ + γ_b and that of the strong one's ½ − γ_b: at γ = ½ the strong modality would lose all of it. With
    ``sum`` P^m is the product z^m · z^m inside the cosine, and the cross terms stay.

    Args:
        fused: similarities of :func:`training.losses.similarities.fused_similarities` of the same vectors.
        text: vectors of the text prompts.
        image: vectors of the image prompts.
        balance: the weak modality and the gap of each row; no gradient flows through either.
        shift: γ in [0, ¼]; 0 gives ``fused``.
        temperature: τ.
        fusion: of ``fused``.

    Returns:
        The same masks. Nothing moves where a history or an item lacks a modality.
    """
    by_text, by_image, shared = fused_parts(text, image, temperature, fusion)
    towards_image = torch.where(balance.image_weak, 1.0, -1.0).to(by_text.dtype)
    share: Tensor = 2 * shift * torch.tanh(balance.gap) * towards_image * balance.rows
    moved = share[:, None] * (by_image - by_text).masked_fill(~(shared & fused.negatives), 0.0)
    return Similarities(fused.logits + moved, fused.negatives, fused.rows)
