"""Defines what every encoder of single items offers: prepare texts or pictures, then encode them as unit vectors."""

# A Qwen-VL model of `training.backbones.vlm` reads whole histories as prompts. The encoders here read one item at a
# time, so their vectors can be stored once; what is learned of histories lies in the heads on top of them
# (`training.backbones.items.heads`).

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

Inputs = dict[str, Tensor]
"""Arguments of a model by name; the first dimension of each counts items, unless the encoder says otherwise."""


class ItemEncoder(Protocol):
    """A pretrained model that encodes items, one modality at a time."""

    @property
    def model(self) -> nn.Module:
        """Every weight."""
        ...

    @property
    def dims(self) -> Mapping[str, int]:
        """Modality (``text``, ``image``) → length D of its vectors."""
        ...

    @property
    def picture_pixels(self) -> int:
        """Most pixels that a picture is encoded with."""
        ...

    def prepare_texts(self, texts: Sequence[str]) -> Inputs:
        """Inputs of :meth:`encode` for texts.

        Args:
            texts: n texts, none of them empty.
        """
        ...

    def prepare_pictures(self, pictures: Sequence[Image.Image]) -> Inputs:
        """Inputs of :meth:`encode` for pictures.

        Args:
            pictures: n pictures in RGB.

        Raises:
            ValueError: the image processor refuses a picture.
        """
        ...

    def encode(self, modality: str, inputs: Inputs) -> Tensor:
        """Vectors of prepared texts or pictures.

        Args:
            modality: of the inputs.
            inputs: on the model's device.

        Returns:
            (n, D) float32, rows of length 1; a gradient flows into trainable weights.
        """
        ...


def unit_rows(vectors: Tensor, length: int | None = None) -> Tensor:
    """Rows of length 1.

    Args:
        vectors: (n, D).
        length: first coordinates to keep before the rows are normalised, for models trained so that these suffice
            (Matryoshka, Kusupati et al., 2022); None keeps all.

    Returns:
        (n, length) float32.
    """
    return functional.normalize(vectors[:, :length].float(), dim=1)


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs on a device."""
    return {name: value.to(device) for name, value in inputs.items()}
