"""Direct ranking while training against a loop over users and items."""

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch

from training.backbones.backbone import Backbone
from training.backbones.batches import Collator
from training.backbones.vlm import Embedding, VlmEmbedder, adapt
from training.data.dataset import Dataset
from training.data.pictures import PictureStore
from training.data.sequences import LeaveOneOut, Targets
from training.embedding.catalogue_encoder import CatalogueEncoder
from training.finetune.distributed import ProcessGroup
from training.finetune.validation import DirectRanking


class OneProcess:
    """What `ProcessGroup` needs of accelerate where there is one process."""

    num_processes = 1
    process_index = 0
    is_main_process = True
    is_local_main_process = True


def ranking(shop: Dataset, backbone: Backbone, targets: Targets, **options: Any) -> DirectRanking:
    pictures = PictureStore(shop.image_path, backbone.image_processor, memory_bytes=10**8)
    modalities = options.pop("modalities", ("text", "image"))
    collator = Collator(
        backbone.tokenizer, shop.texts(), pictures, max_text_tokens=6, max_history=4, chunk_tokens=512,
        modalities=modalities,
    )  # fmt: skip
    chosen = {"users": 1_000, "items": 1_000, "fusion": "concat", "seed": 0, **options}
    return DirectRanking(collator, ProcessGroup(OneProcess()), targets, len(shop), **chosen)


def by_hand(shop: Dataset, backbone: Backbone, targets: Targets, names: list[str], fusion: str) -> float:
    """NDCG@10 with a loop over users and items."""
    encoder = CatalogueEncoder(Embedding(VlmEmbedder(backbone.model), backbone, 6, 4, {}), shop)
    items, histories = encoder.items(np.arange(len(shop))), encoder.sequences(targets.histories)

    def score(user: int, row: int) -> float | None:
        here = {name: histories[name][user] for name in names}
        there = {name: items[name][row] for name in names}
        if fusion == "sum":
            left, right = sum(here.values()), sum(there.values())
            sizes = np.linalg.norm(left) * np.linalg.norm(right)
            return float(left @ right / sizes) if sizes else None
        shared = [float(here[name] @ there[name]) for name in names if here[name].any() and there[name].any()]
        return sum(shared) / len(shared) if shared else None

    gains = []
    for user, (history, target) in enumerate(zip(targets.histories, targets.targets.tolist(), strict=True)):
        own = score(user, target)
        if own is None or target in history:
            gains.append(0.0)
            continue
        rivals = [score(user, row) for row in range(len(shop)) if row not in history and row != target]
        # Items of one colour and no other difference in six tokens are alike but for rounding: they tie.
        apart = [round(rival, 5) - round(own, 5) for rival in rivals if rival is not None]
        ahead, tied = sum(difference > 0 for difference in apart), sum(difference == 0 for difference in apart)
        places = range(ahead, ahead + tied + 1)
        gains.append(float(np.mean([1 / math.log2(place + 2) if place < 10 else 0.0 for place in places])))
    return float(np.mean(gains))


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_it_is_the_protocol_over_the_whole_catalogue(
    shop: Dataset, backbone: Backbone, shop_parts: LeaveOneOut, fusion: str
) -> None:
    targets = shop_parts.validation
    embedder = VlmEmbedder(backbone.model).train()
    found = ranking(shop, backbone, targets, fusion=fusion).measure(embedder, contextlib.nullcontext)
    assert embedder.training
    assert set(found) == {"ndcg@10", "ndcg@10 text", "ndcg@10 image"}
    for name, modalities in {"": ["text", "image"], " text": ["text"], " image": ["image"]}.items():
        expected = by_hand(shop, backbone, targets, modalities, fusion)
        assert found[f"ndcg@10{name}"] == pytest.approx(expected, abs=1e-5), name
        assert 0 < expected < 1


