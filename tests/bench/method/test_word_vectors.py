"""The bench of lists of words by vectors: every kind of list is weighed, alone and beside the slots."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.method import word_vectors
from bench.method.word_vectors import encoded_texts, main, word_lists
from cli.app import app
from demo.build import build_demo
from tests.support.backbones.item_models import write_image_model, write_text_encoder
from training.backbones.items.source import ItemSource
from training.config.run_config import RunConfig, load_config
from training.data.dataset import load_dataset
from training.lists import weights

ITEMS, NEIGHBOURS = 40, 5


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return build_demo(tmp_path / "data", items=ITEMS, users=60, evaluation_users=10, without_text=1, without_image=1)


@pytest.fixture
def tiny(tmp_path: Path) -> RunConfig:
    """Random towers."""
    text, image = write_text_encoder(tmp_path / "bert"), write_image_model(tmp_path / "resnet")
    towers = {"vlm.towers.text_model": str(text), "vlm.towers.image_model": str(image)}
    return load_config(preset="towers-minilm", overrides=towers)


def test_a_list_has_the_cosines_of_the_vectors(
    data: Path, tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset(data)
    vectors = encoded_texts(dataset, tiny.vlm, tmp_path / "work")
    absent = [row for row, text in enumerate(dataset.texts()) if text is None]
    assert np.flatnonzero(~vectors.any(axis=1)).tolist() == absent
    monkeypatch.setattr(ItemSource, "load", lambda _self: pytest.fail("the texts were encoded again"))
    np.testing.assert_array_equal(encoded_texts(dataset, tiny.vlm, tmp_path / "work"), vectors)
    lists = word_lists(dataset.texts(), vectors, NEIGHBOURS)
    assert list(lists) == ["no list", "TF-IDF", "vectors", "vectors, centred", "vectors beside TF-IDF"]
    assert all(made is None or made.name == "words" for made in lists.values())
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    made = lists["vectors"]
    assert made is not None
    row = int(np.flatnonzero(vectors.any(axis=1))[0])
    rows, similarities = made.of(row)
    assert len(rows) == NEIGHBOURS
    np.testing.assert_allclose(similarities, np.sort(cosines[row])[::-1][:NEIGHBOURS], atol=2e-3)


def test_each_list_is_weighed_on_validation(
    data: Path, tiny: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "RECENCIES", (0.7,))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("[encoder]\nepochs = 1\n")
    for words in (["embed", "--no-vlm"], ["fit-encoder"]):
        result = CliRunner().invoke(app, [words[0], str(data), "--run", str(run), *words[1:]])
        assert result.exit_code == 0, result.output
    monkeypatch.setattr(word_vectors, "load_config", lambda **_options: tiny)
    main([str(data), "--run", str(run), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.json")])
    found: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    assert found["items"] == ITEMS
    alone = {name: row["lists alone"] for name, row in found["words"].items()}
    assert "words alone" not in found["words"]["no list"]
    assert set(alone["no list"]["weights"]) == {"co", "look"}
    assert all(0 <= row["ndcg@10"] <= 1 for row in alone.values())
    assert found["words"]["TF-IDF"]["words alone"]["weights"].keys() == {"words"}
    quick = tmp_path / "quick.json"
    main([str(data), "--run", str(run), "--work", str(tmp_path / "work"), "--recency", "0.7", "--out", str(quick)])
    for name, row in json.loads(quick.read_text())["words"].items():  # only idle lists are not left out
        assert row["lists alone"]["ndcg@10"] >= alone[name]["ndcg@10"]
        assert row["lists alone"]["recency"] == 0.7
    recorded = json.loads((run / "encoder" / "fit.json").read_text())["lists"]
    served = found["words"]["TF-IDF"]["served"]["ndcg@10"]
    if recorded["co_backward"] == 1:  # the same lists
        assert served == pytest.approx(recorded["chosen"]["ndcg@10"], abs=1e-5)
    else:
        assert served <= recorded["chosen"]["ndcg@10"] + 1e-5
