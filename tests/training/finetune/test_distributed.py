"""Two real processes (gloo) against one process with the same global batch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch.distributed import TCPStore

from tests.support.processes.forked_commands import exit_code, start_code
from training.config.run_config import load_config
from training.data.dataset import Dataset
from training.data.sequences import LeaveOneOut
from training.errors import ConfigError
from training.finetune.distributed import ProcessGroup
from training.finetune.trainer import train_vlm

WORKER = Path(__file__).parents[2] / "support" / "processes" / "process_worker.py"
AS_RANK = """
import os, runpy, sys
os.environ |= {{  # as torchrun sets them
    "RANK": "{rank}", "LOCAL_RANK": "{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}",
    "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
}}
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CHANGES: dict[str, Any] = {
    "train.batch_size": 7,  # 4 windows for one rank and 3 for the other
    "train.steps": 5,
    "train.cached_gradients": True,
    "train.chunk_tokens": 128,
    "train.chunk_patches": 20,
    "train.validate_every": 2,
    "train.checkpoint_steps": 3,
    "train.diagnose_every": 2,
    "loss.wpcl_weight": 0.5,
    "loss.alpha": 2.0,
    "loss.crtr_weight": 0.3,
    "loss.unimodal_weight": 0.2,
    "loss.modality_dropout": 0.4,
}


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def two_processes(shop_directory: Path, smallest: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote; they share no memory and meet over gloo alone."""
    out = tmp_path_factory.mktemp("processes")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    argv = [str(WORKER), str(shop_directory), str(out), json.dumps({**smallest, **CHANGES})]
    processes = [start_code(AS_RANK.format(rank=rank, port=store.port, argv=argv)) for rank in (0, 1)]
    assert [exit_code(process, 300) for process in processes] == [0, 0]
    return out


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_exchanges_between_processes(two_processes: Path) -> None:
    first, second = (json.loads((two_processes / f"exchange-{number}.json").read_text()) for number in (0, 1))
    assert (first["count"], second["count"]) == (2, 2)
    assert (first["first"], second["first"]) == (True, False)
    assert first["share"] + second["share"] == [0, 1, 2, 3, 4]
    assert first["gathered"] == second["gathered"] == [1, 2, 3, 5]
    assert (first["gradient"], second["gradient"]) == ([30, 15, 10], [6])  # of the product of all four
    assert (first["nothing"], second["nothing"]) == (2, 2)
    assert (first["padded"], second["padded"]) == ([[7, -1]], [[7, 7]])
    # Summed; had by one process only; had by none; of another dtype.
    assert first["summed"] == second["summed"] == [[3, 3], [4, -1], None, [20, 20]]
    assert first["summed_values"] == second["summed_values"] == {"one": 1, "other": 4}
    assert first["agreed"] == second["agreed"] == {"value": 0}


def test_two_processes_train_as_one_does(
    two_processes: Path, shop: Dataset, shop_parts: LeaveOneOut, smallest: dict[str, Any], tmp_path: Path
) -> None:
    """The plain loss of one process, without cached gradients, on the same global batches."""
    config = load_config(overrides={**smallest, **CHANGES, "train.cached_gradients": False})
    alone = train_vlm(shop, shop_parts.train, tmp_path, config, validation=shop_parts.validation)
    ours, theirs = lines(tmp_path), lines(two_processes / "run")
    assert [set(line) for line in ours] == [set(line) for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in set(mine) - {"seconds"}:
            assert other[name] == pytest.approx(mine[name], rel=1e-4, abs=1e-6), (mine["step"], name)
    start = load_file(tmp_path / "start" / "model.safetensors")
    weights, shared = (load_file(path / "model.safetensors") for path in (alone, two_processes / "run" / "model"))
    moved = torch.cat([(weights[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(weights[name] - shared[name]).flatten() for name in start])
    assert moved.abs().max() > 1e-3
    assert apart.norm() < 1e-3 * moved.norm()


def test_the_first_process_alone_writes_and_reports(two_processes: Path) -> None:
    reported = [json.loads((two_processes / f"reported-{number}.json").read_text()) for number in (0, 1)]
    assert reported == [[0, 1, 2, 3, 4, 5], []]
    assert [line["step"] for line in lines(two_processes / "run")] == [1, 2, 3, 4, 5]
    assert max(path.name for path in (two_processes / "run" / "checkpoints").iterdir()) == "step-00000005"


def test_a_batch_must_have_a_window_for_every_process(
    shop: Dataset, shop_parts: LeaveOneOut, smallest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = ProcessGroup.__init__

    def many(self: ProcessGroup, accelerator: Any) -> None:
        begin(self, accelerator)
        self.count = 7

    monkeypatch.setattr(ProcessGroup, "__init__", many)
    with pytest.raises(ConfigError, match=r"train\.batch_size must be at least the number of processes \(7\), got 6"):
        train_vlm(shop, shop_parts.train, tmp_path, load_config(overrides=smallest))
