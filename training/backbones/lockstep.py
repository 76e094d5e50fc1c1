"""Lets processes that each hold a part of one model's weights encode equally many groups of prompts and pictures."""

# Such processes gather each layer's weights together, so that a call of the model by one of them waits for a call by
# all others. A process with fewer groups in its part of a batch encodes the smallest possible group in their place.

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from training.backbones.batches import PictureGroup, PromptGroup


class Lockstep(Protocol):
    """All processes that hold parts of the same weights."""

    def most(self, counts: Sequence[int]) -> list[int]:
        """For each count the largest one of any process; every process must call this at the same time."""
        ...


def smallest_prompts(model: PreTrainedModel) -> PromptGroup:
    """One prompt of one token, without pictures, on the model's device."""
    one = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    none = one.new_zeros(0)
    return PromptGroup(one, torch.ones_like(one[0]), one.new_zeros(1, 2), none, none)


def smallest_pictures(model: PreTrainedModel) -> PictureGroup:
    """One grey picture of one visual token, on the model's device."""
    vision = model.config.vision_config
    side = int(vision.spatial_merge_size)
    values = int(getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2)
    grids = torch.tensor([[1, side, side]], device=model.device)
    return PictureGroup(torch.zeros(side * side, values, device=model.device), grids)
