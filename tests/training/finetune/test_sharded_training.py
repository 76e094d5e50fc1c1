"""Two real processes (gloo) that each hold a part of every weight, against two that hold all weights."""

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.optim import AdamW

from tests.support.processes.ranks import Ranks, wait_until
from tests.support.processes.watched_training import holding, recording_refusals
from training.backbones.backbone import Backbone
from training.backbones.vlm import VlmEmbedder, adapt
from training.config.run_config import load_config, to_toml
from training.data.dataset import Dataset
from training.data.sequences import Sequences
from training.errors import BackboneError, ConfigError
from training.finetune.distributed import ProcessGroup
from training.finetune.processes import sharded_checkpoints
from training.finetune.processes.sharding import shard_weights
from training.finetune.trainer import train_vlm
from training.runs import checkpoints

STEPS = 8
CHANGES: dict[str, Any] = {
    "train.batch_size": 7,  # 4 windows for one rank and 3 for the other
    "train.steps": STEPS,
    "train.cached_gradients": True,
    "train.chunk_tokens": 128,
    "train.chunk_patches": 20,
    "train.validate_every": 3,
    "train.checkpoint_steps": 2,
    "train.diagnose_every": 2,
    "loss.crtr_weight": 0.3,
    "loss.modality_dropout": 0.4,
}


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def command(shop: Path, run: Path, overrides: dict[str, Any]) -> list[object]:
    path = run.with_suffix(".toml")
    path.write_text(to_toml(load_config(overrides=overrides)))
    return ["train", shop, "--run", run, "--config", path, "--threads", "1", "--resume"]


