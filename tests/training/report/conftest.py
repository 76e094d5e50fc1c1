"""A data set whose titles attack, and runs whose logs are written by hand."""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.config.run_config import load_config, to_toml
from training.data.dataset import Dataset, load_dataset
from training.embedding.store import Embeddings
from training.encoder.job import split_dataset
from training.finetune.run_directory import run_fingerprint

ITEMS = 12
NO_PICTURE, BROKEN_PICTURE, NO_TITLE = 4, 7, 2
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</bdi></p></article><iframe src=//evil.example>",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;b&gt;",
    "\u202egnp.exe",
    "]]><svg onload=alert(1)>",
]
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects elements, their attributes, and text by element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = text
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    def having(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]

    @property
    def words(self) -> str:
        """What a reader sees, in one line."""
        return re.sub(r"\s+", " ", "".join(data for tag, data in self.text if tag not in {"style", "title"}))

    @property
    def headings(self) -> list[str]:
        return [data.strip() for tag, data in self.text if tag == "h2" and data.strip()]


@pytest.fixture(scope="session")
def parse() -> type[Page]:
    return Page


@pytest.fixture(scope="session")
def small_shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """12 items with hostile titles, most with a picture, and 6 users of 5 events: each has a validation event."""
    directory = tmp_path_factory.mktemp("small_shop")
    (directory / "images").mkdir()
    with (directory / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "title", "text", "image"])
        for row in range(ITEMS):
            Image.new("RGB", (40, 20), (20 * row, 0, 200)).save(directory / "images" / f"{row}.png")
            title = "" if row == NO_TITLE else f"{HOSTILE[row % len(HOSTILE)]} {row}"
            picture = "" if row == NO_PICTURE else f"images/{row}.png"
            writer.writerow([f"s{row}", title, f"text of {row}", picture])
    (directory / "images" / f"{BROKEN_PICTURE}.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    events = [f"u{user},s{(2 * user + place) % ITEMS},{100 + place}" for user in range(6) for place in range(5)]
    (directory / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *events]) + "\n")
    return load_dataset(directory)


@pytest.fixture
def make_run(small_shop: Dataset, tmp_path: Path) -> Callable[..., Path]:
    """A run directory as `vlm2rec train` leaves it, with this log; keywords with ``__`` for dots configure it."""

    def make(
        name: str,
        log: Sequence[Mapping[str, Any]],
        *,
        finished: bool = True,
        dataset: Dataset = small_shop,
        **changes: Any,
    ) -> Path:
        run = tmp_path / name
        (run / "train").mkdir(parents=True)
        config = load_config(overrides={key.replace("__", "."): value for key, value in changes.items()})
        (run / "config.toml").write_text(to_toml(config))
        parts = split_dataset(dataset, config.encoder.cold_items).parts
        mark = run_fingerprint(dataset, parts.train, parts.validation, config)
        (run / "train" / "fingerprint").write_text(mark + "\n")
        (run / "train" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        if finished:
            (run / "train" / "model").mkdir()
        return run

    return make


@pytest.fixture(scope="session")
def full_log() -> list[dict[str, float]]:
    """40 steps in 4 lines: everything that is ever logged, with round numbers."""
    return [
        {
            "step": 10 * number, "loss": 9.0 - number, "nce": 4.0, "wpcl": 5.0 - number / 2, "crtr": 0.25,
            "pairs": 6.0, "learning_rate": 0.001 * number, "gradient_norm": 2.0, "lead": 0.25 * number - 0.5,
            "gap": 1.0, "log_beta": 0.5, "image_weak": 0.75, "confidence text": -1.0, "confidence image": -2.0,
            "gradient text": 3.0, "gradient image": 1.0, "gradient language model": 1.5,
            "gradient vision tower": 0.5, "effective rank text": 12.0, "effective rank image": 6.0,
            "uniformity text": -2.0, "uniformity image": -1.0, "cross-modal gap": 1.0, "seconds": 60.0 * number,
            **({"ndcg@10": 0.3, "ndcg@10 text": 0.25, "ndcg@10 image": 0.05 * number} if number % 2 == 0 else {}),
        }
        for number in range(1, 5)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def small_shop_embeddings() -> Embeddings:
    """Text vectors on a circle by item number, image vectors on one by 5 × the number; item 4 has no picture."""
    turns = 2 * np.pi * np.arange(ITEMS) / ITEMS / 2
    text = np.stack([np.cos(turns), np.sin(turns)], axis=1).astype(np.float32)
    image = text[(5 * np.arange(ITEMS)) % ITEMS].copy()
    image[NO_PICTURE] = 0
    return Embeddings([f"s{row}" for row in range(ITEMS)], {"text": text, "image": image}, {"kind": "vlm"})
