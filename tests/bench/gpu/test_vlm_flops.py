"""The formula against numbers made by hand and against what PyTorch's own counter sees a real model do."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

from bench.gpu.vlm_flops import VlmFlops, Work
from training.backbones.attention import pack_vision_attention
from training.backbones.backbone import Backbone
from training.backbones.batches import PictureGroup, PromptBatch, PromptGroup
from training.backbones.gradient_cache import encode
from training.backbones.vlm import VlmEmbedder, adapt

RANK, TARGETS = 3, ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv")
IMAGE = 7
TEXT = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}}
VISION = {"depth": 3, "hidden_size": 24, "intermediate_size": 28, "num_heads": 2, "out_hidden_size": 32}
VISION |= {"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]}


def config() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(text_config=dict(TEXT), vision_config=dict(VISION), image_token_id=IMAGE, video_token_id=8)


def group(prompts: list[list[int]], visual: Tensor, pictures: Tensor) -> PromptGroup:
    width = max(map(len, prompts))
    ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts])
    ends = torch.tensor([(row, len(prompt) - 1) for row, prompt in enumerate(prompts)])
    return PromptGroup(ids, torch.tensor([len(prompt) for prompt in prompts]), ends, visual, pictures)


def batch() -> PromptBatch:
    """Texts of 5 and 3 tokens; pictures of 6 × 4 and 2 × 2 patches, 7 visual tokens, in prompts of 8 and 3 tokens."""
    texts = group([[1, 2, 3, 4, 5], [6, 9, 1]], torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    shown = group([[1, *[IMAGE] * 6, 2], [1, IMAGE, 3]], torch.arange(7), torch.tensor([0, 1]))
    patches = torch.randn(28, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(0))
    return PromptBatch((texts, shown), (PictureGroup(patches, torch.tensor([[1, 6, 4], [1, 2, 2]])),))


def test_what_a_batch_asks_for() -> None:
    """Windows are 4 patches wide: 6 × 4 patches are one of 4 × 4 and one of 2 × 4; 2 × 2 are one of 4."""
    vision = config().vision_config
    windowed, whole = 16**2 + 8**2 + 4**2, 24**2 + 4**2
    assert Work.of(batch(), vision, as_run=True) == Work(10, 16, 2 * 25 + 2 * 64, 28, windowed, whole)
    attended = 15 + 6 + 36 + 6
    assert Work.of(batch(), vision) == Work(8, 11, attended, 28, windowed, whole)


def test_a_linear_layer_and_a_pair_by_hand() -> None:
    """A model so small that every product can be written down: widths 2 and 4, one layer, one block, rank 1."""
    vision = SimpleNamespace(
        hidden_size=2, intermediate_size=5, depth=1, out_hidden_size=4, spatial_merge_size=2, in_channels=3,
        temporal_patch_size=2, patch_size=1, fullatt_block_indexes=[0],
    )  # fmt: skip
    text = SimpleNamespace(
        hidden_size=4, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    flops = VlmFlops(
        SimpleNamespace(vision_config=vision, get_text_config=lambda: text), rank=1, targets=("q_proj", "qkv")
    )
    # q 4→4 with adapter, k and v 4→2, o 4→4, MLP 4→6 twice and 6→4; attention over 4 dimensions
    language = 2 * 16 + 2 * (4 + 4) + 2 * 2 * 8 + 2 * 16 + 3 * 2 * 24
    assert flops.forward(Work(1, 0, 0, 0, 0, 0)) == language
    assert flops.forward(Work(0, 0, 1, 0, 0, 0)) == 4 * 4
    # patch 6→2, qkv 2→6 with adapter, proj 2→2, MLP 2→5 twice and 5→2; a visual token 8→8 and 8→4 from 4 patches
    patch = 2 * 12 + 2 * 12 + 2 * (2 + 6) + 2 * 4 + 3 * 2 * 10
    assert flops.forward(Work(0, 0, 0, 4, 0, 0)) == 4 * patch + 2 * 64 + 2 * 32
    assert flops.forward(Work(0, 0, 0, 0, 1, 1)) == 4 * 2
    # backward: the frozen inputs once, the adapter of q twice; without pictures none for the inputs of q, k, v
    assert flops.backward(Work(0, 1, 0, 0, 0, 0)) == 2 * 16 + 2 * 16 + 2 * 2 * 8 + 2 * 16 + 3 * 2 * 24
    assert flops.backward(Work(1, 0, 0, 0, 0, 0)) == (2 * 8 + 2 * 4) + 2 * 16 + 3 * 2 * 24


@pytest.mark.parametrize("cached", [False, True])
def test_pytorch_counts_the_same(cached: bool) -> None:
    """Exactly; without PyTorch's fused attention kernels, of which it counts none on a CPU."""
    torch.manual_seed(0)
    model = Qwen2_5_VLModel._from_config(config(), attn_implementation="sdpa")
    pack_vision_attention(model)
    adapted = adapt(Backbone(model, None, None), rank=RANK, alpha=4, dropout=0.0, targets=TARGETS)  # type: ignore[arg-type]
    flops, work = (
        VlmFlops(model.config, rank=RANK, targets=TARGETS),
        Work.of(batch(), model.config.vision_config, as_run=True),
    )
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            VlmEmbedder(adapted)(batch())
        with FlopCounterMode(display=False) as step:
            made = encode(VlmEmbedder(adapted), batch(), autocast=contextlib.nullcontext, cached=cached)
            made.outputs.square().sum().backward()
            made.outputs.grad = torch.randn_like(made.outputs)
            made.backward()
    assert forward.get_total_flops() == flops.forward(work)
    passes = 2 if cached else 1
    assert step.get_total_flops() == passes * flops.forward(work) + flops.backward(work)
