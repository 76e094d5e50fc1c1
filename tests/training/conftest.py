"""A made data set whose next item is always known: users walk round a ring of items."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.config.encoder_config import EncoderConfig
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import Sequences
from training.embedding.baseline_features import embed_without_vlm
from training.embedding.store import Embeddings
from training.encoder.job import fit_run

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
