"""Defines one modality's vectors of a batch of pairs, the input of every loss."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModalityPairs:
    """One modality's vectors of a batch of B pairs (history, next item).

    Attributes:
        sequences: (B, D) L2-normalised; an absent row is zeros (any finite value gives the same loss).
        items: (B, D) L2-normalised; an absent row is zeros.
        sequence_present: (B,) bool, whether any item of the history has this modality.
        item_present: (B,) bool, whether the next item has it.
    """

    sequences: Tensor
    items: Tensor
    sequence_present: Tensor
    item_present: Tensor

    @property
    def present(self) -> Tensor:
        """(B,) bool: the modality is present on both sides."""
        return self.sequence_present & self.item_present

    def widened(self) -> "ModalityPairs":
        """The same in float32 at least; done once, so that the gradients of several terms add up in float32 too."""
        wide = torch.promote_types(self.sequences.dtype, torch.float32)
        return ModalityPairs(self.sequences.to(wide), self.items.to(wide), self.sequence_present, self.item_present)

    def without(self, hidden: Tensor) -> "ModalityPairs":
        """The same with this modality absent from some histories, (B,) bool."""
        return ModalityPairs(self.sequences, self.items, self.sequence_present & ~hidden, self.item_present)
