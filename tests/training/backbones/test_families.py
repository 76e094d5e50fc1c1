"""Each family of models that a run can start from: read from shards, pinned, adapted, embedding, resumed."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    PreTrainedModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)

from training.backbones.backbone import Backbone, load_backbone
from training.backbones.batches import Collator, PromptBatch, spread
from training.backbones.vlm import Embedding, VlmEmbedder, load_embedder
from training.config.presets import PRESETS
from training.config.run_config import RunConfig
from training.data.dataset import Dataset
from training.data.pictures import PictureStore
from training.data.sequences import Sequences
from training.embedding.catalogue_encoder import CatalogueEncoder
from training.embedding.job import embed_catalogue, pending_items
from training.embedding.store import Embeddings
from training.errors import BackboneError, JobStopped
from training.finetune.trainer import TrainingProgress, train_vlm

Family = Callable[..., Backbone]
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WITH_HEAD: dict[str, type[PreTrainedModel]] = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}
HISTORIES = [np.array([0, 6, 12]), np.array([1]), np.array([3, 4, 5, 6, 7]), np.array([2, 8, 14, 20])]
COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def collator(dataset: Dataset, backbone: Backbone, **options: Any) -> Collator:
    pictures = PictureStore(dataset.image_path, backbone.image_processor, memory_bytes=10**8)
    return Collator(
        backbone.tokenizer, dataset.texts(), pictures, max_text_tokens=6, max_history=4, chunk_tokens=10_000, **options
    )


# --- the vectors


def plain_forward(model: PreTrainedModel, group: Any, prompts: PromptBatch) -> Tensor:
    """Transformers' documented call: pixels of every shown picture in order, attention mask, token types."""
    (pictures,) = prompts.pictures
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), pictures.grids.prod(dim=1).cumsum(0)])
    pixels = torch.cat([pictures.patches[bounds[n] : bounds[n + 1]] for n in group.pictures])
    width = group.input_ids.shape[1]
    output = model(
        input_ids=group.input_ids,
        attention_mask=(torch.arange(width)[None, :] < group.lengths[:, None]).long(),
        pixel_values=pixels,
        image_grid_thw=pictures.grids[group.pictures],
        mm_token_type_ids=(group.input_ids == model.config.image_token_id).int(),
    )
    hidden = output.last_hidden_state[group.pooled[:, 0], group.pooled[:, 1]]
    return torch.nn.functional.normalize(hidden.float(), dim=1)


@pytest.mark.parametrize("tokens_wide", [1, 3])
@pytest.mark.parametrize(("name", "patch"), [*((name, 4) for name in FAMILIES), ("qwen2_5_vl", 14), ("qwen3_vl", 16)])
def test_every_family_answers_as_transformers_documents(
    name: str, patch: int, tokens_wide: int, shop: Dataset, family_directory: Callable[..., Path]
) -> None:
    """Pictures encoded once and shared, against all pixels given to transformers' own model with plain attention.

    With patches of 14 and 16 pixels, as published, a picture of one token is 28 or 32 pixels wide; one of 3 × 3 tokens
    has more than one window in Qwen2.5-VL and positions in two dimensions.
    """
    directory = family_directory(name, patch)
    backbone = load_backbone(directory)
    assert backbone.model.config.model_type == name
    pixels = (2 * patch * tokens_wide) ** 2
    backbone.image_processor.size = {"shortest_edge": pixels, "longest_edge": pixels}  # type: ignore[misc]
    prompts, _ = collator(shop, backbone, modalities=("image",)).sequences(HISTORIES)
    (pictures,) = prompts.pictures
    assert pictures.grids.unique(dim=0).tolist() == [[1, 2 * tokens_wide, 2 * tokens_wide]]
    reference = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.inference_mode():
        ours = VlmEmbedder(backbone.model).eval()(prompts)
        theirs = torch.cat([plain_forward(reference, group, prompts) for group in prompts.groups])
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_published_layout_with_a_language_head_is_read(name: str, family: Family, tmp_path: Path) -> None:
    """The hub's models, Qwen3-VL-Embedding too, are saved with their head: what is below it is read, all of it."""
    backbone = family(name)
    torch.manual_seed(2)
    config = AutoConfig.from_pretrained(backbone.model.config.name_or_path)
    with_head = AutoModelForImageTextToText.from_config(config)
    assert type(with_head) is WITH_HEAD[name]
    with_head.save_pretrained(tmp_path / "published", max_shard_size="20KB")
    backbone.save_processors(tmp_path / "published")
    loaded = load_backbone(tmp_path / "published").model.state_dict()
    expected = with_head.model.state_dict()
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


# --- a run with adapters