def test_one_modality_has_one_number(shop: Dataset, backbone: Backbone, shop_parts: LeaveOneOut) -> None:
    alone = ranking(shop, backbone, shop_parts.validation, modalities=("text",))
    both = ranking(shop, backbone, shop_parts.validation)
    embedder = VlmEmbedder(backbone.model)
    found = alone.measure(embedder, contextlib.nullcontext)
    assert found == {"ndcg@10": both.measure(embedder, contextlib.nullcontext)["ndcg@10 text"]}


def test_fewer_items_are_easier_and_always_hold_the_targets(
    shop: Dataset, backbone: Backbone, shop_parts: LeaveOneOut
) -> None:
    targets = shop_parts.validation
    few = Targets(targets.histories[:4], targets.targets[:4], targets.users[:4])
    embedder = VlmEmbedder(backbone.model)
    whole = ranking(shop, backbone, few).measure(embedder, contextlib.nullcontext)["ndcg@10"]
    some = [
        ranking(shop, backbone, few, items=15, seed=seed).measure(embedder, contextlib.nullcontext)["ndcg@10"]
        for seed in (1, 1, 2, 3)
    ]
    least = ranking(shop, backbone, few, items=2).measure(embedder, contextlib.nullcontext)["ndcg@10"]
    assert len(ranking(shop, backbone, few, items=15)._items) == 15
    assert some[0] == some[1]
    assert len(set(some)) > 1
    assert whole < min(some)
    assert least >= max(some)


@pytest.mark.parametrize(("row", "found"), [(6, set()), (3, {"ndcg@10", "ndcg@10 image"})])
def test_a_target_that_cannot_be_compared_is_never_found(
    shop: Dataset, backbone: Backbone, row: int, found: set[str]
) -> None:
    """Item 6 has neither text nor picture, item 3 no text; against one rival anything else is among the first ten."""
    targets = Targets([np.array([8, 9])], np.array([row]), ["u"])
    got = ranking(shop, backbone, targets, items=2).measure(VlmEmbedder(backbone.model), contextlib.nullcontext)
    assert {name for name, value in got.items() if value > 0} == found


def test_a_target_of_the_history_is_found_only_where_seen_items_are_answered(shop: Dataset, backbone: Backbone) -> None:
    """Of two items that compete, the seen one is a miss, and otherwise among the first ten whatever its score."""
    targets = Targets([np.array([8, 9])], np.array([8]), ["u"])
    for exclude_seen in (True, False):
        some = ranking(shop, backbone, targets, items=2, exclude_seen=exclude_seen)
        got = some.measure(VlmEmbedder(backbone.model), contextlib.nullcontext)
        assert {name for name, value in got.items() if value > 0} == (set() if exclude_seen else set(got))


def test_dropout_is_off_while_measuring(shop: Dataset, backbone: Backbone, shop_parts: LeaveOneOut) -> None:
    embedder = VlmEmbedder(adapt(backbone, rank=2, alpha=64, dropout=0.5, targets=["v_proj", "qkv"])).train()
    with torch.no_grad():
        for name, weight in embedder.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.5)
    measured = ranking(shop, backbone, shop_parts.validation)
    assert measured.measure(embedder, contextlib.nullcontext) == measured.measure(embedder, contextlib.nullcontext)


def test_users_are_taken_evenly(shop: Dataset, backbone: Backbone, shop_parts: LeaveOneOut) -> None:
    """Of three, two are the first and the last."""
    targets = shop_parts.validation

    def of(numbers: list[int], users: int) -> float:
        part = Targets(
            [targets.histories[n] for n in numbers], targets.targets[numbers], [targets.users[n] for n in numbers]
        )
        some = ranking(shop, backbone, part, users=users, exclude_seen=False)  # some of these targets are repeats
        found = some.measure(VlmEmbedder(backbone.model), contextlib.nullcontext)
        return found["ndcg@10"]

    assert of([0, 1, 2], 2) == pytest.approx(of([0, 2], 5), abs=1e-3)
    assert of([0, 1, 2], 3) != pytest.approx(of([0, 2], 5), abs=1e-3)
