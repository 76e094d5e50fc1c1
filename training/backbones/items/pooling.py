"""Reduces the hidden states of a text's tokens to one vector."""

from typing import Literal

import torch
from torch import Tensor

TextPooling = Literal["mean", "cls", "last"]
"""Mean over the text's tokens, its first token, or its last one."""


def pooled(hidden: Tensor, mask: Tensor, pooling: TextPooling) -> Tensor:
    """One vector for each text.

    Args:
        hidden: (n, T, D) hidden states.
        mask: (n, T), 1 for the text's tokens and 0 for padding, which may be on either side.
        pooling: how tokens become one vector.

    Returns:
        (n, D), in the dtype of ``hidden``.
    """
    if pooling == "mean":
        weights = mask.to(hidden.dtype)[:, :, None]
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    numbers = torch.arange(mask.shape[1], device=mask.device)
    present = mask.bool()
    if pooling == "cls":
        places = torch.where(present, numbers, mask.shape[1]).amin(dim=1).clamp(max=mask.shape[1] - 1)
    else:
        places = torch.where(present, numbers, -1).amax(dim=1).clamp(min=0)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), places]
