"""Puts vectors of a trained encoder in the place of the stored ones, beside TF-IDF."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from training.backbones.items.text_blocks import TextBlocks


class EncoderPart(nn.Module):
    """Replaces the encoder's part of what the text head reads.

    Args:
        dim: D, length of the encoder's vectors.
        blocks: joins them with TF-IDF; None for the vectors alone.
    """

    def __init__(self, dim: int, blocks: "TextBlocks | None") -> None:
        super().__init__()
        self._dim = dim
        centre = torch.zeros(dim) if blocks is None else torch.from_numpy(blocks.centre[:dim])
        self._scale = 1.0 if blocks is None else float(blocks.scales[0])
        self.register_buffer("_centre", centre, persistent=False)

    def forward(self, vectors: Tensor, features: Tensor) -> Tensor:
        """(u, F) from the encoder's vectors (u, D) and the stored features (u, F)."""
        own = (vectors - cast("Tensor", self._centre)) * self._scale
        return torch.cat([own, features[:, self._dim :]], dim=1)
