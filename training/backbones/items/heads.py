"""Trains small heads on the stored vectors of a frozen encoder: one for items and one for histories per modality."""

# Our reading: the paper fine-tunes the whole model with adapters. Here the encoder is frozen, so that its vectors are
# computed once; an item is a linear map of its vector, and a history is a weighted mean of its items with one linear
# correction. Before training the item vectors are the encoder's own, centred, in their principal directions, and a
# history is the mean of its items.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from index.items.slots import IMAGE, TEXT
from training.backbones.items.last_layers import LastTextLayers

if TYPE_CHECKING:
    from training.backbones.items.adapted_towers import AdaptedTowers

_NAMES = {TEXT: "text", IMAGE: "visual"}
"""Names of the heads; "visual." marks weights of the picture's side, see :data:`training.backbones.vlm.VISION`."""
_MOST_ROWS = 20_000
_SMALLEST = 1e-6
"""Bias of the first coordinate, so that an item whose vector is the catalogue's mean keeps a direction."""


@dataclass(frozen=True)
class FeatureGroup:
    """Items and histories of one modality, as rows of stored vectors.

    Attributes:
        modality: ``text`` or ``image``.
        features: (u, F) float32, the distinct items' vectors.
        members: (k, L) int64 rows of ``features`` for each output, newest first, padded with −1.
        histories: (k,) bool, whether an output is a history or an item.
        rows: (u,) int64 item rows of ``features``.
    """

    modality: str
    features: Tensor
    members: Tensor
    histories: Tensor
    rows: Tensor

    def to(self, device: torch.device) -> "FeatureGroup":
        """The same on a device."""
        parts = (self.features, self.members, self.histories, self.rows)
        return FeatureGroup(self.modality, *(part.to(device) for part in parts))


@dataclass(frozen=True)
class FeatureBatch:
    """The input of one pass of the heads.

    Attributes:
        groups: one a modality; the output has their rows one after the other.
    """

    groups: tuple[FeatureGroup, ...]

    def to(self, device: torch.device) -> "FeatureBatch":
        """The same on a device."""
        return FeatureBatch(tuple(group.to(device) for group in self.groups))


