"""Counts the floating-point operations of a Qwen2.5-VL with LoRA adapters: 2 m n k per matrix product.

Norms, activations, rotary positions, the pooling and the loss are left out. The formulas are written down beside the
code that adds them up; `tests/bench/gpu/test_vlm_flops.py` compares them with hand-made numbers and PyTorch's own
counter.

Forward, for a linear layer of a inputs and b outputs: 2 a b a token, and 2 r (a + b) more with an adapter of rank r.
Attention: 4 d a pair of query and key, d being all heads together. Backward, with everything but the adapters frozen:
2 a b a token for the gradient of a layer's input, none for that of its weight; for an adapter and for attention twice
the forward pass. What lies below the first adapter has no backward pass.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from training.backbones.batches import PromptBatch


@dataclass(frozen=True)
class Work:
    """The sizes of one encoding pass.

    Attributes:
        tokens: of prompts without pictures, whose input has no gradient.
        shown_tokens: of prompts with pictures.
        attended: pairs of query and key in one decoder layer.
        patches: that the vision tower sees.
        windowed: pairs of query and key in one of its blocks that look at windows.
        whole: the same in a block that looks at the whole picture.
    """

    tokens: int
    shown_tokens: int
    attended: int
    patches: int
    windowed: int
    whole: int

    @classmethod
    def of(cls, batch: PromptBatch, vision: Any, *, as_run: bool = False) -> "Work":  # noqa: ANN401 - transformers
        """Count a batch.

        Args:
            batch: prompts and pictures.
            vision: configuration of the vision tower.
            as_run: count padding, and masked pairs in causal attention; otherwise only what an answer needs.
        """
        counted = {True: 0, False: 0}
        attended = 0
        for group in batch.groups:
            rows, width = group.input_ids.shape
            lengths = [width] * rows if as_run else group.lengths.tolist()
            counted[bool(len(group.visual))] += sum(lengths)
            attended += sum(n * n if as_run else n * (n + 1) // 2 for n in lengths)
        wide = vision.window_size // vision.patch_size  # patches; a window holds whole visual tokens
        wide -= wide % vision.spatial_merge_size
        patches = windowed = whole = 0
        for frames, height, width in (grid for group in batch.pictures for grid in group.grids.tolist()):
            patches += frames * height * width
            whole += frames * (height * width) ** 2
            windowed += frames * _squares(height, wide) * _squares(width, wide)
        return cls(counted[False], counted[True], attended, patches, windowed, whole)


@dataclass(frozen=True)
class _Linear:
    inputs: int
    outputs: int
    adapted: bool = False


class VlmFlops:
    """Operations of a model.

    Args:
        config: of a Qwen2.5-VL.
        rank: of its adapters.
        targets: names of the adapted layers; some are in the vision tower.
    """

    def __init__(self, config: Any, *, rank: int, targets: Collection[str]) -> None:  # noqa: ANN401 - transformers
        text, vision = config.get_text_config(), config.vision_config
        self._rank, self._vision, self._layers = rank, vision, text.num_hidden_layers
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._queries = head * text.num_attention_heads
        keys = head * text.num_key_value_heads

        def mlp(width: int, inner: int) -> dict[str, tuple[int, int]]:
            return {"gate_proj": (width, inner), "up_proj": (width, inner), "down_proj": (inner, width)}

        def linears(shapes: dict[str, tuple[int, int]]) -> dict[str, _Linear]:
            return {name: _Linear(*shape, adapted=name in targets) for name, shape in shapes.items()}

        width, seen = text.hidden_size, vision.hidden_size
        self._layer = linears(
            {"q_proj": (width, self._queries), "k_proj": (width, keys), "v_proj": (width, keys)}
            | {"o_proj": (self._queries, width)}
            | mlp(width, text.intermediate_size)
        )
        self._block = linears({"qkv": (seen, 3 * seen), "proj": (seen, seen)} | mlp(seen, vision.intermediate_size))
        self._merged = vision.spatial_merge_size**2
        joined = seen * self._merged
        self._merger = (_Linear(joined, joined), _Linear(joined, vision.out_hidden_size))
        self._patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2

    def forward(self, work: Work) -> int:
        """Operations of one forward pass."""
        tokens, visual = work.tokens + work.shown_tokens, work.patches // self._merged
        language = self._layers * sum(self._once(one) for one in self._layer.values()) * tokens
        blocks = self._vision.depth * sum(self._once(one) for one in self._block.values()) * work.patches
        merger = sum(self._once(one) for one in self._merger) * visual
        return (
            language + blocks + merger + 2 * self._patch * self._vision.hidden_size * work.patches + self._pairs(work)
        )

    def backward(self, work: Work) -> int:
        """Operations of the backward pass without recomputation."""
        tokens, visual = work.tokens + work.shown_tokens, work.patches // self._merged
        language = self._layers * sum(self._back(one) for one in self._layer.values()) * tokens
        blocks = self._vision.depth * sum(self._back(one) for one in self._block.values()) * work.patches
        merger = sum(self._back(one) for one in self._merger) * visual
        # The first layers read embeddings, which are frozen, and patches: their inputs get no gradient.
        first = sum(self._input(self._layer[name]) for name in ("q_proj", "k_proj", "v_proj")) * work.tokens
        first += self._input(self._block["qkv"]) * work.patches
        return language + blocks + merger - first + 2 * self._pairs(work)

    def _once(self, one: _Linear) -> int:
        return 2 * one.inputs * one.outputs + (2 * self._rank * (one.inputs + one.outputs) if one.adapted else 0)

    def _back(self, one: _Linear) -> int:
        weights = 2 * self._rank * (one.inputs + one.outputs) if one.adapted else 0
        inner = 2 * self._rank * one.outputs if one.adapted else 0
        return self._input(one) + weights + inner

    def _input(self, one: _Linear) -> int:
        """Operations of the gradient of a layer's input, through its weight and its adapter."""
        return 2 * one.inputs * one.outputs + (2 * self._rank * one.inputs if one.adapted else 0)

    def _pairs(self, work: Work) -> int:
        """Operations of all attention in one forward pass."""
        full = len(self._vision.fullatt_block_indexes)
        seen = full * work.whole + (self._vision.depth - full) * work.windowed
        return 4 * (self._layers * self._queries * work.attended + self._vision.hidden_size * seen)


def _squares(length: int, wide: int) -> int:
    """The sum of the squares of the pieces when a length is cut into pieces so wide."""
    whole, rest = divmod(length, wide)
    return whole * wide**2 + rest**2
