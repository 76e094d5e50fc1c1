"""Computes the vision tower's attention over many pictures in few calls."""

# Without the flash-attention package, transformers runs a vision tower's attention once per picture (and once per
# window inside a picture), which costs more than the arithmetic if pictures are small. Here all segments of one
# length are a batch of PyTorch's scaled dot-product attention; the result is the same for every picture.

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

NAME = "packed_flash_sdpa"
"""With the word "flash" in the name, the vision towers of transformers pass all segments in one call."""


def pack_vision_attention(model: PreTrainedModel) -> None:
    """Make the vision tower of a Qwen-VL model attend to all its pictures in few calls.

    Args:
        model: loaded with ``sdpa``; with another implementation it is unchanged.
    """
    vision = getattr(model, "visual", None)
    if vision is None or vision.config._attn_implementation != "sdpa":  # noqa: SLF001 - its only name
        return
    AttentionInterface.register(NAME, packed_attention)
    vision.config._attn_implementation = NAME  # noqa: SLF001


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    dropout: float = 0.0,
    **_: Any,  # noqa: ANN401 - arguments of other implementations
) -> tuple[Tensor, None]:
    """Attention within consecutive segments.

    Args:
        module: not used.
        query: (1, heads, N, d).
        key: (1, heads, N, d).
        value: (1, heads, N, d).
        attention_mask: not used; the segments are the mask.
        scaling: factor on the products.
        cu_seq_lens_q: (segments + 1,) bounds of the segments, from 0 to N.
        dropout: on the attention weights.

    Returns:
        (1, N, heads, d) and None in place of weights.
    """
    del module, attention_mask
    heads, dim = query.shape[1], query.shape[3]
    bounds = cu_seq_lens_q.tolist()
    lengths = [stop - start for start, stop in pairwise(bounds)]
    parts = [part[0].transpose(0, 1) for part in (query, key, value)]  # (N, heads, d)

    def attend(rows: list[Tensor], length: int) -> Tensor:
        q, k, v = (part.reshape(-1, length, heads, dim).transpose(1, 2) for part in rows)
        found = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        return found.transpose(1, 2).reshape(-1, heads, dim)

    if len(set(lengths)) == 1:
        return attend(parts, lengths[0])[None], None
    output = torch.empty_like(parts[0])
    for length in sorted(set(lengths) - {0}):
        starts = [start for start, found in zip(bounds, lengths, strict=False) if found == length]
        rows = (torch.tensor(starts)[:, None] + torch.arange(length)).flatten().to(query.device)
        output = output.index_copy(0, rows, attend([part[rows] for part in parts], length))
    return output[None], None
