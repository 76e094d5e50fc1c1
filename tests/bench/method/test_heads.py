"""The bench of heads on frozen backbones: ranks against the model's own vectors, vectors made once, resumed runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.method import heads
from bench.method.heads import TEST, VALIDATION, HeadsData, main, run_unit, unit_gains
from demo.build import build_demo
from tests.support.backbones.item_models import write_image_model, write_text_encoder
from training.backbones.trained_model import FEATURES_DIRECTORY
from training.embedding.catalogue_encoder import catalogue_encoder

ITEMS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("heads") / "data"
    return build_demo(made, items=ITEMS, users=60, evaluation_users=10, without_text=1, without_image=1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What makes the preset small: random towers, six steps."""
    folder = tmp_path_factory.mktemp("towers")
    return {
        "vlm.towers.text_model": str(write_text_encoder(folder / "bert")),
        "vlm.towers.image_model": str(write_image_model(folder / "resnet")),
        "vlm.max_text_tokens": 8, "vlm.heads.length": 8, "vlm.heads.text_terms": 8, "train.steps": 6,
        "train.batch_size": 16, "train.validate_every": 3,
    }  # fmt: skip


def test_gains_are_those_of_the_fused_vectors(data: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    world = HeadsData.load(data, None)
    run = run_unit(world, tmp_path / "a" / "0", tiny, None)
    gains = unit_gains(world, run, VALIDATION, tmp_path / "a" / "0")
    assert {name: len(found) for name, found in gains.items()} == dict.fromkeys(("fused", "text", "image"), 60)
    encoder = catalogue_encoder(run.load(), world.dataset, picture_bytes=2**20)
    items, targets = encoder.items(np.arange(ITEMS)), world.parts[VALIDATION]
    for user in range(0, 60, 7):
        history = targets.histories[user]
        own = encoder.sequences([history])
        sums = [np.sum([block @ own[name][0] for name, block in items.items()], axis=0)]
        norms = np.sqrt(np.sum([(block**2).sum(axis=1) for block in items.values()], axis=0))
        scores = sums[0] / np.where(norms > 0, norms, 1.0)
        scores[history] = -np.inf
        target = int(targets.targets[user])
        rank = 1 + int((scores > scores[target]).sum())
        expected = 1 / np.log2(rank + 1) if rank <= 10 and target not in history else 0.0
        assert gains["fused"][user] == pytest.approx(expected, abs=1e-6), user


def test_vectors_are_made_once_and_a_changed_unit_is_trained_again(
    data: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = HeadsData.load(data, None)
    one, two = tmp_path / "one" / "0", tmp_path / "two" / "0"
    features = run_unit(world, one, tiny, None).run / "train" / FEATURES_DIRECTORY
    with monkeypatch.context() as patched:
        patched.setattr("training.backbones.items.towers.Towers.encode", None)  # calling it would fail
        first = run_unit(world, two, {**tiny, "loss.wpcl_weight": 0.0}, features)
    before = unit_gains(world, first, TEST, two)
    again = run_unit(world, two, {**tiny, "loss.wpcl_weight": 0.0}, features)
    assert first.provenance == again.provenance
    longer = run_unit(world, two, {**tiny, "train.seed": 3}, features)
    assert longer.provenance != first.provenance
    after = unit_gains(world, longer, TEST, two)
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_the_command_compares_pairs_of_what_was_run(
    data: Path, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "VARIANTS", {name: {**tiny, **own} for name, own in heads.VARIANTS.items()})
    out = tmp_path / "heads.json"
    options = [str(data), "--work", str(tmp_path / "work"), "--variants", "sft", "r2-names", "--seeds", "0", "1"]
    main([*options, "--out", str(out)])
    found = json.loads(out.read_text())
    assert set(found) >= {"preset", "commit", "items", VALIDATION}
    assert TEST not in found
    assert found[VALIDATION]["ndcg@10"]["sft"]["seeds"] == [0, 1]
    assert set(found[VALIDATION]["ratios"]) == {f"r2-names ÷ sft, {of}" for of in ("fused", "text", "image")}
