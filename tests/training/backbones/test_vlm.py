"""The embedder against transformers' own forward pass, and backbones of every family through from_pretrained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.backbones.attention import NAME, packed_attention
from training.backbones.backbone import Backbone, load_backbone, make_backbone
from training.backbones.batches import Collator, PromptBatch, spread
from training.backbones.vlm import VlmEmbedder, adapt, load_embedder, save_embedder
from training.config.run_config import RunConfig
from training.data.dataset import Dataset
from training.data.pictures import PictureStore
from training.data.sequences import Sequences
from training.data.training_pairs import TrainingPairs
from training.errors import BackboneError

Small = Callable[..., RunConfig]
HISTORIES = [np.array([0, 6, 12]), np.array([1]), np.array([3, 4, 5, 6, 7]), np.array([6]), np.array([2, 8, 14, 20])]
"""Row 3 has no text, 4 no picture, 5 a broken one, 6 neither."""


def collator(dataset: Dataset, backbone: Backbone, **options: Any) -> Collator:
    pictures = PictureStore(dataset.image_path, backbone.image_processor, memory_bytes=10**8)
    chosen = {"max_text_tokens": 6, "max_history": 4, "chunk_tokens": 10_000, **options}
    return Collator(backbone.tokenizer, dataset.texts(), pictures, **chosen)


def vectors(backbone: Backbone, prompts: PromptBatch, places: dict[str, Tensor]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        outputs = VlmEmbedder(backbone.model).eval()(prompts)
    return {name: spread(outputs, found).numpy() for name, found in places.items()}


def with_larger_pictures(backbone: Backbone) -> Backbone:
    """Pictures of 3 × 3 visual tokens, where positions are two-dimensional."""
    backbone.image_processor.size = {"shortest_edge": 576, "longest_edge": 576}  # type: ignore[misc]
    return backbone


def test_vectors_have_length_1_and_absent_ones_are_zero(shop: Dataset, backbone: Backbone) -> None:
    found = vectors(backbone, *collator(shop, backbone).items(np.arange(8)))
    lengths = {name: np.linalg.norm(block, axis=1).round(5).tolist() for name, block in found.items()}
    assert lengths == {"text": [1, 1, 1, 0, 1, 1, 0, 1], "image": [1, 1, 1, 1, 0, 0, 0, 1]}


@pytest.mark.parametrize("larger", [False, True])
def test_a_vector_does_not_depend_on_the_batch(shop: Dataset, backbone: Backbone, *, larger: bool) -> None:
    if larger:
        with_larger_pictures(backbone)
    together = vectors(backbone, *collator(shop, backbone).sequences(HISTORIES))
    split = vectors(backbone, *collator(shop, backbone, chunk_tokens=64).sequences(HISTORIES))
    for number, history in enumerate(HISTORIES):
        alone = vectors(backbone, *collator(shop, backbone).sequences([history]))
        for name in ("text", "image"):
            np.testing.assert_allclose(together[name][number], alone[name][0], atol=2e-6)
            np.testing.assert_allclose(split[name][number], alone[name][0], atol=2e-6)


@pytest.mark.parametrize("larger", [False, True])
def test_one_pass_over_a_window_gives_the_vectors_of_all_its_beginnings(
    shop: Dataset, backbone: Backbone, *, larger: bool
) -> None:
    if larger:
        with_larger_pictures(backbone)
    sequences = Sequences(["u"], np.array([0, 6]), np.array([0, 3, 6, 4, 5, 7]))
    windows = TrainingPairs.of(sequences).windows(np.array([3]), 4, every=True)
    batch = collator(shop, backbone).pairs(windows)
    in_one = vectors(backbone, batch.prompts, batch.sequences)
    alone = vectors(backbone, *collator(shop, backbone).sequences([np.array([0, 3, 6, 4])[:n] for n in (1, 2, 3, 4)]))
    for name in ("text", "image"):
        np.testing.assert_allclose(in_one[name], alone[name], atol=2e-6)
    items = vectors(backbone, batch.prompts, batch.items)
    one_by_one = vectors(backbone, *collator(shop, backbone).items(np.array([3, 6, 4, 5])))
    np.testing.assert_allclose(items["image"], one_by_one["image"], atol=2e-6)
    assert batch.item_ids.tolist() == [3, 6, 4, 5]
    assert batch.histories.tolist() == [[0, 3, 4, 5, 6, 7]] * 4


def test_only_the_newest_of_a_history_is_read(shop: Dataset, backbone: Backbone) -> None:
    long = vectors(backbone, *collator(shop, backbone).sequences([np.array([9, 8, 0, 1, 2, 7])]))
    newest = vectors(backbone, *collator(shop, backbone).sequences([np.array([0, 1, 2, 7])]))
    np.testing.assert_array_equal(long["text"], newest["text"])


def test_the_order_of_a_history_matters(shop: Dataset, backbone: Backbone) -> None:
    found = vectors(backbone, *collator(shop, backbone).sequences([np.array([0, 1]), np.array([1, 0])]))
    assert np.abs(found["image"][0] - found["image"][1]).max() > 1e-4


def test_a_picture_is_held_once_however_often_it_is_shown(shop: Dataset, backbone: Backbone) -> None:
    prompts, _ = collator(shop, backbone).sequences([np.array([0, 0, 1]), np.array([1, 0])])
    assert [len(pictures.grids) for pictures in prompts.pictures] == [2]
    assert sum(len(group.visual) for group in prompts.groups) == 5


def test_a_modality_that_is_not_trained_is_not_encoded(shop: Dataset, backbone: Backbone) -> None:
    prompts, places = collator(shop, backbone, modalities=("text",)).items(np.arange(3))
    assert prompts.pictures == ()
    assert list(places) == ["text"]


def test_nothing_to_encode(shop: Dataset, backbone: Backbone) -> None:
    prompts, places = collator(shop, backbone).items(np.array([6]))
    assert prompts.groups == ()
    assert not vectors(backbone, prompts, places)["text"].any()


def test_prompts_are_grouped_by_length(shop: Dataset, backbone: Backbone) -> None:
    rows = [np.arange(8, 9 + n % 4) for n in range(40)]
    prompts, _ = collator(shop, backbone, modalities=("text",)).sequences(rows)
    padded = sum(group.input_ids.numel() for group in prompts.groups)
    real = sum(int(group.lengths.sum()) for group in prompts.groups)
    assert len(prompts.groups) > 1
    assert padded <= 1.25 * real
    limited, _ = collator(shop, backbone, modalities=("text",), chunk_tokens=100).sequences(rows)
    assert all(group.input_ids.numel() <= 100 for group in limited.groups)


@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 9, 4, 1], [7]])
def test_packed_attention_is_attention_segment_by_segment(lengths: list[int]) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, sum(lengths), 8, dtype=torch.float64).unbind(0)
    bounds = torch.tensor([0, *np.cumsum(lengths)])
    found, _ = packed_attention(torch.nn.Identity(), query, key, value, None, scaling=0.3, cu_seq_lens_q=bounds)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        weights = (query[0, :, start:stop] @ key[0, :, start:stop].transpose(1, 2) * 0.3).softmax(dim=-1)
        expected = (weights @ value[0, :, start:stop]).transpose(0, 1)
        torch.testing.assert_close(found[0, start:stop], expected)


def test_the_vision_tower_attends_in_few_calls(backbone: Backbone) -> None:
    assert backbone.model.visual.config._attn_implementation == NAME


def saved(backbone: Backbone, model: torch.nn.Module, directory: Path, source: str | None = None) -> Path:
    save_embedder(
        directory, VlmEmbedder(model), backbone, source=source, revision=None, max_text_tokens=6, max_history=4
    )
    return directory


def test_a_trained_model_reads_back_through_from_pretrained(shop: Dataset, backbone: Backbone, tmp_path: Path) -> None:
    before = vectors(backbone, *collator(shop, backbone).items(np.arange(8)))
    embedding = load_embedder(saved(backbone, backbone.model, tmp_path))
    after = vectors(embedding.backbone, *collator(shop, embedding.backbone).items(np.arange(8)))
    np.testing.assert_array_equal(before["image"], after["image"])
    np.testing.assert_array_equal(before["text"], after["text"])
    assert (embedding.max_text_tokens, embedding.max_history) == (6, 4)
    assert embedding.model["kind"] == "vlm"
    assert embedding.model["id"] == "qwen2_5_vl from scratch"


def test_adapters_alone_are_saved_and_put_back(
    shop: Dataset, backbone: Backbone, backbone_directory: Path, tmp_path: Path
) -> None:
    model = adapt(backbone, rank=2, alpha=4, dropout=0.0, targets=["q_proj", "v_proj", "qkv"])
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    prompts, places = collator(shop, backbone).items(np.arange(3))
    with torch.inference_mode():
        adapted = VlmEmbedder(model).eval()(prompts)
    before = {name: spread(adapted, found).numpy() for name, found in places.items()}
    plain = vectors(load_backbone(backbone_directory), prompts, places)
    embedding = load_embedder(saved(backbone, model, tmp_path, str(backbone_directory)))
    assert not (tmp_path / "model.safetensors").exists()
    prompts, places = collator(shop, embedding.backbone).items(np.arange(3))
    with torch.inference_mode():
        outputs = embedding.embedder.eval()(prompts)
    for name, found in places.items():
        np.testing.assert_allclose(spread(outputs, found).numpy(), before[name], atol=1e-6)
        assert np.abs(before[name] - plain[name]).max() > 1e-3
    assert embedding.model["id"] == str(backbone_directory)


def test_the_provenance_follows_the_weights(backbone: Backbone, tmp_path: Path) -> None:
    first = load_embedder(saved(backbone, backbone.model, tmp_path / "a")).model
    assert load_embedder(saved(backbone, backbone.model, tmp_path / "b")).model == first
    with torch.no_grad():
        next(backbone.model.parameters()).add_(1.0)
    assert load_embedder(saved(backbone, backbone.model, tmp_path / "c")).model["weights"] != first["weights"]


def test_rank_0_trains_every_weight(backbone: Backbone) -> None:
    model = adapt(backbone, rank=0, alpha=1, dropout=0.0, targets=[])
    assert model is backbone.model
    assert all(weight.requires_grad for weight in model.parameters())


def test_adapters_must_fit_some_layer(backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match=r"vlm\.lora\.targets \['nowhere'\] fit no layer"):
        adapt(backbone, rank=2, alpha=4, dropout=0.0, targets=["nowhere"])


def test_the_seed_decides_the_first_weights(shop: Dataset, small: Small) -> None:
    shape = small().vlm.scratch.model_dump()
    made = [make_backbone(shop.texts(), **shape, picture_pixels=(64, 64), seed=seed).model for seed in (0, 0, 1)]
    first, same, other = (model.state_dict() for model in made)
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_a_catalogue_without_texts_still_gets_a_tokenizer(small: Small) -> None:
    shape = small().vlm.scratch.model_dump()
    assert len(make_backbone([None, None], **shape, picture_pixels=(64, 64), seed=0).tokenizer) > 256


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_backbone_is_reported_in_one_line(backbone: Backbone, tmp_path: Path, name: str, damage: str) -> None:
    backbone.save(tmp_path)
    path = tmp_path / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BackboneError) as caught:
        load_backbone(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trained_model_must_fit_these_prompts(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="vlm2rec train"):
        load_embedder(tmp_path)
    path = saved(backbone, backbone.model, tmp_path) / "vlm2rec.json"
    path.write_text(path.read_text().replace('"prompts": "', '"prompts": "x'))
    with pytest.raises(BackboneError, match="train again"):
        load_embedder(tmp_path)
    path.write_text("{")
    with pytest.raises(BackboneError, match="cannot be read"):
        load_embedder(tmp_path)
    path.write_text("[]")
    with pytest.raises(BackboneError, match="JSON object"):
        load_embedder(tmp_path)


def test_missing_adapters_are_reported(backbone: Backbone, backbone_directory: Path, tmp_path: Path) -> None:
    model = adapt(backbone, rank=2, alpha=4, dropout=0.0, targets=["q_proj"])
    saved(backbone, model, tmp_path, str(backbone_directory))
    for path in (tmp_path / "adapter").iterdir():
        path.unlink()
    with pytest.raises(BackboneError, match="adapters cannot be loaded"):
        load_embedder(tmp_path)
