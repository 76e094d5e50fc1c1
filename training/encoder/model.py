"""Defines the learned parts: the projection of modality vectors to slots, and the sequence encoder of histories."""

# See docs/method.md, "From VLM vectors to an online encoder". The transformer follows SASRec (Kang and McAuley, ICDM
# 2018): causal self-attention over the history, every position trained to predict the next item. The differences are
# our reading: the input is the stored vector of an item instead of an id, and the output a query with the same slots;
# order enters as a learned bias per distance between two positions (as in T5, Raffel et al., 2020) instead of a
# position embedding; a recency-weighted mean of the history is added to the output, so that an untrained encoder
# already recommends items like the last ones.
#
# With distances, positions count back from the newest item. The state at position t of a long history is then exactly
# the output for the history that ends at t, so training on every position trains what is served.

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

_MASKED = -1e9
_FIRST_OUTPUT_STD = 0.02
_FIRST_DECAY = 0.5
_FIRST_MEAN = 0.25


class SlotProjection(nn.Module):
    """One affine map per modality, from its vectors to unit vectors of its slot.

    Args:
        inputs: slot name → length D of the modality's vectors.
        outputs: slot name → length d of the slot; the same names.
    """

    def __init__(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(inputs[name], outputs[name]) for name in inputs})

    def forward(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Project.

        Args:
            vectors: slot name → (n, D) float32; a row of zeros is absent.

        Returns:
            Slot name → (n, d) float32, rows of length 1, or zero where the input row is zero.
        """
        return {
            name: functional.normalize(self.maps[name](block), dim=1) * block.any(dim=1, keepdim=True)
            for name, block in vectors.items()
        }

    def linears(self) -> dict[str, nn.Linear]:
        """The maps by slot name."""
        return {name: linear for name, linear in self.maps.items() if isinstance(linear, nn.Linear)}


class TransformerBlock(nn.Module):
    """One pre-norm transformer block whose queries can be fewer positions than its context.

    Args:
        width: features per position.
        heads: attention heads; divides ``width``.
        dropout: on attention weights and on both residual branches.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.merge = nn.Linear(width, width)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """Attend and feed forward.

        Args:
            queries: (B, Q, width) positions to update.
            context: (B, L, width) positions attended to.
            bias: (B or 1, heads, Q, L) added to the attention scores; very negative where attention is masked.

        Returns:
            (B, Q, width).
        """
        batch, width = context.shape[0], context.shape[2]
        query = self._split(self.query(self.norm_attention(queries)), batch)
        key, value = self.key_value(self.norm_attention(context)).chunk(2, dim=-1)
        key, value = self._split(key, batch), self._split(value, batch)
        scores = query @ key.transpose(-1, -2) / math.sqrt(width / self.heads) + bias
        mixed = self.dropout(scores.softmax(dim=-1)) @ value
        merged: Tensor = self.merge(mixed.transpose(1, 2).reshape(batch, -1, width))
        after: Tensor = queries + self.dropout(merged)
        fed: Tensor = self.dropout(self.feed(self.norm_feed(after)))
        return after + fed

    def _split(self, values: Tensor, batch: int) -> Tensor:
        """(B, P, width) → (B, heads, P, width / heads)."""
        return values.reshape(batch, -1, self.heads, values.shape[2] // self.heads).transpose(1, 2)


class SequenceEncoder(nn.Module):
    """Histories of stored vectors to queries with the same slots.

    Args:
        dim: Σd of the stored vectors.
        max_history: longest history L.
        width: features inside the transformer.
        layers: blocks; 0 leaves only the recency-weighted mean.
        heads: attention heads.
        dropout: see :class:`TransformerBlock`; also on its input and output.
    """

    distance_mask: Tensor
    distances: Tensor

    def __init__(
        self, dim: int, max_history: int, *, width: int = 128, layers: int = 2, heads: int = 2, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.dim, self.max_history = dim, max_history
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList([TransformerBlock(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, dim)
        self.dropout = nn.Dropout(dropout)
        self.distance_bias = nn.Parameter(torch.zeros(max(layers, 1), heads, max_history))
        self.recency = nn.Parameter(-_FIRST_DECAY * torch.arange(max_history, dtype=torch.float32))
        self.mean_scale = nn.Parameter(torch.tensor(_FIRST_MEAN))
        nn.init.normal_(self.leave.weight, std=_FIRST_OUTPUT_STD)
        nn.init.zeros_(self.leave.bias)
        positions = torch.arange(max_history)
        apart = positions[:, None] - positions[None, :]
        self.register_buffer("distances", apart.clamp(min=0), persistent=False)
        self.register_buffer("distance_mask", torch.where(apart < 0, _MASKED, 0.0), persistent=False)

    def forward(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """Queries of whole histories; exported and served.

        Args:
            histories: (B, L, Σd) float32 stored vectors, oldest first, right-padded with anything; 1 ≤ L ≤ max_history.
            lengths: (B,) int64, 1 ≤ length ≤ L.

        Returns:
            (B, Σd) float32, not normalised; independent of the padding and of the other rows of the batch.
        """
        length = histories.shape[1]
        newest = lengths - 1
        inside = torch.arange(length, device=histories.device)[None, :, None] < lengths[:, None, None]
        known = torch.where(inside, histories, 0.0)
        mean_weights = self._mean_bias()[newest, :length].softmax(dim=-1)
        mean = (mean_weights[:, None, :] @ known)[:, 0]
        states = self.enter(known)
        biases = self._attention_biases()
        for number, block in enumerate(self.blocks):
            if number + 1 < len(self.blocks):
                states = block(states, states, biases[number, None, :, :length, :length])
            else:
                row = biases[number][:, newest, :length].transpose(0, 1)[:, :, None, :]
                states = block(_at(states, newest), states, row)
        if not len(self.blocks):
            return self.mean_scale * mean
        learned: Tensor = self.leave(self.norm(states[:, 0]))
        return self.mean_scale * mean + learned

    def every_position(self, histories: Tensor) -> Tensor:
        """Queries after every item of every history; used in training.

        Args:
            histories: (B, L, Σd) float32, oldest first; no position depends on those to its right.

        Returns:
            (B, L, Σd); ``[b, t]`` equals ``forward(histories[b : b + 1, : t + 1], [t + 1])`` up to rounding.
        """
        length = histories.shape[1]
        mean = self._mean_bias()[:length, :length].softmax(dim=-1) @ histories
        if not len(self.blocks):
            return self.mean_scale * mean
        states = self.dropout(self.enter(histories))
        biases = self._attention_biases()[:, None, :, :length, :length]
        for number, block in enumerate(self.blocks):
            states = block(states, states, biases[number])
        learned: Tensor = self.leave(self.dropout(self.norm(states)))
        return self.mean_scale * mean + learned

    def _attention_biases(self) -> Tensor:
        """(layers, heads, max_history, max_history), row = query position."""
        return self.distance_bias[:, :, self.distances] + self.distance_mask

    def _mean_bias(self) -> Tensor:
        """(max_history, max_history), row = newest position."""
        return self.recency[self.distances] + self.distance_mask


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """(B, L, width) and (B,) → (B, 1, width), the state at one position of each history."""
    return states.gather(1, positions[:, None, None].expand(-1, 1, states.shape[2]))
