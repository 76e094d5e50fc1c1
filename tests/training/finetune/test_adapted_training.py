"""Adapters in a dual encoder: trained with its heads, killed, resumed, embedded, and exported."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.backbones.item_models import write_dual
from training.backbones.export.job import export_towers
from training.backbones.items.dual_encoder import DualEncoder
from training.backbones.items.trained_heads import ItemEmbedding
from training.backbones.trained_model import TrainedModel
from training.config.run_config import CONFIG_FILE, RunConfig, TrainConfig, to_toml
from training.data.dataset import Dataset
from training.data.sequences import LeaveOneOut
from training.embedding.item_rows import ItemRowEncoder
from training.errors import BackboneError, ConfigError
from training.finetune import step as step_module
from training.finetune.trainer import TrainingProgress, train_vlm

Small = Callable[..., RunConfig]
RANK, ALPHA = 2, 8


class Killed(Exception):
    pass


def adapted(small: Small, directory: Path, **changes: object) -> RunConfig:
    return small(
        vlm__family="dual-encoder", vlm__model=str(directory), vlm__adapters=True, vlm__heads__length=8,
        vlm__lora__rank=RANK, vlm__lora__alpha=ALPHA, vlm__lora__dropout=0.3, train__adapters_rate=20.0,
        train__steps=6, train__checkpoint_steps=2, train__validate_every=3, **changes,
    )  # fmt: skip


def train(shop: Dataset, parts: LeaveOneOut, run: Path, config: RunConfig, **options: object) -> Path:
    run.mkdir(exist_ok=True)
    (run / CONFIG_FILE).write_text(to_toml(config))
    return train_vlm(shop, parts.train, run / "train", config, validation=parts.validation, **options)


def adapters(model: Path) -> dict[str, Tensor]:
    return load_file(model / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_a_killed_run_with_adapters_resumes_with_the_same_result(
    name: str, shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path
) -> None:
    def kill(now: TrainingProgress) -> None:
        if now.step == 3:
            raise Killed

    config = adapted(small, write_dual(tmp_path / name, name))
    whole = train(shop, shop_parts, tmp_path / "whole", config)
    with pytest.raises(Killed):
        train(shop, shop_parts, tmp_path / "broken", config, report=kill)
    model = train(shop, shop_parts, tmp_path / "broken", config, resume=True)
    first, second = adapters(whole), adapters(model)
    assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = load_file(whole / "heads.safetensors"), load_file(model / "heads.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not [key for key in first if key.startswith("adapters")]
    learned = {key for key, value in adapters(whole).items() if "lora_B" in key and value.any()}
    assert any("text_model" in key for key in learned)
    assert any("vision_model" in key for key in learned)


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_cached_gradients_train_the_same_adapters_and_heads(
    name: str, shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients of each step are the same, also with dropout, which is drawn again as it was."""
    directory, encode, passes = write_dual(tmp_path / name, name), DualEncoder.encode, list[bool]()

    def counted(self: DualEncoder, modality: str, inputs: dict[str, Tensor]) -> Tensor:
        passes.append(torch.is_grad_enabled())
        return encode(self, modality, inputs)

    monkeypatch.setattr(DualEncoder, "encode", counted)
    models, counts = [], []
    for cached in (False, True):
        passes.clear()
        config = adapted(small, directory, train__cached_gradients=cached)
        models.append(train(shop, shop_parts, tmp_path / f"cached-{cached}", config))
        counts.append(sum(passes))
    assert counts[1] == 2 * counts[0] > 0  # each group is encoded again in the backward pass
    for read in (adapters, lambda model: load_file(model / "heads.safetensors")):
        first, second = map(read, models)
        assert all(torch.equal(first[key], second[key]) for key in first)
    lines = [(model.parent / "log.jsonl").read_text().splitlines() for model in models]
    steps = [[(step["loss"], step["gradient_norm"]) for step in map(json.loads, log)] for log in lines]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 6
    assert any(value.any() for key, value in adapters(models[0]).items() if "lora_B" in key)


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_the_trained_adapters_embed_every_item(
    name: str, shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path
) -> None:
    directory, run = write_dual(tmp_path / name, name), tmp_path / "run"
    model = train(shop, shop_parts, run, adapted(small, directory))
    embedding = TrainedModel.of(run).load()
    assert isinstance(embedding, ItemEmbedding)
    rows = np.arange(len(shop))
    found = ItemRowEncoder(embedding, shop).items(rows)
    for modality, block in ItemRowEncoder(merged(embedding, directory, model), shop).items(rows).items():
        np.testing.assert_allclose(found[modality], block, atol=1e-5)
    stored = ItemRowEncoder(replace(embedding, trained=frozenset()), shop).items(rows)
    for modality, block in stored.items():  # vectors of the frozen encoder are others
        assert np.abs(block - found[modality]).max() > 1e-3
    before = TrainedModel.of(run).provenance["weights"]
    path = model / "adapter" / "adapter_model.safetensors"
    save_file({key: value + 1 for key, value in adapters(model).items()}, path)
    assert TrainedModel.of(run).provenance["weights"] != before
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BackboneError, match=r"the adapters cannot be loaded .*train again"):
        TrainedModel.of(run).load()
    path.write_bytes(whole)
    save_file({key: value for key, value in adapters(model).items() if ".text_model." in key}, path)
    with pytest.raises(BackboneError, match=r"of another model, or incomplete \(\d+ weights differ\); train again"):
        TrainedModel.of(run).load()
    path.unlink()
    with pytest.raises(BackboneError, match=r"the adapters cannot be loaded .*train again"):
        TrainedModel.of(run).load()


def merged(embedding: ItemEmbedding, directory: Path, model: Path) -> ItemEmbedding:
    """The same with W + α / r · B A computed by hand in a fresh encoder."""
    encoder = DualEncoder.load(directory, revision=None, dtype="float32", attention="sdpa", max_text_tokens=6)
    weights, stored = dict(encoder.model.named_parameters()), adapters(model)
    with torch.no_grad():
        for key, down in stored.items():
            if "lora_A" in key:
                name = key.removeprefix("base_model.model.").replace("lora_A.", "")
                weights[name] += ALPHA / RANK * stored[key.replace("lora_A", "lora_B")] @ down
    return replace(embedding, encoder=encoder, features=directory / "none")


def test_adapted_towers_are_exported(shop: Dataset, shop_parts: LeaveOneOut, small: Small, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(shop, shop_parts, run, adapted(small, write_dual(tmp_path / "clip", "clip")))
    exported = export_towers(TrainedModel.of(run), tmp_path / "out")
    assert all(tower.parity.difference <= 1e-4 for tower in exported.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vlm__adapters": True}, r'adapters is for family = "dual-encoder", got "qwen-vl"; set it to false'),
        (
            {"vlm__family": "dual-encoder", "vlm__model": "x", "vlm__adapters": True, "vlm__lora__rank": 0},
            "adapters = true needs a lora.rank of at least 1",
        ),
    ],
)
def test_adapters_that_cannot_be_trained_are_refused(changes: dict[str, object], message: str, small: Small) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_adapters_have_a_rate_of_their_own() -> None:
    model = torch.nn.ModuleDict(
        {"adapters": torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("text", "image")})}
    )
    model["adapters"]["vision_model"] = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2, bias=False)})
    groups = step_module._weight_groups(
        model, TrainConfig(learning_rate=0.5, adapters_rate=0.1, vision_rate=0.5, weight_decay=0.0)
    )
    assert {(group["lr"], len(group["params"])) for group in groups} == {(0.05, 2), (0.025, 1)}
