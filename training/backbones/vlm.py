"""Encodes prompts as unit vectors with a vision-language model, and stores and loads trained ones."""

# Published (arXiv 2603.17450): the hidden state of a prompt's last token, L2-normalised; LoRA adapters on a
# pretrained backbone. A prompt is padded on the right, so causal attention never reads the padding and needs no mask.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from training.backbones.adapters import add_adapters, load_adapters, save_adapters
from training.backbones.backbone import Backbone, load_backbone
from training.backbones.batches import PictureGroup, PromptBatch, PromptGroup
from training.backbones.identity import ModelDescription, provenance, read_json

VISION = "visual."
"""Part of the names of the vision tower's weights."""


class VlmEmbedder(nn.Module):
    """Encodes prompts as unit vectors.

    Args:
        model: a Qwen-VL model, or one with LoRA adapters around it.

    Attributes:
        model: as given.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @property
    def base(self) -> PreTrainedModel:
        """The Qwen-VL model itself, adapters in place."""
        inner = self.model.get_base_model() if isinstance(self.model, peft.PeftModel) else self.model
        return cast("PreTrainedModel", inner)

    @property
    def adapted(self) -> bool:
        """Whether only adapters are trained."""
        return isinstance(self.model, peft.PeftModel)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.base.device

    @property
    def dim(self) -> int:
        """D, the length of the vectors."""
        return int(self.base.config.get_text_config().hidden_size)

    @property
    def trains_vision(self) -> bool:
        """Whether any weight of the vision tower is trained."""
        return any(weight.requires_grad for name, weight in self.named_parameters() if VISION in name)

    def forward(self, batch: PromptBatch) -> Tensor:
        """Vectors of every token to pool.

        Args:
            batch: on the model's device.

        Returns:
            (K, D) float32, rows of length 1, in the order of the groups.
        """
        seen = self.join_tokens([self.encode_pictures(pictures) for pictures in batch.pictures])
        made = [self.encode_group(group, seen) for group in batch.groups]
        return torch.cat(made) if made else self.no_vectors()

    def no_vectors(self) -> Tensor:
        """(0, D) float32, no vectors."""
        return torch.zeros(0, self.dim, device=self.base.device)

    def encode_pictures(self, pictures: PictureGroup) -> "VisualTokens":
        """The visual tokens of a group of pictures."""
        output = cast("Any", self.base).get_image_features(pictures.patches, pictures.grids, return_dict=True)
        deep = getattr(output, "deepstack_features", None) or ()
        layers = (torch.cat(tuple(tokens)) for tokens in (output.pooler_output, *deep))
        return VisualTokens(type(output), tuple(layers), pictures.grids)

    def join_tokens(self, parts: Sequence["VisualTokens"]) -> "VisualTokens | None":
        """The visual tokens of all groups of pictures, in the batch's numbering; None without any."""
        if not parts:
            return None
        layers = tuple(torch.cat(same) for same in zip(*(part.layers for part in parts), strict=True))
        grids = torch.cat([part.grids for part in parts])
        merge = int(self.base.config.vision_config.spatial_merge_size) ** 2
        return VisualTokens(parts[0].kind, layers, grids, single=bool((grids.prod(dim=1) == merge).all()))

    def encode_group(self, group: PromptGroup, seen: "VisualTokens | None") -> Tensor:
        """Vectors of one group's tokens to pool.

        Args:
            group: on the model's device.
            seen: visual tokens of the whole batch.

        Returns:
            (k, D) float32, rows of length 1.
        """
        options: dict[str, Any] = {}
        if seen is not None and len(group.visual):
            options["mm_encoder_outputs"] = {"image": seen.of_group(group)}
            options["position_ids"] = seen.positions(self.base, group)
        hidden = self.base(input_ids=group.input_ids, use_cache=False, **options).last_hidden_state
        return functional.normalize(hidden[group.pooled[:, 0], group.pooled[:, 1]].float(), dim=1)