def trained(shop: Path, run: Path, overrides: dict[str, Any]) -> Path:
    assert Ranks([command(shop, run, overrides)] * 2).exit_codes() == [0, 0]
    return run / "train"


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def adapters(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def with_adapters(smallest: dict[str, Any], backbone_directory: Path) -> dict[str, Any]:
    lora = {"vlm.model": str(backbone_directory), "vlm.lora.rank": 2, "vlm.lora.dropout": 0.0}
    return {**smallest, **CHANGES, **lora, "train.learning_rate": 0.01}


@pytest.fixture(scope="module")
def sharded(shop_directory: Path, with_adapters: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("sharded") / "run"
    return trained(shop_directory, run, {**with_adapters, "train.shard": True})


def assert_near(mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert [set(line) for line in mine] == [set(line) for line in theirs]
    for line, other in zip(mine, theirs, strict=True):
        for name, value in line.items():
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (line["step"], name)


def test_sharded_adapters_are_trained_as_whole_ones(
    shop_directory: Path, with_adapters: dict[str, Any], sharded: Path, tmp_path: Path
) -> None:
    whole = trained(shop_directory, tmp_path / "run", with_adapters)
    assert_near(lines(whole), lines(sharded))
    first, second = adapters(whole), adapters(sharded)
    assert set(first) == set(second)
    moved = torch.cat([first[name].flatten() for name in first if "lora_B" in name])
    apart = torch.cat([(first[name] - second[name]).flatten() for name in first])
    assert moved.abs().max() > 1e-3
    assert apart.norm() < 1e-3 * moved.norm()


def test_a_sharded_model_of_which_every_weight_is_trained(
    shop_directory: Path, smallest: dict[str, Any], tmp_path: Path
) -> None:
    """Also resumed from an earlier checkpoint, and with the best validated weights, which are not the last ones."""
    overrides = {**smallest, **CHANGES, "train.patience": 100, "train.learning_rate": 0.01}
    whole = trained(shop_directory, tmp_path / "whole", overrides)
    parts = trained(shop_directory, tmp_path / "parts", {**overrides, "train.shard": True})
    assert_near(lines(whole), lines(parts))
    start = load_file(whole / "start" / "model.safetensors")
    first, second = (load_file(run / "model" / "model.safetensors") for run in (whole, parts))
    assert {name: value.shape for name, value in first.items()} == {name: v.shape for name, v in second.items()}
    moved = torch.cat([(first[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(first[name] - second[name]).flatten() for name in start])
    assert moved.abs().max() > 1e-3
    assert apart.norm() < 1e-3 * moved.norm()
    again = tmp_path / "again" / "train"
    shutil.copytree(parts.parent, again.parent)
    shutil.rmtree(again / "model")
    for step in (6, STEPS):
        shutil.rmtree(again / "checkpoints" / f"step-{step:08d}")
    assert checkpoints.newest(again / "checkpoints") is not None
    trained(shop_directory, again.parent, {**overrides, "train.shard": True})
    assert lines(again) == lines(parts)
    third = load_file(again / "model" / "model.safetensors")
    assert all(torch.equal(second[name], third[name]) for name in second)


def test_a_killed_sharded_run_goes_on_as_if_nothing_had_happened(
    shop_directory: Path, with_adapters: dict[str, Any], sharded: Path, tmp_path: Path
) -> None:
    run, overrides = tmp_path / "run", {**with_adapters, "train.shard": True}
    step = random.randrange(2, 7)
    ranks = Ranks([command(shop_directory, run, overrides)] * 2, holding(step, STEPS))
    log = run / "train" / "log.jsonl"
    wait_until(lambda: log.is_file() and len(log.read_text().splitlines()) >= step)
    for process in ranks.processes:
        os.kill(process.pid or 0, signal.SIGKILL)
    assert ranks.exit_codes() == [-signal.SIGKILL] * 2, f"killed in step {step}"
    assert not (run / "train" / "model").exists()
    broken = trained(shop_directory, run, overrides)
    assert lines(broken) == lines(sharded)
    first, second = adapters(sharded), adapters(broken)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list((broken / "checkpoints").glob(".*.part"))


@pytest.mark.slow
def test_a_sharded_run_goes_on_with_another_number_of_processes(
    shop_directory: Path, with_adapters: dict[str, Any], sharded: Path, tmp_path: Path
) -> None:
    run, overrides = tmp_path / "run", {**with_adapters, "train.shard": True}
    shutil.copytree(sharded.parent, run)
    shutil.rmtree(run / "train" / "model")
    shutil.rmtree(run / "train" / "checkpoints" / f"step-{STEPS:08d}")
    assert Ranks([command(shop_directory, run, overrides)] * 3).exit_codes() == [0, 0, 0]
    assert_near(lines(sharded), lines(run / "train"))


def test_a_sharded_checkpoint_has_no_pickle_and_is_read_only_as_it_was_written(sharded: Path, tmp_path: Path) -> None:
    checkpoint = checkpoints.newest(sharded / "checkpoints")
    assert checkpoint is not None
    names = sorted(path.name for path in checkpoint.path.iterdir())
    shards = [name for name in names if name.endswith(".safetensors")]
    assert len(shards) == 2
    assert [name for name in names if name not in shards] == ["shards.json", "state.json"]
    model = nn.Linear(2, 2)

    def restored(path: Path) -> None:
        alone = ProcessGroup(Accelerator(cpu=True))
        sharded_checkpoints.restore(checkpoints.Checkpoint(path, STEPS), model, AdamW(model.parameters()), alone)

    def copy(name: str) -> Path:
        return Path(shutil.copytree(checkpoint.path, tmp_path / name))

    altered = copy("altered")
    content = bytearray((altered / shards[1]).read_bytes())
    content[-1] ^= 1
    (altered / shards[1]).write_bytes(content)
    with pytest.raises(BackboneError, match=rf"not as this run wrote it.*\({shards[1]}\); remove it"):
        restored(altered)
    missing = copy("missing")
    (missing / shards[0]).unlink()
    with pytest.raises(BackboneError, match=rf"not as this run wrote it.*\({shards[0]}\)"):
        restored(missing)
    additional = copy("additional")
    shutil.copyfile(additional / shards[0], additional / "x.safetensors")
    with pytest.raises(BackboneError, match=r"not as this run wrote it.*\(x\.safetensors\)"):
        restored(additional)
    unlisted = copy("unlisted")
    (unlisted / "shards.json").unlink()
    with pytest.raises(BackboneError, match="cannot be read"):
        restored(unlisted)
    with pytest.raises(BackboneError, match="holds the weights of another model"):
        restored(copy("foreign"))


def test_machines_must_share_the_directory_of_a_sharded_run(
    shop_directory: Path, with_adapters: dict[str, Any], tmp_path: Path
) -> None:
    said = tmp_path / "said.txt"
    commands = [command(shop_directory, tmp_path / name, {**with_adapters, "train.shard": True}) for name in "ab"]
    ranks = Ranks(commands, recording_refusals(said), machines=True)
    assert ranks.exit_codes() == [2, 2]
    messages = said.read_text().splitlines()
    assert len(messages) == 2
    for message in messages:
        assert "process 1 on " in message
        assert "does not see the run directory of process 0" in message
        assert "put --run on a disk that all machines share" in message


def test_settings_that_cannot_be_sharded(shop: Dataset, shop_train: Sequences, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shard needs cached_gradients = true.*got false"):
        load_config(overrides={"train.shard": True})
    with pytest.raises(ConfigError, match=r'train\.shard is for vlm\.family = "qwen-vl".*got family = "dual-encoder"'):
        load_config(
            overrides={
                "train.shard": True,
                "train.cached_gradients": True,
                "vlm.family": "dual-encoder",
                "vlm.model": "x",
            }
        )
    alone = load_config(overrides={"train.shard": True, "train.cached_gradients": True})
    with pytest.raises(ConfigError, match=r"train\.shard = true divides .* got 1; start it by torchrun"):
        train_vlm(shop, shop_train, tmp_path, alone)


def test_adapters_in_the_vision_tower_alone_are_not_sharded(backbone: Backbone) -> None:
    embedder = VlmEmbedder(adapt(backbone, rank=2, alpha=4, dropout=0.0, targets=["qkv"]))
    with pytest.raises(ConfigError, match="needs trained weights in the language model"):
        shard_weights(embedder, Accelerator(cpu=True))