class _Head(nn.Module):
    """The heads of one modality.

    Args:
        features: F, length of the stored vectors.
        length: D, length of the outputs.
        max_history: L, longest history.
    """

    centre: Tensor

    def __init__(self, features: int, length: int, max_history: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.projection = nn.Linear(features, length)
        self.recency = nn.Parameter(torch.zeros(max_history))
        self.step = nn.Linear(length, length, bias=False)
        nn.init.zeros_(self.step.weight)

    def forward(self, group: FeatureGroup, features: Tensor) -> Tensor:
        """(k, D) float32, rows of length 1, from (u, F) vectors of the group's items."""
        projected = self.project(features)
        present = group.members >= 0
        rows = projected[group.members.clamp(min=0)]  # (k, L, D)
        weights = self.recency[: group.members.shape[1]].expand(group.members.shape).masked_fill(~present, -torch.inf)
        mean = (functional.softmax(weights.float(), dim=1)[:, :, None] * rows).sum(dim=1)
        read = mean + self.step(mean).float()
        return functional.normalize(torch.where(group.histories[:, None], read, rows[:, 0]), dim=1)

    def project(self, features: Tensor) -> Tensor:
        """(u, D) float32 vectors of items, rows of length 1, from (u, F)."""
        return functional.normalize(self.projection(features - self.centre).float(), dim=1)


class ModalityHeads(nn.Module):
    """Heads for each modality of a frozen encoder.

    Args:
        dims: modality → F, length of its stored vectors.
        length: D, length of the outputs.
        max_history: newest items of a history that are read.

    Attributes:
        dims: as given.
        dim: D.
        max_history: as given.
        text_layers: last layers of the text encoder that are trained with the heads; None where it is frozen.
        adapters: both towers of the encoder with adapters that are trained with the heads; None where it is frozen.
    """

    text_layers: LastTextLayers | None
    adapters: "AdaptedTowers | None"

    def __init__(self, dims: Mapping[str, int], length: int, max_history: int) -> None:
        super().__init__()
        self.dims, self.dim, self.max_history = dict(dims), length, max_history
        self.text_layers = None
        self.adapters = None
        self.heads = nn.ModuleDict({_NAMES[name]: _Head(size, length, max_history) for name, size in dims.items()})

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, batch: FeatureBatch) -> Tensor:
        """Vectors of items and histories.

        Args:
            batch: on the heads' device.

        Returns:
            (K, D) float32, rows of length 1, in the order of the groups.
        """
        made = [
            self.heads[_NAMES[group.modality]](group, self._read(group)) for group in batch.groups if len(group.members)
        ]
        return torch.cat(made) if made else torch.zeros(0, self.dim, device=self.device)

    def encode_items(self, modality: str, features: Tensor) -> Tensor:
        """Vectors of items alone.

        Args:
            modality: ``text`` or ``image``.
            features: (u, F) float32, what the head reads.

        Returns:
            (u, D) float32, rows of length 1.
        """
        return cast("_Head", self.heads[_NAMES[modality]]).project(features)

    def _read(self, group: FeatureGroup) -> Tensor:
        """(u, F) what the head of a group reads of its items."""
        if self.adapters is not None:
            return cast("Tensor", self.adapters(group.modality, group.rows, group.features))
        if group.modality == TEXT and self.text_layers is not None:
            return cast("Tensor", self.text_layers(group.rows, group.features))
        return group.features

    def start_at(self, features: Mapping[str, NDArray[np.float32]]) -> None:
        """Set the item heads to the principal directions of a catalogue's vectors.

        Args:
            features: modality → (n, F) float32, a row of zeros where an item lacks the modality.
        """
        for name, block in features.items():
            head = cast("_Head", self.heads[_NAMES[name]])
            rows = np.flatnonzero(block.any(axis=1))
            rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _MOST_ROWS)).astype(np.int64)]
            sample = torch.from_numpy(np.asarray(block[rows], dtype=np.float64))
            weights = torch.zeros(self.dim, self.dims[name], dtype=torch.float64)
            if len(sample):
                centre = sample.mean(dim=0)
                _, directions = torch.linalg.eigh((sample - centre).T @ (sample - centre))
                kept = directions.flip(1)[:, : self.dim].T  # of the largest variance first
                weights[: len(kept)] = kept
                head.centre.copy_(centre.float())
            with torch.no_grad():
                head.projection.weight.copy_(weights.float())
                head.projection.bias.zero_()
                head.projection.bias[0] = _SMALLEST


class FeatureRows:
    """Collects outputs of one modality.

    Args:
        modality: ``text`` or ``image``.
        features: (n, F) float32, a row of zeros where an item lacks the modality.
        max_history: newest items of a history that are read.
    """

    def __init__(self, modality: str, features: NDArray[np.float32], max_history: int) -> None:
        self.modality = modality
        self._features, self._width = features, max_history
        self._members: list[Sequence[int]] = []
        self._histories: list[bool] = []
        self._present: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self._members)

    def item(self, row: int) -> int:
        """Add an item; returns the number of its output, −1 if it lacks the modality."""
        return self._add([row], history=False) if self.has(row) else -1

    def history(self, rows: Sequence[int]) -> int:
        """Add a history, oldest first; returns the number of its output, −1 if no item has the modality."""
        kept = [row for row in rows if self.has(row)][-self._width :]
        return self._add(kept[::-1], history=True) if kept else -1

    def has(self, row: int) -> bool:
        """Whether an item has the modality."""
        if row not in self._present:
            self._present[row] = bool(self._features[row].any())
        return self._present[row]

    def group(self) -> FeatureGroup:
        """Everything that was added, in its order."""
        width = max((len(members) for members in self._members), default=1)
        members = np.full((len(self._members), width), -1, dtype=np.int64)
        for number, rows in enumerate(self._members):
            members[number, : len(rows)] = rows
        distinct, places = np.unique(members, return_inverse=True)
        padded = int(len(distinct) > 0 and distinct[0] < 0)
        features = np.asarray(self._features[distinct[padded:]], dtype=np.float32)
        return FeatureGroup(
            self.modality,
            torch.from_numpy(features),
            torch.from_numpy(places.reshape(members.shape).astype(np.int64) - padded),
            torch.tensor(self._histories, dtype=torch.bool),
            torch.from_numpy(distinct[padded:].astype(np.int64)),
        )

    def _add(self, members: Sequence[int], *, history: bool) -> int:
        self._members.append(members)
        self._histories.append(history)
        return len(self._members) - 1