def tensors(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_are_trained_killed_resumed_and_embed(
    name: str, shop: Dataset, shop_train: Sequences, small: Callable[..., RunConfig],
    family_directory: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    source = family_directory(name)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    config = small(
        vlm__model=str(source), vlm__lora__rank=2, vlm__lora__dropout=0.3, train__steps=4, train__learning_rate=0.02,
        train__checkpoint_steps=2, train__cached_gradients=True, train__chunk_tokens=64,
    )  # fmt: skip

    def kill_after_three(progress: TrainingProgress) -> None:
        if progress.step == 3:
            raise Killed

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_vlm(shop, shop_train, whole, config)
    with pytest.raises(Killed):
        train_vlm(shop, shop_train, broken, config, report=kill_after_three)
    model = train_vlm(shop, shop_train, broken, config, resume=True)
    first, second = tensors(whole / "model" / "adapter"), tensors(model / "adapter")
    assert all(torch.equal(first[key], second[key]) for key in first)
    for tower in ("visual.", "language_model."):
        assert any(tensor.abs().max() > 0 for key, tensor in first.items() if tower in key and "lora_B" in key)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before

    embedding = load_embedder(model)
    made = embedded_in_two_goes(shop, embedding, tmp_path / "embeddings")
    assert made.item_ids == shop.item_ids()
    merged = load_embedder(model)
    folded = merged.embedder.model.merge_and_unload()  # peft's own: adapters added into the weights
    alone = CatalogueEncoder(Embedding(VlmEmbedder(folded), merged.backbone, 6, 4, {}), shop).items(np.arange(30))
    plain = CatalogueEncoder(Embedding(VlmEmbedder(load_backbone(source).model), merged.backbone, 6, 4, {}), shop)
    for modality, vectors in plain.items(np.arange(30)).items():
        np.testing.assert_allclose(made.vectors[modality], alone[modality], atol=1e-5)
        assert np.abs(made.vectors[modality] - vectors).max() > 1e-3


def embedded_in_two_goes(shop: Dataset, embedding: Embedding, directory: Path) -> Embeddings:
    """Stopped after the second shard of eight items, then gone on with."""
    asked = iter([False, False, True])
    pending = pending_items(shop, embedding.model, directory)
    sizes = {"shard_items": 8, "batch_items": 3}
    with pytest.raises(JobStopped, match="16 of 30"):
        embed_catalogue(shop, pending, lambda: embedding, directory, stopped=lambda: next(asked), **sizes)
    done = embed_catalogue(shop, pending, lambda: embedding, directory, **sizes)
    assert (done.encoded, done.resumed) == (14, 16)
    return done.embeddings


# --- what is refused


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="there is no such directory"):
        load_backbone(tmp_path / "none")


@pytest.mark.parametrize("model_type", ["bert", "qwen2", "qwen3_vl_moe", "llava"])
def test_a_model_of_another_family_is_refused(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(BackboneError, match=f"one of qwen2_vl, qwen2_5_vl, qwen3_vl, got '{model_type}'; choose"):
        load_backbone(tmp_path)


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('was run')\n")
    with pytest.raises(BackboneError):
        load_backbone(tmp_path)


def test_weights_that_are_in_no_file_are_not_made_up(family_directory: Callable[..., Path]) -> None:
    """Transformers fills them with random numbers and says so in a log line."""
    directory = family_directory("qwen2_5_vl")
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    gone = "language_model.layers.1.mlp.up_proj.weight"
    shard = directory / index["weight_map"].pop(gone)
    kept = {name: tensor for name, tensor in load_file(shard).items() if name != gone}
    with safe_open(shard, "pt") as file:
        metadata = file.metadata()
    save_file(kept, shard, metadata)
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BackboneError, match=rf"1 of the model's weights are in none of its files \({gone}\)"):
        load_backbone(directory)


def test_a_missing_shard_is_named(family_directory: Callable[..., Path]) -> None:
    directory = family_directory("qwen3_vl")
    sorted(directory.glob("*.safetensors"))[1].unlink()
    with pytest.raises(BackboneError, match="the model cannot be loaded"):
        load_backbone(directory)


# --- hub ids


@pytest.fixture
def hub(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two commits of acme/tiny, `main` being the other one; no network."""
    cache = tmp_path / "hub"
    place = cache / "models--acme--tiny"
    for commit, added in ((COMMIT, 0.0), (OTHER, 1.0)):
        with torch.no_grad():
            next(backbone.model.parameters()).add_(added)
        backbone.save(place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(OTHER)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return place / "snapshots"


def test_a_pinned_model_is_that_commit_wherever_the_branch_is(hub: Path) -> None:
    found = load_backbone("acme/tiny", revision=COMMIT).model.state_dict()
    for commit, same in ((COMMIT, True), (OTHER, False)):
        stored = tensors(hub / commit)
        assert all(torch.equal(found[key], stored[key]) for key in stored) == same


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:39], COMMIT.upper(), COMMIT + "0"])
def test_a_hub_id_that_is_not_pinned_is_refused(hub: Path, revision: str | None) -> None:
    with pytest.raises(BackboneError, match=r"acme/tiny: .*pinned to a commit of 40 hexadecimal digits, got"):
        load_backbone("acme/tiny", revision=revision)


def test_an_unpinned_run_leaves_nothing_behind(
    hub: Path, shop: Dataset, shop_train: Sequences, small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """So the same directory takes the run once it is pinned; its adapters remember the commit."""
    with pytest.raises(BackboneError, match=r"set vlm\.revision"):
        train_vlm(shop, shop_train, tmp_path / "run", small(vlm__model="acme/tiny"))
    assert not (tmp_path / "run").exists()
    config = small(vlm__model="acme/tiny", vlm__revision=COMMIT, vlm__lora__rank=2, train__steps=1)
    model = train_vlm(shop, shop_train, tmp_path / "run", config)
    (hub.parent / "refs" / "main").write_text("0" * 40)
    shutil.rmtree(hub / OTHER)
    embedding = load_embedder(model)
    assert (embedding.model["id"], embedding.model["revision"]) == ("acme/tiny", COMMIT)
    prompts, places = collator(shop, embedding.backbone).items(np.arange(2))
    with torch.inference_mode():
        found = spread(embedding.embedder.eval()(prompts), places["text"])
    np.testing.assert_allclose(found.norm(dim=1).numpy(), 1, atol=1e-5)


def test_every_preset_is_pinned() -> None:
    named = [preset["vlm"] for preset in PRESETS.values() if "vlm" in preset]
    towers = [vlm["towers"] for vlm in named if "towers" in vlm]
    assert towers
    assert all(len(vlm["revision"]) == 40 for vlm in named if "model" in vlm)
    assert all(model.startswith("package:") for pair in towers for model in pair.values())  # pinned by their SHA-256
