"""Trains the last layers of a text encoder beside the heads, on stored states of the layers below them."""

# The layers below are frozen, so each text passes them once. What a batch needs of them is read from memory, and the
# cost of a step is that of the trained layers.

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from training.backbones.items.encoder_part import EncoderPart
from training.backbones.items.item_encoder import on_device, unit_rows
from training.backbones.items.pooling import pooled
from training.backbones.prompts import plain_text
from training.errors import BackboneError

if TYPE_CHECKING:
    from training.backbones.items.item_encoder import ItemEncoder
    from training.backbones.items.text_blocks import TextBlocks
    from training.backbones.items.towers import TextTower

LAYERS_FILE: Final = "text_layers.safetensors"
MODEL_TYPES: Final = ("bert", "roberta", "xlm-roberta")
"""``model_type`` of the text encoders whose layers can be trained."""
BELOW_LAYERS: Final = "texts below the trained layers"
"""Name of the step that computes :class:`TextStates`, in a display of progress."""
_TEXTS_AT_A_TIME = 64


class TextStates:
    """Hidden states below the trained layers, of a catalogue's texts.

    Args:
        rows: item rows that have a text.
        states: (T_i, D) float16 for each of them, its own tokens only.
    """

    def __init__(self, rows: Sequence[int], states: Sequence[Tensor]) -> None:
        self._states = dict(zip(rows, states, strict=True))

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Number of tokens of each text."""
        return [len(self._states[row]) for row in rows]

    def padded(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States (n, T, D) float32 of these rows, padded on the right, and their mask (n, T) int64."""
        found = [self._states[row] for row in rows]
        lengths = torch.tensor([len(states) for states in found])
        hidden = nn.utils.rnn.pad_sequence([states.float() for states in found], batch_first=True)
        return hidden, (torch.arange(hidden.shape[1])[None, :] < lengths[:, None]).long()


class LastTextLayers(nn.Module):
    """The last layers of a text encoder.

    Args:
        tower: the text encoder; its last layers are copied.
        count: number of layers.
        states: of the texts, below these layers.
        blocks: joins the vectors with TF-IDF; None for the vectors alone.

    Raises:
        BackboneError: its layers cannot be trained, or it has fewer.
    """

    def __init__(self, tower: "TextTower", count: int, states: TextStates, blocks: "TextBlocks | None") -> None:
        super().__init__()
        self.layers = copy.deepcopy(_layers(tower)[-count:]).float().requires_grad_()
        self._config, self._pooling, self._states, self._dim = tower.config, tower.pooling, states, tower.dim
        self._part = EncoderPart(tower.dim, blocks)

    def forward(self, rows: Tensor, features: Tensor) -> Tensor:
        """What the text head reads of items.

        Args:
            rows: (u,) int64 item rows with a text.
            features: (u, F) float32 of the frozen encoder; the terms in it are kept, the encoder's part is replaced.

        Returns:
            (u, F) float32; a gradient flows into the layers.
        """
        numbers = rows.tolist()
        lengths = self._states.lengths(numbers)
        order = sorted(range(len(numbers)), key=lengths.__getitem__)  # texts of similar length need little padding
        made = []
        for start in range(0, len(order), _TEXTS_AT_A_TIME):
            part = [numbers[place] for place in order[start : start + _TEXTS_AT_A_TIME]]
            made.append(self._encode(*self._states.padded(part), features.device))
        places = torch.empty(len(order), dtype=torch.int64)
        places[order] = torch.arange(len(order))
        vectors = torch.cat(made)[places.to(features.device)] if made else features[:, : self._dim]
        return cast("Tensor", self._part(vectors, features))

    def _encode(self, hidden: Tensor, mask: Tensor, device: torch.device) -> Tensor:
        hidden, mask = hidden.to(device), mask.to(device)
        attended = create_bidirectional_mask(config=self._config, inputs_embeds=hidden, attention_mask=mask)
        for layer in self.layers:
            hidden = layer(hidden, attended)
        return unit_rows(pooled(hidden, mask, self._pooling))

    def save(self, directory: Path) -> None:
        """Write ``text_layers.safetensors``."""
        save_file(
            {name: value.contiguous().cpu() for name, value in self.layers.state_dict().items()},
            directory / LAYERS_FILE,
        )


def last_text_layers(
    encoder: "ItemEncoder",
    count: int,
    texts: Sequence[str | None],
    rows: Sequence[int],
    blocks: "TextBlocks | None",
    *,
    progress: Callable[[str, int, int], None] = lambda _step, _done, _all: None,
) -> LastTextLayers:
    """The last layers of the text encoder of a pair of towers, with the states below them.

    Args:
        encoder: a pair of towers; it is left as it is.
        count: number of layers to train.
        texts: of the catalogue.
        rows: items with a text.
        blocks: joins the vectors with TF-IDF; None for the vectors alone.
        progress: called with :data:`BELOW_LAYERS`, the number of texts that passed the frozen layers, and of all.

    Raises:
        BackboneError: its layers cannot be trained, or it has fewer.
    """
    tower = text_tower(encoder)
    layers, kept = _layers(tower), []
    if count > len(layers):
        raise BackboneError(
            f"vlm.towers.trained_text_layers must be at most {len(layers)} for this text encoder, got {count}; lower it"
        )
    model = cast("Any", tower.model)
    device = next(tower.model.parameters()).device
    model.encoder.layer = layers[: len(layers) - count]
    try:
        with torch.inference_mode():
            for start in range(0, len(rows), _TEXTS_AT_A_TIME):
                progress(BELOW_LAYERS, start, len(rows))
                part = rows[start : start + _TEXTS_AT_A_TIME]
                inputs = on_device(tower.prepare([plain_text(texts[row] or "") for row in part]), device)
                hidden = model(**inputs).last_hidden_state.half().cpu()
                masks = inputs["attention_mask"].cpu().bool()
                kept += [states[mask] for states, mask in zip(hidden, masks, strict=True)]
    finally:
        model.encoder.layer = layers
    progress(BELOW_LAYERS, len(rows), len(rows))
    return LastTextLayers(tower, count, TextStates(rows, [states.clone() for states in kept]), blocks)


def restore_text_layers(encoder: "ItemEncoder", count: int, directory: Path) -> None:
    """Replace the last layers of a text encoder by trained ones, in place.

    Args:
        encoder: a pair of towers.
        count: number of trained layers.
        directory: with ``text_layers.safetensors``.

    Raises:
        BackboneError: the file is missing or unreadable, or of other layers.
    """
    path = directory / LAYERS_FILE
    try:
        _layers(text_tower(encoder))[-count:].load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["unreadable"])[0]
        raise BackboneError(f"{path}: the trained layers cannot be read ({reason}); train the model again") from error


def text_tower(encoder: "ItemEncoder") -> "TextTower":
    """The text encoder of a pair of towers.

    Raises:
        BackboneError: the encoder is of another family.
    """
    from training.backbones.items.towers import Towers

    if not isinstance(encoder, Towers):
        raise BackboneError('vlm.towers.trained_text_layers is for vlm.family = "towers"; set it to 0')
    return encoder.text


def _layers(tower: "TextTower") -> nn.ModuleList:
    if tower.config.model_type not in MODEL_TYPES:
        raise BackboneError(
            f"vlm.towers.trained_text_layers needs a text encoder of the type {', '.join(MODEL_TYPES)}, got "
            f"{tower.config.model_type!r}; set it to 0, or choose another model"
        )
    return cast("nn.ModuleList", cast("Any", tower.model).encoder.layer)
