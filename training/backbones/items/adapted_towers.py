"""Trains LoRA adapters in the towers of a dual encoder beside the heads: each batch encodes its items anew."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from index.items.slots import TEXT
from training.backbones.adapters import add_adapters
from training.backbones.items.encoder_part import EncoderPart
from training.backbones.items.item_encoder import Inputs, on_device
from training.backbones.prompts import plain_text
from training.config.vlm_config import LoraConfig
from training.data.picture_reader import open_picture
from training.errors import BackboneError, PictureError

if TYPE_CHECKING:
    from training.backbones.items.dual_encoder import DualEncoder
    from training.backbones.items.text_blocks import TextBlocks
    from training.data.stored.stored_pictures import PictureFile

_ITEMS_AT_A_TIME = 32


class AdaptedTowers(nn.Module):
    """A dual encoder with adapters in both towers.

    Args:
        encoder: its model gets the adapters; every other weight is frozen.
        lora: rank, scale, dropout and layers of the adapters.
        texts: of the catalogue.
        image_path: picture file of an item row.
        blocks: joins the vectors of texts with TF-IDF; None for the vectors alone.
        picture_bytes: memory for preprocessed pictures.
        recompute: keep the activations of one group of items at a time, at the cost of a second forward pass.

    Raises:
        BackboneError: no layer has one of the names in ``vlm.lora.targets``.
    """

    def __init__(
        self,
        encoder: "DualEncoder",
        lora: LoraConfig,
        *,
        texts: Sequence[str | None],
        image_path: "Callable[[int], PictureFile | None]",
        blocks: "TextBlocks | None",
        picture_bytes: int,
        recompute: bool,
    ) -> None:
        super().__init__()
        self._encoder, self._texts, self._image_path = encoder, texts, image_path
        self._left, self._recompute = picture_bytes, recompute
        self._kept: dict[int, Inputs] = {}
        self._part = EncoderPart(encoder.dims[TEXT], blocks)
        self.model = add_adapters(
            encoder.model, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout, targets=lora.targets
        )

    def forward(self, modality: str, rows: Tensor, features: Tensor) -> Tensor:
        """What the head of a modality reads of items.

        Args:
            modality: ``text`` or ``image``.
            rows: (u,) int64 item rows that have the modality.
            features: (u, F) float32 of the frozen encoder; the terms in it are kept, the encoder's part is replaced.

        Returns:
            (u, F) float32; a gradient flows into the adapters.

        Raises:
            BackboneError: a picture cannot be read any more.
        """
        numbers = rows.tolist()
        made = [
            self._encode(modality, numbers[start : start + _ITEMS_AT_A_TIME], features.device)
            for start in range(0, len(numbers), _ITEMS_AT_A_TIME)
        ]
        if not made:
            return features
        vectors = torch.cat(made)
        return cast("Tensor", self._part(vectors, features)) if modality == TEXT else vectors

    def _encode(self, modality: str, rows: Sequence[int], device: torch.device) -> Tensor:
        inputs = on_device(self._prepare(modality, rows), device)
        if self._recompute and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(self._encoder.encode, modality, inputs, use_reentrant=False))
        return self._encoder.encode(modality, inputs)

    def _prepare(self, modality: str, rows: Sequence[int]) -> Inputs:
        if modality == TEXT:
            return self._encoder.prepare_texts([plain_text(self._texts[row] or "") for row in rows])
        pictures = [self._picture(row) for row in rows]
        return {name: torch.cat([picture[name] for picture in pictures]) for name in pictures[0]}

    def _picture(self, row: int) -> Inputs:
        """A preprocessed picture, kept if there is memory for it."""
        if row in self._kept:
            return self._kept[row]
        path = self._image_path(row)
        try:
            if path is None:
                raise FileNotFoundError("it is gone")
            made = self._encoder.prepare_pictures([open_picture(path, self._encoder.picture_pixels)])
        except (OSError, PictureError, ValueError) as error:
            raise BackboneError(
                f"the picture of item row {row} cannot be read any more ({error}); restore it, then go on with --resume"
            ) from error
        size = sum(value.nbytes for value in made.values())
        if size <= self._left:
            self._left -= size
            self._kept[row] = made
        return made


def dual_encoder(encoder: object) -> "DualEncoder":
    """The encoder of a run with adapters.

    Raises:
        BackboneError: it is of another family.
    """
    from training.backbones.items.dual_encoder import DualEncoder

    if not isinstance(encoder, DualEncoder):
        raise BackboneError('vlm.adapters = true is for vlm.family = "dual-encoder"; set it to false')
    return encoder
