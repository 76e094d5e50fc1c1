"""A ring of items whose next item is always known; a small shop with every kind of gap; models that train in a
second.
"""

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2VLConfig,
    Qwen2VLModel,
    Qwen3VLConfig,
    Qwen3VLModel,
)

from training.backbones.backbone import Backbone, load_backbone, make_backbone
from training.backbones.vlm import Embedding, VlmEmbedder
from training.config.encoder_config import EncoderConfig
from training.config.run_config import RunConfig, load_config
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import LeaveOneOut, Sequences, leave_one_out
from training.embedding.baseline_features import embed_without_vlm
from training.embedding.catalogue_encoder import CatalogueEncoder
from training.embedding.store import Embeddings
from training.encoder.job import fit_run
from training.encoder.onnx_export import ExportParity

RING = 12


@pytest.fixture(scope="session")
def make_sequences() -> Callable[[list[list[int]]], Sequences]:
    """Histories of item rows, one list per user."""

    def make(histories: list[list[int]]) -> Sequences:
        offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
        rows = np.array([row for history in histories for row in history], dtype=np.int64)
        return Sequences([f"u{user}" for user in range(len(histories))], offsets, rows)

    return make


@pytest.fixture(scope="session")
def small_config() -> EncoderConfig:
    """An encoder that learns the ring in seconds."""
    return EncoderConfig(
        text_dim=8,
        image_dim=6,
        behaviour_dim=8,
        width=16,
        max_history=5,
        batch_size=16,
        warmup_steps=5,
        learning_rate=0.02,
        dropout=0.0,
        input_dropout=0.0,
        slot_dropout=0.2,
        cold_dropout=0.0,
        reversed_share=0.0,
        averaging=0.5,
        epochs=15,
        patience=15,
        refit=False,  # fitting and exporting twice takes seconds; test_refit.py does
    )


@pytest.fixture(scope="session")
def ring_embeddings() -> Embeddings:
    """12 items with a text direction of their own; the last has no picture."""
    images = np.random.default_rng(3).standard_normal((RING, 7))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    images[-1] = 0
    ids = [f"r{row}" for row in range(RING)]
    return Embeddings(ids, {"text": np.eye(RING, dtype=np.float32), "image": images.astype(np.float32)}, {"kind": "x"})


@pytest.fixture(scope="session")
def ring_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ring as files: words, coloured pictures, and 40 users who walk 9 steps each.

    The picture of item 3 is broken and item 5 has none; ``fresh.csv`` holds 6 more users.
    """
    directory = tmp_path_factory.mktemp("ring")
    (directory / "images").mkdir()
    rng = np.random.default_rng(0)
    with (directory / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "text", "image", "colour"])
        for row in range(RING):
            pixels = np.full((20, 20, 3), rng.integers(0, 256, 3), dtype=np.uint8)
            pixels[: row + 1] = 255
            Image.fromarray(pixels).save(directory / "images" / f"{row}.png")
            image = "" if row == 5 else f"images/{row}.png"
            writer.writerow([f"r{row}", f"Thing {row}", f"word{row} second{row % 3}", image, "red"])
    (directory / "images" / "3.png").write_bytes(b"no picture")
    _write_walks(directory / "interactions.csv", range(40))
    _write_walks(directory / "fresh.csv", range(100, 106))
    return directory


def _write_walks(path: Path, users: range) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in users:
            writer.writerows([f"u{user}", f"r{(user + step) % RING}", 1000 + step] for step in range(9))


@pytest.fixture(scope="session")
def ring_dataset(ring_directory: Path) -> Dataset:
    return load_dataset(ring_directory)


@pytest.fixture(scope="session")
def ring_run(
    ring_dataset: Dataset, small_config: EncoderConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run directory with embeddings and a fitted encoder, and what ``fit.json`` says; never write into it."""
    run = tmp_path_factory.mktemp("run")
    embeddings = embed_without_vlm(ring_dataset)
    embeddings.save(run / "embeddings")
    return run, fit_run(ring_dataset, embeddings, small_config, run / "encoder")


