"""Defines the model that is fitted: projections, behaviour vectors and sequence encoder together."""

# The behaviour vector of an item is normalise(W · content + n / (n + k) · δ) with n training events: δ is its own, W is
# shared by all items, so items with few events begin where similar ones are.

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from index.items.slots import BEHAVIOUR, Slot, SlotLayout
from training.config.encoder_config import EncoderConfig
from training.embedding.pca import ModalityBasis, fit_basis
from training.embedding.store import Embeddings
from training.encoder.model import SequenceEncoder, SlotProjection

_BLOCK_ROWS = 65_536
_FIRST_OWN_LENGTH = 0.5


def slot_layout(config: EncoderConfig, embeddings: Embeddings) -> SlotLayout:
    """The configured slots that the embeddings can fill, in the configuration's order."""
    dims = {"text": config.text_dim, "image": config.image_dim, BEHAVIOUR: config.behaviour_dim}
    names = [name for name in config.slots if name == BEHAVIOUR or name in embeddings.vectors]
    return SlotLayout(tuple(Slot(name, dims[name]) for name in names))


class SlotModel(nn.Module):
    """Projections, behaviour vectors and sequence encoder.

    Args:
        embeddings: modality vectors of the catalogue.
        events: (n,) int64 training events of each item.
        config: sizes, dropout, and how many events a behaviour vector needs and trusts.
        like: a model of the same embeddings and configuration, whose fixed features are shared; None computes them.

    Attributes:
        layout: slots of the stored vectors.
        present: slot name → (n,) bool, items that have the slot.
        slot_components: (slots, Σd) float32, 1 where a component belongs to a slot, else 0.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        events: NDArray[np.int64],
        config: EncoderConfig,
        *,
        like: "SlotModel | None" = None,
    ) -> None:
        super().__init__()
        self.layout = slot_layout(config, embeddings)
        self.items = len(embeddings)
        self.slot_components = torch.zeros(len(self.layout.slots), self.layout.dim)
        for number, name in enumerate(self.layout.names):
            self.slot_components[number, self.layout.slice(name)] = 1
        self.bases: dict[str, ModalityBasis] = {}
        self.features: dict[str, Tensor] = {}
        self.present: dict[str, Tensor] = {}
        for name in self.layout.names:
            if name != BEHAVIOUR and like is None:
                self._add_modality(name, embeddings.vectors[name], config)
            elif name != BEHAVIOUR and like is not None:
                self.bases[name], self.features[name] = like.bases[name], like.features[name]
                self.present[name] = like.present[name]
        widths = {name: self.features[name].shape[1] for name in self.features}
        self.projection = SlotProjection(widths, {s.name: s.dim for s in self.layout.slots if s.name in widths})
        for linear in self.projection.linears().values():
            nn.init.zeros_(linear.bias)
            nn.init.eye_(linear.weight)  # begin with the first principal components as they are
        if BEHAVIOUR in self.layout.names:
            self._add_behaviour(events, config)
        self.encoder = SequenceEncoder(
            self.layout.dim,
            config.max_history,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            dropout=config.dropout,
        )

    def unit_slots(self, rows: Tensor) -> dict[str, Tensor]:
        """Slot vectors of items before they are stacked.

        Args:
            rows: (m,) int64 item rows.

        Returns:
            Slot name → (m, d), rows of length 1, or zero where absent.
        """
        units = self.projection({name: block[rows] for name, block in self.features.items()})
        if BEHAVIOUR in self.present:
            present = self.present[BEHAVIOUR][rows, None]
            units[BEHAVIOUR] = functional.normalize(self._behaviour_vectors(rows), dim=1) * present
        return dict(units)

    def final_projection(self) -> SlotProjection:
        """The projection with the fixed bases folded in: from modality vectors to slots."""
        inputs = {name: len(basis.mean) for name, basis in self.bases.items()}
        outputs = {slot.name: slot.dim for slot in self.layout.slots if slot.name in inputs}
        folded = SlotProjection(inputs, outputs)
        trained, targets = self.projection.linears(), folded.linears()
        for name, basis in self.bases.items():
            learned, target = trained[name], targets[name]
            weight = learned.weight.detach().double() @ torch.from_numpy(basis.directions.T.copy())
            bias = learned.bias.detach().double() - weight @ torch.from_numpy(basis.mean)
            with torch.no_grad():
                target.weight.copy_(weight)
                target.bias.copy_(bias)
        return folded.eval()

    def behaviour_slots(self) -> NDArray[np.float32]:
        """(n, d) behaviour vectors, zero for items without one."""
        with torch.inference_mode():
            vectors = self._behaviour_vectors(torch.arange(self.items)) * self.present[BEHAVIOUR][:, None]
        return np.asarray(vectors.numpy(), dtype=np.float32)

    def _behaviour_vectors(self, rows: Tensor) -> Tensor:
        """(m, d) behaviour vectors of any length: own vectors, with a content map the more the more events."""
        own: Tensor = self.behaviour(self.behaviour_row[rows])
        if self.behaviour_map is None:
            return own
        predicted: Tensor = self.behaviour_map(self.content[rows])
        return predicted + self.own_share[rows, None] * own

    def _add_behaviour(self, events: NDArray[np.int64], config: EncoderConfig) -> None:
        """Own vectors of the items with enough events, and the map from content that they are added to."""
        warm = events >= config.min_events
        self.present[BEHAVIOUR] = torch.from_numpy(warm)
        self.behaviour_row = torch.from_numpy(np.maximum(np.cumsum(warm) - 1, 0))
        self.behaviour = nn.Embedding(max(int(warm.sum()), 1), config.behaviour_dim)
        nn.init.normal_(self.behaviour.weight, std=1 / math.sqrt(config.behaviour_dim))
        self.behaviour_map: nn.Linear | None = None
        if not self.features or not config.behaviour_shrinkage:
            return
        self.content = functional.normalize(torch.cat(list(self.features.values()), dim=1), dim=1)
        self.own_share = torch.from_numpy(events / (events + config.behaviour_shrinkage)).float()
        self.behaviour_map = nn.Linear(self.content.shape[1], config.behaviour_dim, bias=False)
        nn.init.eye_(self.behaviour_map.weight)
        nn.init.normal_(self.behaviour.weight, std=_FIRST_OWN_LENGTH / math.sqrt(config.behaviour_dim))

    def _add_modality(self, name: str, vectors: NDArray[np.float32], config: EncoderConfig) -> None:
        self.bases[name] = fit_basis(vectors, config.components, whiten=config.whiten)
        self.features[name] = torch.from_numpy(self.bases[name].apply(vectors))
        self.present[name] = torch.from_numpy(np.concatenate([b.any(axis=1) for b in _blocks(vectors)]))


def stored_vectors(model: SlotModel, precision: str) -> NDArray[np.float32]:
    """Vectors of the whole catalogue as they would be stored, rounded to ``precision`` and back.

    Args:
        model: in evaluation mode.
        precision: ``float16`` or ``float32``.

    Returns:
        (n, Σd) float32.
    """
    blocks: dict[str, list[NDArray[np.float32]]] = {name: [] for name in model.layout.names}
    with torch.inference_mode():
        for start in range(0, model.items, _BLOCK_ROWS):
            rows = torch.arange(start, min(start + _BLOCK_ROWS, model.items))
            for name, made in model.unit_slots(rows).items():
                blocks[name].append(made.numpy())
    stacked = model.layout.stack({name: np.concatenate(parts) for name, parts in blocks.items()})
    return stacked.astype(precision).astype(np.float32)


def torch_encoder(model: SlotModel) -> Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]:
    """The encoder under PyTorch, called like :meth:`index.search.encoder.OnnxSequenceEncoder.encode`."""

    def encode(histories: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        lengths = torch.tensor([len(history) for history in histories])
        padded = nn.utils.rnn.pad_sequence([torch.from_numpy(history) for history in histories], batch_first=True)
        with torch.inference_mode():
            return np.asarray(model.encoder(padded, lengths).numpy(), dtype=np.float32)

    return encode


def _blocks(vectors: NDArray[np.float32], rows: int = _BLOCK_ROWS) -> list[NDArray[np.float32]]:
    return [vectors[start : start + rows] for start in range(0, max(len(vectors), 1), rows)]
