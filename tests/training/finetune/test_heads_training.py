"""Heads on a frozen pair of towers: trained, killed, resumed, embedded, and ranked with."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from tests.support.backbones.item_models import write_image_model, write_text_encoder
from training.backbones.batches import spread
from training.backbones.items.feature_batches import FeatureCollator
from training.backbones.items.last_layers import BELOW_LAYERS, LAYERS_FILE
from training.backbones.items.source import ItemSource
from training.backbones.items.text_blocks import TEXT_BLOCKS_FILE
from training.backbones.items.trained_heads import ItemEmbedding, load_heads
from training.backbones.trained_model import TrainedModel
from training.config.run_config import CONFIG_FILE, RunConfig, to_toml
from training.data.dataset import Dataset, load_dataset
from training.data.sequences import LeaveOneOut
from training.embedding.item_rows import ItemRowEncoder
from training.embedding.job import embed_catalogue, pending_items
from training.embedding.store import Embeddings
from training.errors import BackboneError, ConfigError
from training.evaluation.vlm_systems import direct_systems
from training.finetune.trainer import TrainingProgress, train_vlm

NO_TEXT, NO_PICTURE, BROKEN_PICTURE, NOTHING = 3, 4, 5, 6


class Killed(Exception):
    pass


@pytest.fixture
def text_directory(tmp_path: Path) -> Path:
    return write_text_encoder(tmp_path / "bert")


@pytest.fixture
def config(small: Callable[..., RunConfig], text_directory: Path, tmp_path: Path) -> RunConfig:
    images = write_image_model(tmp_path / "resnet")
    return small(
        vlm__family="towers", vlm__towers__text_model=str(text_directory),
        vlm__towers__image_model=str(images), vlm__heads__length=8, train__steps=6,
        train__checkpoint_steps=2, train__validate_every=3, embed__shard_items=8, embed__batch_items=4,
    )  # fmt: skip


def train(shop: Dataset, parts: LeaveOneOut, run: Path, config: RunConfig, **options: object) -> Path:
    run.mkdir(exist_ok=True)
    (run / CONFIG_FILE).write_text(to_toml(config))
    return train_vlm(shop, parts.train, run / "train", config, validation=parts.validation, **options)


def test_a_killed_run_resumes_with_the_same_result_and_its_vectors(
    shop: Dataset, shop_parts: LeaveOneOut, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_at(step: int) -> Callable[[TrainingProgress], None]:
        def report(now: TrainingProgress) -> None:
            if now.step == step:
                raise Killed

        return report

    whole = train(shop, shop_parts, tmp_path / "whole", config)
    with pytest.raises(Killed):
        train(shop, shop_parts, tmp_path / "broken", config, report=kill_at(3))
    monkeypatch.setattr(ItemSource, "load", lambda _self: pytest.fail("the catalogue was embedded again"))
    model = train(shop, shop_parts, tmp_path / "broken", config, resume=True)
    first, second = load_file(whole / "heads.safetensors"), load_file(model / "heads.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    start = load_file(tmp_path / "whole" / "train" / "start" / "heads.safetensors")
    changed = {name for name in first if not torch.equal(first[name], start[name])}
    assert {"heads.text.projection.weight", "heads.visual.projection.weight", "heads.text.step.weight"} <= changed


def test_an_interrupted_embedding_is_resumed_by_the_next_call(
    shop: Dataset, shop_parts: LeaveOneOut, config: RunConfig, tmp_path: Path
) -> None:
    seen: list[int] = []

    def kill(step: str, done: int, _every: int) -> None:
        if step == "embedding" and done >= 16:
            raise Killed

    with pytest.raises(Killed):
        train(shop, shop_parts, tmp_path / "run", config, embedding=kill)

    def watch(step: str, done: int, _every: int) -> None:
        if step == "embedding":
            seen.append(done)

    train(shop, shop_parts, tmp_path / "run", config, embedding=watch, resume=True)
    assert min(seen) >= 8
    features = Embeddings.load(tmp_path / "run" / "train" / "features")
    assert features.item_ids == shop.item_ids()
    lacking = {name: np.flatnonzero(~block.any(axis=1)).tolist() for name, block in features.vectors.items()}
    assert lacking == {"text": [NO_TEXT, NOTHING], "image": [NO_PICTURE, BROKEN_PICTURE, NOTHING]}
    assert list(features.unreadable) == [f"i{BROKEN_PICTURE:02d}"]


def test_embedding_takes_known_contents_from_the_stored_vectors_and_encodes_the_others(
    own_shop: Path, shop: Dataset, shop_parts: LeaveOneOut, config: RunConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    train(shop, shop_parts, run, config)
    trained = TrainedModel.of(run)
    lines = (own_shop / "items.csv").read_text().replace("crimson thing 0,crimson thing 0", "new red,new red")
    (own_shop / "items.csv").write_text(lines)
    changed = load_dataset(own_shop)
    embedding = trained.load()
    encoded: list[int] = []
    place = ItemRowEncoder._place

    def watched(self: ItemRowEncoder, modality: str, rows: list[int], *rest: Any) -> None:
        encoded.extend(rows)
        place(self, modality, rows, *rest)

    monkeypatch.setattr(ItemRowEncoder, "_place", watched)
    pending = pending_items(changed, trained.provenance, trained.embeddings)
    done = embed_catalogue(
        changed, pending, lambda: embedding, trained.embeddings, shard_items=8, batch_items=4
    ).embeddings
    assert encoded == [0]
    assert done.dims() == {"text": 8, "image": 8}
    monkeypatch.setattr(ItemRowEncoder, "_place", place)
    alone = load_heads(run / "train" / "model", tmp_path / "none")
    rows = np.arange(len(changed))
    for name, block in ItemRowEncoder(alone, changed).items(rows).items():
        np.testing.assert_allclose(done.vectors[name], block, atol=1e-5)


def test_text_blocks_are_trained_on_stored_and_used_for_new_texts(
    shop: Dataset, shop_parts: LeaveOneOut, config: RunConfig, tmp_path: Path
) -> None:
    heads = config.vlm.heads.model_copy(update={"text_terms": 6})
    config = config.model_copy(update={"vlm": config.vlm.model_copy(update={"heads": heads})})
    train(shop, shop_parts, tmp_path / "run", config)
    trained = TrainedModel.of(tmp_path / "run")
    embedding = trained.load()
    assert embedding.text_blocks is not None
    assert embedding.heads is not None
    assert embedding.heads.dims["text"] == embedding.encoder.dims["text"] + 6
    rows = np.arange(len(shop))
    found = ItemRowEncoder(embedding, shop).items(rows)
    features = Embeddings.load(embedding.features).vectors
    joined = {**features, "text": embedding.text_blocks.join(features["text"], shop.texts())}
    batch, places = FeatureCollator(joined, max_history=embedding.heads.max_history).items(rows)
    with torch.inference_mode():
        outputs = embedding.heads(batch)
    np.testing.assert_allclose(found["text"], spread(outputs, places["text"]).numpy(), atol=1e-6)
    path = tmp_path / "run" / "train" / "model" / TEXT_BLOCKS_FILE
    replace(embedding.text_blocks, weights=embedding.text_blocks.weights * 2).save(path)
    assert TrainedModel.of(tmp_path / "run").provenance["weights"] != trained.provenance["weights"]
    path.unlink()
    with pytest.raises(BackboneError, match=r"the heads read vectors of .*train the model again"):
        trained.load()


def with_trained_layer(config: RunConfig) -> RunConfig:
    towers = config.vlm.towers.model_copy(update={"trained_text_layers": 1})
    heads = config.vlm.heads.model_copy(update={"text_terms": 6})
    options = config.train.model_copy(update={"text_layers_rate": 1.0})
    vlm = config.vlm.model_copy(update={"towers": towers, "heads": heads})
    return config.model_copy(update={"vlm": vlm, "train": options})


def test_a_killed_run_with_a_trained_layer_resumes_with_the_same_result(
    shop: Dataset, shop_parts: LeaveOneOut, config: RunConfig, tmp_path: Path
) -> None:
    def kill(now: TrainingProgress) -> None:
        if now.step == 3:
            raise Killed

    seen: list[tuple[int, int]] = []

    def watch(step: str, done: int, every: int) -> None:
        if step == BELOW_LAYERS:
            seen.append((done, every))

    config = with_trained_layer(config)
    whole = train(shop, shop_parts, tmp_path / "whole", config)
    with pytest.raises(Killed):
        train(shop, shop_parts, tmp_path / "broken", config, report=kill)
    model = train(shop, shop_parts, tmp_path / "broken", config, resume=True, embedding=watch)
    assert seen == [(0, 28), (28, 28)]  # also on --resume the texts pass the layers below, which takes time
    for name in ("heads.safetensors", LAYERS_FILE):
        first, second = load_file(whole / name), load_file(model / name)
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not [key for key in first if key.startswith("text_layers")]


def test_a_trained_layer_is_used_for_every_text_that_is_embedded(
    shop: Dataset, shop_parts: LeaveOneOut, config: RunConfig, text_directory: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    model = train(shop, shop_parts, run, with_trained_layer(config))
    start = AutoModel.from_pretrained(text_directory).encoder.layer[1].state_dict()
    trained = load_file(model / LAYERS_FILE)
    assert {key for key in start if not torch.equal(start[key], trained[f"0.{key}"])}
    embedding = TrainedModel.of(run).load()
    assert isinstance(embedding, ItemEmbedding)
    rows = np.arange(len(shop))
    found = ItemRowEncoder(embedding, shop).items(rows)
    anew = ItemRowEncoder(load_heads(model, tmp_path / "none"), shop).items(rows)
    for name, block in anew.items():
        np.testing.assert_allclose(found[name], block, atol=1e-6)
    stored = ItemRowEncoder(replace(embedding, trained=frozenset()), shop).items(rows)
    assert np.abs(stored["text"] - found["text"]).max() > 1e-3  # vectors of the frozen encoder are others
    before = TrainedModel.of(run).provenance["weights"]
    save_file({key: value + 1 for key, value in trained.items()}, model / LAYERS_FILE)
    assert TrainedModel.of(run).provenance["weights"] != before
    (model / LAYERS_FILE).unlink()
    with pytest.raises(BackboneError, match="train the model again"):
        TrainedModel.of(run).load()


def test_direct_ranking_compares_trained_heads_with_the_frozen_encoder(
    shop: Dataset, shop_parts: LeaveOneOut, config: RunConfig, tmp_path: Path
) -> None:
    train(shop, shop_parts, tmp_path / "run", config)
    histories = [np.array([0, 6, 12]), np.array([1, NO_TEXT])]
    systems = direct_systems(TrainedModel.of(tmp_path / "run"), shop, histories)
    assert {"VLM direct", "VLM direct, text only", "frozen VLM direct"} <= set(systems)
    for ranker, findable in systems.values():
        assert np.isfinite(ranker.scores(histories)).all()
        assert not findable[NOTHING]


def test_a_changed_encoder_is_another_run_and_another_model(
    shop: Dataset, shop_parts: LeaveOneOut, config: RunConfig, tmp_path: Path, text_directory: Path
) -> None:
    train(shop, shop_parts, tmp_path / "run", config)
    before = TrainedModel.of(tmp_path / "run").provenance
    path = text_directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": 1}))
    assert TrainedModel.of(tmp_path / "run").provenance["weights"] != before["weights"]
    with pytest.raises(ConfigError, match="another configuration or other data"):
        train(shop, shop_parts, tmp_path / "run", config, resume=True)


def test_an_unpinned_tower_leaves_nothing_behind(
    shop: Dataset, shop_parts: LeaveOneOut, small: Callable[..., RunConfig], tmp_path: Path, text_directory: Path
) -> None:
    config = small(
        vlm__family="towers", vlm__towers__text_model=str(text_directory), vlm__towers__image_model="acme/tiny"
    )
    with pytest.raises(BackboneError, match=r"acme/tiny: .*pinned to a commit"):
        train_vlm(shop, shop_parts.train, tmp_path / "run", config, validation=shop_parts.validation)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vlm__family": "towers"}, "needs towers.text_model and towers.image_model"),
        ({"vlm__family": "dual-encoder"}, "needs model, a directory or hub id"),
    ],
)
def test_a_family_without_its_models_is_refused(
    changes: dict[str, str], message: str, small: Callable[..., RunConfig]
) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)
