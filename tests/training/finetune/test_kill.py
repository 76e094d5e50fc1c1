"""kill -9 of real training processes: what is resumed is the run that would have been."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from tests.support.backbones.item_models import write_image_model, write_text_encoder
from tests.support.processes.forked_commands import exit_code, start_command
from tests.support.processes.watched_training import holding
from training.backbones.items.last_layers import LAYERS_FILE
from training.config.run_config import RunConfig, load_config, to_toml
from training.data.dataset import Dataset
from training.data.sequences import LeaveOneOut
from training.finetune.trainer import train_vlm

ROOT = Path(__file__).parents[3]
STEPS = 80
RESULT = {0, -signal.SIGKILL}


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def config(smallest: dict[str, Any], backbone_directory: Path) -> RunConfig:
    """Adapters with dropout, validation and a schedule: all that a resumed run must take up again."""
    return load_config(
        overrides=smallest
        | {
            "vlm.model": str(backbone_directory),
            "vlm.lora.rank": 2,
            "vlm.lora.dropout": 0.3,
            "train.steps": STEPS,
            "train.learning_rate": 0.01,
            "train.log_every": 1,
            "train.checkpoint_steps": 5,
            "train.validate_every": 8,
            "train.patience": 100,  # ends by no means early, but the best weights are kept
        }
    )


def words(shop: Path, run: Path, config: RunConfig) -> list[str]:
    """The command line of a training."""
    path = run.parent / "config.toml"
    path.write_text(to_toml(config))
    return ["train", str(shop), "--run", str(run), "--config", str(path), "--threads", "1", "--resume"]


def started(shop: Path, run: Path, config: RunConfig, *, hold_at: int = STEPS) -> ForkServerProcess:
    """Start a training; one that holds after a step waits to be killed."""
    return start_command(words(shop, run, config), holding(hold_at, STEPS))


def started_in_ranks(shop: Path, run: Path, config: RunConfig) -> subprocess.Popen[str]:
    """Start a training of two ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "cli.main"]
    return subprocess.Popen(
        [sys.executable, *launcher, *words(shop, run, config)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when(pid: int | None, due: Callable[[], bool], pause: float = 0.0) -> None:
    """SIGKILL to a process and all that it started, so long after something is the case; it may end before."""
    whole = psutil.Process(pid)
    while not due() and has_not_ended(whole):
        time.sleep(0.002)
    time.sleep(pause)
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*whole.children(recursive=True), whole]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family[:-1], timeout=60)


def has_not_ended(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def steps_done(run: Path) -> int:
    path = run / "train" / "log.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def lines(directory: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def adapters(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "adapter" / "adapter_model.safetensors")


def heads_and_layers(directory: Path) -> dict[str, torch.Tensor]:
    model = directory / "model"
    return load_file(model / "heads.safetensors") | load_file(model / LAYERS_FILE)


def assert_same_lines(whole: Path, broken: Path) -> None:
    assert lines(whole) == lines(broken)
    assert [line["step"] for line in lines(whole)] == list(range(1, STEPS + 1))
    assert sum("ndcg@10" in line for line in lines(whole)) == STEPS // 8


def assert_same_run(whole: Path, broken: Path) -> None:
    assert_same_lines(whole, broken)
    first, second = adapters(whole), adapters(broken)
    assert any(weight.abs().max() > 0 for name, weight in first.items() if "lora_B" in name)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list(broken.glob(".*.part"))
    assert not list((broken / "checkpoints").glob(".*.part"))


def unbroken(shop: Dataset, parts: LeaveOneOut, directory: Path, config: RunConfig) -> Path:
    train_vlm(shop, parts.train, directory, config, validation=parts.validation)
    return directory


def killed_and_resumed(shop_directory: Path, run: Path, config: RunConfig) -> Path:
    """The directory of a run that was killed at a random step and then came to its end."""
    step = random.randrange(3, 40)
    process = started(shop_directory, run, config, hold_at=step + 3)
    kill_when(process.pid, lambda: steps_done(run) >= step)
    assert exit_code(process) == -signal.SIGKILL, f"it should have been killed at step {step} of {STEPS}"
    assert not (run / "train" / "model").exists()
    assert exit_code(started(shop_directory, run, config)) == 0
    return run


def test_a_killed_process_goes_on_as_if_nothing_had_happened(
    shop: Dataset, shop_directory: Path, shop_parts: LeaveOneOut, config: RunConfig, tmp_path: Path
) -> None:
    run = killed_and_resumed(shop_directory, tmp_path / "run", config)
    assert_same_run(unbroken(shop, shop_parts, tmp_path / "whole", config), run / "train")


def test_a_killed_training_of_text_layers_goes_on_as_if_nothing_had_happened(
    shop: Dataset, shop_directory: Path, shop_parts: LeaveOneOut, config: RunConfig, tmp_path: Path
) -> None:
    towers = {
        "text_model": str(write_text_encoder(tmp_path / "bert")),
        "image_model": str(write_image_model(tmp_path / "resnet")),
        "trained_text_layers": 1,
    }
    changed = config.model_dump() | {"vlm": {"family": "towers", "towers": towers, "heads": {"length": 8}}}
    config = RunConfig.model_validate(changed)
    run = killed_and_resumed(shop_directory, tmp_path / "run", config)
    whole = unbroken(shop, shop_parts, tmp_path / "whole", config)
    assert_same_lines(whole, run / "train")
    first, second = heads_and_layers(whole), heads_and_layers(run / "train")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_killed_again_and_again(
    shop: Dataset, shop_directory: Path, shop_parts: LeaveOneOut, config: RunConfig, tmp_path: Path
) -> None:
    """A checkpoint after nearly every step, so that some kills fall into the writing of one."""
    often = config.model_copy(update={"train": config.train.model_copy(update={"checkpoint_seconds": 1e-3})})
    run, kills = tmp_path / "run", 0
    for step in (0, 1, 5, 17, 18, 30, 45, 60, 70):
        process = started(shop_directory, run, often)
        kill_when(
            process.pid, lambda step=step: steps_done(run) >= step and (run / "train").is_dir(), random.random() * 0.05
        )
        code = exit_code(process)
        assert code in RESULT
        kills += code == -signal.SIGKILL
    assert kills >= 6
    assert exit_code(started(shop_directory, run, often)) == 0
    assert_same_run(unbroken(shop, shop_parts, tmp_path / "whole", config), run / "train")


@pytest.mark.slow
def test_two_killed_ranks_go_on_as_if_nothing_had_happened(
    shop_directory: Path, config: RunConfig, tmp_path: Path
) -> None:
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    for step in (10, 40):
        process = started_in_ranks(shop_directory, broken, config)
        kill_when(process.pid, lambda step=step: steps_done(broken) >= step)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    for run in (broken, whole):
        process = started_in_ranks(shop_directory, run, config)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    assert_same_run(whole / "train", broken / "train")
