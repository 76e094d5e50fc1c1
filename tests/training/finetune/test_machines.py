"""Two processes on machines with disks of their own, played by directories of their own."""

import json
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.processes.ranks import Ranks, wait_until
from tests.support.processes.watched_training import holding, recording_refusals
from training.config.run_config import load_config, to_toml
from training.errors import ConfigError
from training.finetune.distributed import check_restarts, launch_name
from training.finetune.run_directory import RunDirectory

STEPS = 6
CHANGES: dict[str, Any] = {
    "train.steps": STEPS,
    "train.batch_size": 7,
    "train.checkpoint_steps": 2,
    "train.validate_every": 2,
    "train.patience": 100,  # ends by no means early, but the best weights are kept
}


def command(disk: Path, overrides: dict[str, Any]) -> list[object]:
    config = disk / "config.toml"
    config.write_text(to_toml(load_config(overrides=overrides)))
    return ["train", disk / "shop", "--run", disk / "run", "--config", config, "--threads", "1", "--resume"]


@pytest.fixture
def disks(shop_directory: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two disks with a copy of the data set each."""
    for name in ("a", "b"):
        shutil.copytree(shop_directory, tmp_path / name / "shop")
    return tmp_path / "a", tmp_path / "b"


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "train" / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "train" / "model" / "model.safetensors")


def test_machines_share_no_disk_and_a_killed_run_goes_on(
    disks: tuple[Path, Path], shop_directory: Path, smallest: dict[str, Any], tmp_path: Path
) -> None:
    """Killed and resumed over two disks, it is bit for bit the run of two processes on one disk."""
    overrides = {**smallest, **CHANGES}
    together = tmp_path / "together"
    shutil.copytree(shop_directory, together / "shop")
    assert Ranks([command(together, overrides)] * 2).exit_codes() == [0, 0]

    first, second = disks
    commands = [command(disk, overrides) for disk in disks]
    ranks = Ranks(commands, holding(3, STEPS), machines=True)
    wait_until(lambda: (first / "run" / "train" / "log.jsonl").is_file() and len(lines(first / "run")) >= 3)
    for process in ranks.processes:
        process.kill()
    assert ranks.exit_codes() == [-signal.SIGKILL] * 2
    assert Ranks(commands, machines=True).exit_codes() == [0, 0]

    assert lines(first / "run") == lines(together / "run")
    mine, theirs = weights(first / "run"), weights(together / "run")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert [path.name for path in (second / "run" / "train").iterdir()] == ["copy"]
    copied = second / "run" / "train" / "copy"
    assert load_file(copied / "start" / "model.safetensors").keys() == mine.keys()
    assert len(list((copied / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("steps", "another configuration"),
        ("interactions.csv", "other items or interactions"),
        ("images/0.png", "other pictures"),
    ],
)
def test_machines_with_other_data_or_settings_are_refused(
    disks: tuple[Path, Path], smallest: dict[str, Any], tmp_path: Path, change: str, what: str
) -> None:
    first, second = disks
    commands = [command(first, {**smallest, **CHANGES})]
    commands.append(command(second, {**smallest, **CHANGES, "train.steps": 5 if change == "steps" else STEPS}))
    if change == "interactions.csv":
        path = second / "shop" / change
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    elif change == "images/0.png":
        (second / "shop" / change).unlink()
    said = tmp_path / "said.txt"
    ranks = Ranks(commands, recording_refusals(said), machines=True)
    assert ranks.exit_codes() == [2, 2]
    messages = said.read_text().splitlines()
    assert len(messages) == 2
    for message in messages:
        assert message.startswith("process 1 on ")
        assert f" has {what} than process 0 on " in message
    assert not (first / "run" / "train").exists()


def test_machines_with_other_weights_are_refused(
    disks: tuple[Path, Path], smallest: dict[str, Any], backbone_directory: Path, tmp_path: Path
) -> None:
    """The path of the model is that of the configuration, the same on both; what lies there differs."""
    said, other = tmp_path / "said.txt", tmp_path / "other"
    shutil.copytree(backbone_directory, other)
    path = other / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    overrides = {**smallest, **CHANGES, "vlm.model": str(backbone_directory), "vlm.lora.rank": 2}
    on_second = f"""
if os.environ["RANK"] == "1":
    from training.backbones import starting_model
    load = starting_model.load_backbone
    starting_model.load_backbone = lambda source, **options: load({str(other)!r}, **options)
"""
    commands = [command(disk, overrides) for disk in disks]
    ranks = Ranks(commands, recording_refusals(said) + on_second, machines=True)
    assert ranks.exit_codes() == [2, 2]
    for message in said.read_text().splitlines():
        assert "process 1 on " in message
        assert "has other weights of the model than process 0" in message


@pytest.mark.parametrize(
    ("machines", "restarts", "shared", "refused"),
    [("2", "2", "True", True), ("1", "2", "True", False), ("2", "0", "True", False), ("2", "2", "False", False)],
)
def test_restarts_over_machines_with_a_store_of_old_addresses_are_refused(
    monkeypatch: pytest.MonkeyPatch, machines: str, restarts: str, shared: str, refused: bool
) -> None:
    monkeypatch.setenv("GROUP_WORLD_SIZE", machines)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    expected = pytest.raises(ConfigError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1") if refused else nullcontext()
    with expected:
        check_restarts()


def test_processes_that_torchrun_starts_again_resume_their_own_run_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_dir = RunDirectory(tmp_path / "run")
    assert launch_name() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    name = launch_name()
    assert name is not None
    with run_dir.claimed("same", resume=False, launch=name):
        run_dir.start.mkdir()
    with run_dir.claimed("same", resume=False, launch=name):
        pass
    for launch in (f"{name}0", None):
        with (
            pytest.raises(ConfigError, match="go on with --resume"),
            run_dir.claimed("same", resume=False, launch=launch),
        ):
            pass
    with pytest.raises(ConfigError, match="another configuration"), run_dir.claimed("x", resume=False, launch=name):
        pass