@dataclass(frozen=True)
class VisualTokens:
    """The vision tower's output for pictures.

    Attributes:
        kind: class of transformers that passes them to a model in place of pixels.
        layers: (V, D) each: the visual tokens of all pictures in order, and the features that deeper layers add.
        grids: (k, 3) int64, patches of each picture.
        single: every picture is one token, so that positions are consecutive.
    """

    kind: type[Any]
    layers: tuple[Tensor, ...]
    grids: Tensor
    single: bool = False

    def as_leaves(self, *, requires_grad: bool) -> "VisualTokens":
        """The same values detached from their graph, as leaves that may collect a gradient."""
        layers = tuple(layer.detach().requires_grad_(requires_grad) for layer in self.layers)
        return replace(self, layers=layers)

    def of_group(self, group: PromptGroup) -> Any:  # noqa: ANN401 - a class of transformers per family
        """The visual tokens of this group, in the form that the model takes in place of pixels."""
        first, *deep = (layer[group.visual] for layer in self.layers)
        parts: dict[str, Any] = {"pooler_output": [first]}
        if deep:
            parts["deepstack_features"] = [[layer] for layer in deep]
        return self.kind(**parts)

    def positions(self, model: PreTrainedModel, group: PromptGroup) -> Tensor | None:
        """(3, n, T) positions in time, height and width; None if they are consecutive."""
        if self.single:
            return None
        shown = (group.input_ids == model.config.image_token_id).int()
        inside = torch.arange(group.input_ids.shape[1], device=shown.device)[None, :] < group.lengths[:, None]
        positions, _ = cast("Any", model).get_rope_index(
            group.input_ids, mm_token_type_ids=shown, image_grid_thw=self.grids[group.pictures], attention_mask=inside
        )
        return cast("Tensor", positions)


@dataclass(frozen=True)
class Embedding:
    """An embedder with tokenizer, image processor and limits.

    Attributes:
        embedder: the model.
        backbone: the same model's tokenizer and image processor.
        max_text_tokens: tokens kept of an item's text.
        max_history: items of a history that it was trained on.
        model: JSON-able provenance.
    """

    embedder: VlmEmbedder
    backbone: Backbone
    max_text_tokens: int
    max_history: int
    model: dict[str, Any]


def adapt(backbone: Backbone, *, rank: int, alpha: int, dropout: float, targets: Sequence[str]) -> nn.Module:
    """The backbone's model with LoRA adapters (Hu et al., 2021), everything else frozen.

    Args:
        backbone: pretrained.
        rank: of the adapters; 0 returns the model itself, every weight trainable.
        alpha: scale α / rank.
        dropout: inside the adapters.
        targets: names of the linear layers.

    Raises:
        BackboneError: no layer has one of these names.
    """
    if rank == 0:
        return backbone.model
    return add_adapters(backbone.model, rank=rank, alpha=alpha, dropout=dropout, targets=targets)


def save_embedder(
    directory: Path, embedder: VlmEmbedder, backbone: Backbone, *, source: str | None, revision: str | None,
    max_text_tokens: int, max_history: int, weights: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write a trained embedder; :func:`load_embedder` reads it back.

    Args:
        directory: created if needed; the description is written last.
        embedder: with LoRA adapters only these are written, and the backbone is read from ``source`` again.
        backbone: of the embedder.
        source: directory or hub id of the pretrained backbone; None if it was made from scratch.
        revision: of the hub id.
        max_text_tokens: tokens kept of an item's text.
        max_history: items of a history that it was trained on.
        weights: of ``embedder.model`` by name, in place of its own; at least the trained ones if it has adapters.
    """
    directory.mkdir(parents=True, exist_ok=True)
    adapted = embedder.adapted
    if adapted:
        save_adapters(embedder.model, directory, weights)
        backbone.save_processors(directory)
    else:
        backbone.save(directory, weights)
    # A directory may be a snapshot in the hub's cache, which records its commit.
    pinned = revision or getattr(backbone.model.config, "_commit_hash", None)
    ModelDescription(source, pinned, adapted, max_text_tokens, max_history).write(directory)


def load_embedder(directory: Path, *, dtype: str = "float32", attention: str = "sdpa") -> Embedding:
    """Read a trained embedder.

    Args:
        directory: of :func:`save_embedder`.
        dtype: of the weights.
        attention: implementation of attention in transformers.

    Raises:
        BackboneError: a part is missing or unreadable, or the prompts have changed since it was trained.
    """
    description = ModelDescription.read(directory)
    adapted, source = description.adapted, description.source if description.adapted else directory
    backbone = load_backbone(
        str(source), revision=description.revision if adapted else None, dtype=dtype, attention=attention
    )
    model: nn.Module = backbone.model
    if adapted:
        backbone = load_processors(directory, backbone)
        model = load_adapters(backbone.model, directory)
    made = provenance(directory, dtype=dtype, attention=attention)
    return Embedding(VlmEmbedder(model), backbone, description.max_text_tokens, description.max_history, made)


def load_processors(directory: Path, backbone: Backbone) -> Backbone:
    """The same model with the picture sizes saved beside its adapters."""
    settings = read_json(directory / "preprocessor_config.json")
    backbone.image_processor.size = settings["size"]
    return backbone
