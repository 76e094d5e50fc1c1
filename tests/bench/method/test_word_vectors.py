"""The bench of lists of words by vectors: every kind of list is weighed, alone and beside the slots."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.method.word_vectors import main, word_lists
from cli.app import app
from demo.build import build_demo
from tests.support.backbones.item_models import write_image_model, write_text_encoder
from training.data.dataset import load_dataset
from training.embedding.store import Embeddings

ITEMS, NEIGHBOURS = 40, 5


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A made catalogue, and a run on random towers."""
    folder = tmp_path_factory.mktemp("words")
    data = build_demo(folder / "data", items=ITEMS, users=60, evaluation_users=10, without_text=1, without_image=1)
    text, image = write_text_encoder(folder / "bert"), write_image_model(folder / "resnet")
    (folder / "heads.toml").write_text(
        f'[vlm]\nfamily = "towers"\n[vlm.towers]\ntext_model = "{text}"\nimage_model = "{image}"\n'
        "[vlm.heads]\nlength = 8\ntext_terms = 8\n[train]\nsteps = 2\nbatch_size = 16\n"
        "[encoder]\nepochs = 1\n"
    )
    for words in (["train", "--config", folder / "heads.toml"], ["embed"]):
        result = CliRunner().invoke(app, [*map(str, [words[0], data, "--run", folder / "run", *words[1:]])])
        assert result.exit_code == 0, result.output
    return data, folder / "run"


def test_a_list_has_the_cosines_of_the_vectors(shop: tuple[Path, Path]) -> None:
    data, run = shop
    lists = word_lists(load_dataset(data), run, NEIGHBOURS)
    assert list(lists) == ["no list", "TF-IDF", "vectors", "vectors, centred", "vectors beside TF-IDF", "trained heads"]
    assert all(made is None or made.name == "words" for made in lists.values())
    vectors = Embeddings.load(run / "embeddings").vectors["text"]
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    made = lists["trained heads"]
    assert made is not None
    row = int(np.flatnonzero(vectors.any(axis=1))[0])
    rows, similarities = made.of(row)
    np.testing.assert_allclose(similarities, np.sort(cosines[row])[::-1][: len(rows)], atol=2e-3)


def test_each_list_is_weighed_on_validation(shop: tuple[Path, Path], tmp_path: Path) -> None:
    data, run = shop
    main([str(data), "--run", str(run), "--out", str(tmp_path / "out.json")])
    found: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    assert found["items"] == ITEMS
    alone = {name: row["lists alone"] for name, row in found["words"].items()}
    assert "words alone" not in found["words"]["no list"]
    assert set(alone["no list"]["weights"]) == {"co", "look"}
    assert all(0 <= row["ndcg@10"] <= 1 for row in alone.values())
    assert found["words"]["TF-IDF"]["words alone"]["weights"].keys() == {"words"}
