"""Cached gradients against plain ones: the same values and gradients from the memory of one group."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.loss_configs import loss_config
from training.backbones.backbone import Backbone
from training.backbones.batches import Collator, PairBatch, PromptBatch, spread
from training.backbones.gradient_cache import encode
from training.backbones.vlm import VlmEmbedder, adapt
from training.data.dataset import Dataset
from training.data.pictures import PictureStore
from training.data.sequences import Sequences
from training.data.training_pairs import TrainingPairs
from training.losses.method_loss import method_loss
from training.losses.modality_pairs import ModalityPairs

Family = Callable[[str], Backbone]
ADAPTED = ["q_proj", "v_proj", "up_proj", "down_proj", "qkv"]


def batch_of(shop: Dataset, train: Sequences, backbone: Backbone, size: int = 8, **options: Any) -> PairBatch:
    pictures = PictureStore(shop.image_path, backbone.image_processor, memory_bytes=10**8)
    chosen = {"max_text_tokens": 6, "max_history": 4, "chunk_tokens": 128, "chunk_patches": 12, **options}
    collator = Collator(backbone.tokenizer, shop.texts(), pictures, **chosen)
    return collator.pairs(TrainingPairs.of(train).windows(np.arange(0, 3 * size, 3), 4, every=True))


def loss_of(outputs: Tensor, batch: PairBatch) -> Tensor:
    sides = [
        ModalityPairs(
            spread(outputs, batch.sequences[name]),
            spread(outputs, batch.items[name]),
            batch.sequences[name] >= 0,
            batch.items[name] >= 0,
        )
        for name in ("text", "image")
    ]
    config = loss_config(temperature=0.2, fusion="concat", wpcl_weight=0.5, crtr_weight=0.1)
    return method_loss(*sides, batch.item_ids, batch.histories, config).total


def gradients(embedder: VlmEmbedder) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in embedder.named_parameters() if weight.grad is not None}
    embedder.zero_grad()
    return found


def plain(embedder: VlmEmbedder, batch: PairBatch) -> tuple[float, dict[str, Tensor]]:
    """What autograd gives through the whole graph at once, without any of the code under test."""
    torch.manual_seed(5)
    total = loss_of(embedder(batch.prompts), batch)
    total.backward()
    return total.item(), gradients(embedder)


def by_pass(
    embedder: VlmEmbedder, batch: PairBatch, *, cached: bool, autocast: Callable[[], AbstractContextManager[None]]
) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(5)
    made = encode(embedder, batch.prompts, autocast=autocast, cached=cached)
    after = torch.get_rng_state()
    total = loss_of(made.outputs, batch)
    total.backward()
    made.backward()
    assert torch.equal(after, torch.get_rng_state())  # what is drawn next does not depend on the kind of pass
    return total.item(), gradients(embedder)


def with_dropout(backbone: Backbone) -> VlmEmbedder:
    """Adapters whose dropout really changes the answer: B is not 0 as it would be at first."""
    embedder = VlmEmbedder(adapt(backbone, rank=2, alpha=4, dropout=0.4, targets=ADAPTED)).train()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in embedder.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    return embedder


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert first
    assert set(first) == set(second)
    largest = max(gradient.abs().max().item() for gradient in first.values())
    assert largest > 1e-3
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, rtol=1e-4, atol=tolerance * largest, msg=name)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_value_and_gradient_are_those_of_one_graph(
    shop: Dataset, shop_train: Sequences, family: Family, name: str, dropout: bool, cached: bool
) -> None:
    backbone = family(name)
    batch = batch_of(shop, shop_train, backbone)
    assert len(batch.prompts.groups) > 3
    assert len(batch.prompts.pictures) > 3
    embedder = with_dropout(backbone) if dropout else VlmEmbedder(backbone.model).train()
    value, expected = plain(embedder, batch)
    got, found = by_pass(embedder, batch, cached=cached, autocast=contextlib.nullcontext)
    assert got == pytest.approx(value, rel=1e-6)
    assert_same(expected, found)


def test_dropout_draws_differently_without_the_same_seed(
    shop: Dataset, shop_train: Sequences, backbone: Backbone
) -> None:
    """So the equality above is owed to the restored generators, and not to dropout that does nothing."""
    batch = batch_of(shop, shop_train, backbone)
    embedder = with_dropout(backbone)
    first, second = (loss_of(embedder(batch.prompts), batch).item() for _ in range(2))
    assert first != pytest.approx(second, rel=1e-3)


def test_under_autocast_every_weight_gets_its_gradient(
    shop: Dataset, shop_train: Sequences, backbone: Backbone
) -> None:
    def autocast() -> AbstractContextManager[None]:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    batch = batch_of(shop, shop_train, backbone)
    embedder = VlmEmbedder(backbone.model).train()
    value, expected = by_pass(embedder, batch, cached=False, autocast=autocast)
    got, found = by_pass(embedder, batch, cached=True, autocast=autocast)
    in_full, _ = plain(embedder, batch)
    assert value != pytest.approx(in_full, rel=2e-6)
    assert got == pytest.approx(value, rel=5e-7)
    assert_same(expected, found, tolerance=0.02)


@pytest.mark.parametrize("targets", [["q_proj"], ["qkv"]])
def test_only_what_is_trained_gets_a_gradient(
    shop: Dataset, shop_train: Sequences, backbone: Backbone, targets: list[str]
) -> None:
    """Adapters in the language model alone, or in the vision tower alone, where texts have no gradient at all."""
    batch = batch_of(shop, shop_train, backbone)
    embedder = VlmEmbedder(adapt(backbone, rank=2, alpha=4, dropout=0.0, targets=targets)).train()
    assert embedder.trains_vision == (targets == ["qkv"])
    value, expected = plain(embedder, batch)
    looks: list[object] = []
    embedder.base.visual.register_forward_hook(lambda *call: looks.append(call))
    got, found = by_pass(embedder, batch, cached=True, autocast=contextlib.nullcontext)
    assert got == pytest.approx(value, rel=1e-6)
    assert all("lora_" in name for name in found)
    assert_same(expected, found)
    assert len(looks) == (2 if embedder.trains_vision else 1) * len(batch.prompts.pictures)


class Busier:
    """Other processes that always have two groups more."""

    def most(self, counts: Sequence[int]) -> list[int]:
        return [count + 2 for count in counts]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_groups_in_place_of_those_of_other_processes_change_nothing(
    shop: Dataset, shop_train: Sequences, family: Family, name: str
) -> None:
    backbone = family(name)
    batch = batch_of(shop, shop_train, backbone)
    embedder = VlmEmbedder(backbone.model).train()
    value, expected = plain(embedder, batch)
    calls = {"prompts": 0, "pictures": 0}
    for layer, what in ((embedder.base.language_model, "prompts"), (embedder.base.visual, "pictures")):
        layer.register_forward_hook(lambda *_, what=what: calls.update({what: calls[what] + 1}))
    made = encode(embedder, batch.prompts, autocast=contextlib.nullcontext, cached=True, lockstep=Busier())
    total = loss_of(made.outputs, batch)
    total.backward()
    made.backward()
    assert total.item() == pytest.approx(value, rel=1e-6)
    assert_same(expected, gradients(embedder))
    prompts = batch.prompts
    assert calls == {"prompts": 2 * (len(prompts.groups) + 2), "pictures": 2 * (len(prompts.pictures) + 2)}


def test_a_process_without_a_part_of_the_batch_makes_as_many_passes(backbone: Backbone) -> None:
    embedder = VlmEmbedder(backbone.model).train()
    made = encode(embedder, PromptBatch((), ()), autocast=contextlib.nullcontext, cached=True, lockstep=Busier())
    assert made.outputs.shape == (0, embedder.dim)
    made.backward()  # its gradients are zeros, to be summed with those of the others
    found = gradients(embedder)
    assert any("visual" in name for name in found)
    assert any("language_model" in name for name in found)
    assert not any(gradient.any() for gradient in found.values())


@pytest.mark.parametrize("cached", [False, True])
def test_gradients_add_up(shop: Dataset, shop_train: Sequences, backbone: Backbone, cached: bool) -> None:
    batch = batch_of(shop, shop_train, backbone)
    embedder = VlmEmbedder(backbone.model).train()
    _, once = plain(embedder, batch)
    for _ in range(2):
        made = encode(embedder, batch.prompts, autocast=contextlib.nullcontext, cached=cached)
        loss_of(made.outputs, batch).backward()
        made.backward()
    assert_same({name: 2 * gradient for name, gradient in once.items()}, gradients(embedder))


@pytest.mark.parametrize("cached", [False, True])
def test_nothing_to_encode_and_nothing_asked_for(shop: Dataset, backbone: Backbone, cached: bool) -> None:
    pictures = PictureStore(shop.image_path, backbone.image_processor, memory_bytes=0)
    collator = Collator(backbone.tokenizer, shop.texts(), pictures, max_text_tokens=6, max_history=4, chunk_tokens=128)
    embedder = VlmEmbedder(backbone.model).train()
    for rows in (np.array([6]), np.array([7])):  # item 6 has neither text nor picture
        prompts, places = collator.items(rows)
        made = encode(embedder, prompts, autocast=contextlib.nullcontext, cached=cached)
        made.backward()  # no loss has been taken
        assert not gradients(embedder)
        spread(made.outputs, places["text"]).sum().backward()
        made.backward()
        assert bool(gradients(embedder)) == (rows[0] == 7)


class Held:
    """What a graph keeps, counted for as long as it keeps it."""

    now = 0
    most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.size = tensor, tensor.numel()
        Held.now += self.size
        Held.most = max(Held.most, Held.now)

    def __del__(self) -> None:
        Held.now -= self.size


@contextlib.contextmanager
def counting() -> Iterator[None]:
    Held.now = Held.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        yield


def most_held(shop: Dataset, train: Sequences, backbone: Backbone, size: int, *, cached: bool) -> int:
    """Most values that graphs of the model keep at once for a batch of so many windows."""
    batch = batch_of(shop, train, backbone, size)
    embedder = VlmEmbedder(backbone.model).train()
    with counting():
        made = encode(embedder, batch.prompts, autocast=contextlib.nullcontext, cached=cached)
    loss_of(made.outputs, batch).backward()
    before = Held.most
    with counting():
        made.backward()
    return max(before, Held.most)


def test_a_larger_batch_keeps_no_more_activations(shop: Dataset, shop_train: Sequences, backbone: Backbone) -> None:
    small, large = (most_held(shop, shop_train, backbone, size, cached=True) for size in (12, 48))
    assert large == small
    plain_small, plain_large = (most_held(shop, shop_train, backbone, size, cached=False) for size in (12, 48))
    assert plain_large > 2 * plain_small
    assert large < plain_large / 10