@pytest.fixture
def quick_export(ring_run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes seconds; the ring's encoder stands in for any of the same shape."""

    def use_the_ring_s(_encoder: object, _layout: object, path: Path, *, seed: int) -> ExportParity:
        shutil.copyfile(ring_run[0] / "encoder" / "encoder.onnx", path)
        return ExportParity(seed, 0.0)

    monkeypatch.setattr("training.encoder.encoder_files.export_encoder", use_the_ring_s)


COLOURS = ("crimson", "teal", "amber", "violet", "olive", "coral")
SHOP_ITEMS = 30
NO_TEXT, NO_PICTURE, BROKEN_PICTURE, NOTHING = 3, 4, 5, 6
SMALL: dict[str, Any] = {
    "vlm.scratch.vocabulary": 320,
    "vlm.scratch.hidden_size": 16,
    "vlm.scratch.heads": 2,
    "vlm.scratch.layers": 1,
    "vlm.scratch.intermediate_size": 16,
    "vlm.scratch.vision_hidden_size": 16,
    "vlm.scratch.vision_heads": 2,
    "vlm.scratch.vision_layers": 1,
    "vlm.scratch.vision_intermediate_size": 16,
    "vlm.scratch.patch_size": 4,
    "vlm.min_picture_pixels": 64,
    "vlm.max_picture_pixels": 64,
    "vlm.max_text_tokens": 6,
    "train.batch_size": 6,
    "train.max_history": 4,
    "train.steps": 6,
    "train.log_every": 1,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shop_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 items in 6 colours, shown by text and picture alike; 40 users who stay with one colour."""
    directory = tmp_path_factory.mktemp("shop")
    (directory / "images").mkdir()
    rng = np.random.default_rng(0)
    with (directory / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "text", "image"])
        for row in range(SHOP_ITEMS):
            colour = row % len(COLOURS)
            pixels = np.full((16, 16, 3), 255 * np.eye(6)[colour][:3] + 40 * (colour > 2), dtype=np.float64)
            pixels += rng.normal(0, 8, pixels.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(directory / "images" / f"{row}.png")
            text = "" if row in {NO_TEXT, NOTHING} else f"{COLOURS[colour]} thing {row}"
            picture = "" if row in {NO_PICTURE, NOTHING} else f"images/{row}.png"
            writer.writerow([f"i{row:02d}", text, text, picture])
    (directory / "images" / f"{BROKEN_PICTURE}.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with (directory / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in range(40):
            for place in range(6 + user % 3):
                row = (user % 6) + 6 * int(rng.integers(0, 5))
                writer.writerow([f"u{user}", f"i{row:02d}", 1_000_000 + 60 * place])
    return directory


@pytest.fixture(scope="session")
def shop(shop_directory: Path) -> Dataset:
    return load_dataset(shop_directory)


@pytest.fixture(scope="session")
def shop_parts(shop: Dataset) -> LeaveOneOut:
    return leave_one_out(Sequences.from_interactions(shop.interactions, shop.item_ids()))


@pytest.fixture(scope="session")
def shop_train(shop_parts: LeaveOneOut) -> Sequences:
    return shop_parts.train


@pytest.fixture(scope="session")
def smallest() -> dict[str, Any]:
    """Dotted keys of the smallest sensible model, for a run in a process of its own."""
    return dict(SMALL)


@pytest.fixture
def small() -> Callable[..., RunConfig]:
    """A configuration of the smallest sensible model; keywords with ``__`` for dots change it."""

    def make(**changes: Any) -> RunConfig:
        named = {key.replace("__", "."): value for key, value in changes.items()}
        return load_config(overrides={**SMALL, **named})

    return make


@pytest.fixture(scope="session")
def backbone_directory(shop: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small backbone with random weights, as ``save_pretrained`` writes it."""
    directory = tmp_path_factory.mktemp("backbone")
    config = load_config(overrides=SMALL)
    shape = config.vlm.scratch.model_dump()
    make_backbone(shop.texts(), **shape, picture_pixels=(64, 64), seed=0).save(directory)
    return directory


@pytest.fixture
def backbone(backbone_directory: Path) -> Backbone:
    return load_backbone(backbone_directory)


@pytest.fixture
def embedding(backbone_directory: Path) -> Embedding:
    """The small backbone as a trained embedder of the weights "abc"."""
    backbone = load_backbone(backbone_directory)
    return Embedding(VlmEmbedder(backbone.model), backbone, 6, 4, {"kind": "vlm", "weights": "abc"})


@pytest.fixture
def own_shop(shop_directory: Path, tmp_path: Path) -> Path:
    """A copy of the shop that a test may change."""
    return Path(shutil.copytree(shop_directory, tmp_path / "shop"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows of every batch that the model really encodes."""
    seen: list[list[int]] = []
    items = CatalogueEncoder.items
    monkeypatch.setattr(CatalogueEncoder, "items", lambda self, rows: seen.append(rows.tolist()) or items(self, rows))
    return seen


@pytest.fixture
def family_directory(shop: Dataset, backbone: Backbone, tmp_path: Path) -> Callable[..., Path]:
    """A small model of a ``model_type``, patches so many pixels wide, in shards that ``save_pretrained`` wrote."""

    def make(name: str, patch: int = 4) -> Path:
        directory = tmp_path / f"{name}-{patch}"
        _model_of(name, patch, backbone).save_pretrained(directory, max_shard_size="20KB")
        assert len(list(directory.glob("*.safetensors"))) > 1
        shape = load_config(overrides=SMALL).vlm.scratch.model_dump() | {"patch_size": patch}
        side = 2 * patch
        made = make_backbone(shop.texts(), **shape, picture_pixels=(side * side, side * side), seed=0)
        made.save_processors(directory)
        return directory

    return make


@pytest.fixture
def family(family_directory: Callable[..., Path]) -> Callable[..., Backbone]:
    """The model of :func:`family_directory` as it is loaded."""
    return lambda name, patch=4: load_backbone(family_directory(name, patch))


def _model_of(name: str, patch: int, backbone: Backbone) -> PreTrainedModel:
    """A tiny model with the same vocabulary, put together as the published ones are.

    Qwen2.5-VL looks at windows of 2 × 2 visual tokens in its first block and at the whole picture in its last;
    Qwen3-VL adds what its first block saw to the language model's first layer.
    """
    text = backbone.model.config.text_config
    shared = {
        "vocab_size": text.vocab_size,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
    }
    ids = {key: getattr(backbone.model.config, key) for key in ("image_token_id", "video_token_id")}
    seen = {"depth": 2, "hidden_size": 16, "num_heads": 2, "patch_size": patch}
    torch.manual_seed(1)
    if name == "qwen2_vl":
        return Qwen2VLModel(
            Qwen2VLConfig(text_config=shared, vision_config={**seen, "embed_dim": 16, "mlp_ratio": 1}, **ids)
        )
    seen |= {"intermediate_size": 16, "out_hidden_size": 16}
    if name == "qwen2_5_vl":
        windows = {"window_size": 4 * patch, "fullatt_block_indexes": [1]}
        return Qwen2_5_VLModel(Qwen2_5_VLConfig(text_config=shared, vision_config={**seen, **windows}, **ids))
    deep = {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return Qwen3VLModel(Qwen3VLConfig(text_config=shared, vision_config={**seen, **deep}, **ids))
