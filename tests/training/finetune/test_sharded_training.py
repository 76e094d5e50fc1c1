"""Two real processes (gloo) that each hold a part of every weight, against two that hold all weights."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.processes.ranks import Ranks
from training.config.run_config import load_config, to_toml
from training.errors import ConfigError

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
HOLDING = """
import time
from training.finetune.run_log import RunLog
write = RunLog.write
def holding(self, step, rest):
    write(self, step, rest)
    while {step} <= step < 8:
        time.sleep(.01)
RunLog.write = holding
"""


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
    overrides = {**smallest, **CHANGES}
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
