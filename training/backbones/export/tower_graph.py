"""One modality of a trained run as one function of prepared inputs, which can be traced."""

from typing import cast

import torch
from torch import Tensor, nn

from index.items.slots import TEXT
from training.backbones.items.dual_encoder import DualEncoder
from training.backbones.items.heads import ModalityHeads
from training.backbones.items.item_encoder import Inputs
from training.backbones.items.towers import Towers
from training.backbones.items.trained_heads import ItemEmbedding
from training.errors import ExportError

TERMS = "terms"
"""Input: the block of TF-IDF of each text, see :meth:`training.backbones.items.text_blocks.TextBlocks.terms`."""
TowerEncoder = DualEncoder | Towers
"""Encoders whose two halves are functions of their own."""


class TowerGraph(nn.Module):
    """The encoder of one modality, the block of TF-IDF if there is one, and the head.

    Args:
        embedding: a trained run; its encoder is a :data:`TowerEncoder`.
        modality: ``text`` or ``image``.
    """

    def __init__(self, embedding: ItemEmbedding, modality: str) -> None:
        super().__init__()
        encoder = tower_encoder(embedding)
        self._encoder, self._modality = encoder, modality
        self.model = _weights(encoder, modality)
        self.heads = trained_heads(embedding)
        blocks = embedding.text_blocks if modality == TEXT else None
        if blocks is not None:
            self.register_buffer("centre", torch.from_numpy(blocks.centre))
            self.register_buffer("scales", torch.from_numpy(blocks.scales))

    def forward(self, inputs: Inputs) -> Tensor:
        """Vectors as ``vlm2rec embed`` stores them.

        Args:
            inputs: of the encoder; with :data:`TERMS` (n, K) float32 if the text head reads them.

        Returns:
            (n, D) float32, rows of length 1.
        """
        own = {name: value for name, value in inputs.items() if name != TERMS}
        vectors = self._encoder.encode(self._modality, own)
        if TERMS in inputs:
            vectors = self._join(vectors, inputs[TERMS])
        return self.heads.encode_items(self._modality, vectors)

    def _join(self, vectors: Tensor, terms: Tensor) -> Tensor:
        """As ``TextBlocks.join`` for items with a text."""
        centre, scales = cast("Tensor", self.centre), cast("Tensor", self.scales)
        size = vectors.shape[1]
        known = (terms != 0).any(dim=1, keepdim=True)
        block = torch.where(known, (terms - centre[size:]) * scales[1], torch.zeros_like(terms))
        return torch.cat([(vectors - centre[:size]) * scales[0], block], dim=1)


def tower_encoder(embedding: ItemEmbedding) -> TowerEncoder:
    """The encoder of a trained run.

    Raises:
        ExportError: it reads texts and pictures with one model.
    """
    encoder = embedding.encoder
    if not isinstance(encoder, DualEncoder | Towers):
        raise ExportError(
            f'vlm.family = "{embedding.source.family}" reads texts and pictures with one model, which has no towers to '
            'export; train with "dual-encoder" or "towers"'
        )
    return encoder


def trained_heads(embedding: ItemEmbedding) -> ModalityHeads:
    """The heads of a trained run.

    Raises:
        ExportError: it has none.
    """
    if embedding.heads is None:
        raise ExportError("an encoder without heads is not a trained run; train heads with `vlm2rec train`")
    return embedding.heads


def _weights(encoder: TowerEncoder, modality: str) -> nn.Module:
    """The module that holds the weights of a tower."""
    if isinstance(encoder, DualEncoder):
        return encoder.model
    return encoder.text.model if modality == TEXT else encoder.image.model
