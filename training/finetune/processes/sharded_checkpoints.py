"""Writes and restores checkpoints of which every process writes the part of the weights that it holds.

A checkpoint is a directory ``step-<n>`` with safetensors of `torch.distributed.checkpoint`, whose own format keeps its
index as a pickle, ``state.json``, and ``shards.json`` with the SHA-256 of every file. It can be restored by another
number of processes than wrote it.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from training.errors import BackboneError
from training.finetune.distributed import ProcessGroup
from training.finetune.processes.sharding import reshard
from training.runs import checkpoints
from training.runs.checkpoints import STATE_FILE, Checkpoint

SHARDS_FILE = "shards.json"
_WEIGHT = "weight:"
_STEP = "step"


def write(
    directory: Path, step: int, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any],
    processes: ProcessGroup, *, keep: int, beside: Collection[int] = (),
) -> Checkpoint:  # fmt: skip
    """Write a checkpoint and remove the oldest beyond ``keep``; every process must call this.

    Args:
        directory: of all the checkpoints of a run, on a disk that all processes share.
        step: optimiser steps done.
        model: sharded; only its trained weights are written.
        optimizer: AdamW over these weights.
        state: other JSON-able state.
        processes: all processes of the run.
        keep: number of the newest checkpoints that stay, at least 1.
        beside: steps whose checkpoints stay too.
    """
    if processes.first:
        checkpoints.begin(directory, step)
    processes.wait()
    target = checkpoints.at(directory, step)
    partial = directory / f".{target.path.name}.part"
    reshard(model)
    tensors, steps = _tensors(model, optimizer)
    save(tensors, storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    processes.wait()
    hashes = _hashes(partial, processes)
    if processes.first:
        shards = {"files": hashes, "optimizer_steps": steps}
        (partial / SHARDS_FILE).write_text(json.dumps(shards, indent=2) + "\n", encoding="utf-8")
        (partial / STATE_FILE).write_text(json.dumps(dict(state), indent=2) + "\n", encoding="utf-8")
        checkpoints.complete(partial, target, keep=keep, beside=beside)
    processes.wait()
    return target


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, processes: ProcessGroup) -> dict[str, Any]:
    """Restore weights and moments; every process must call this.

    Args:
        checkpoint: to read.
        model: the same model as when it was written, sharded over any number of processes.
        optimizer: over the model's trained weights.
        processes: all processes of the run.

    Returns:
        The other state.

    Raises:
        BackboneError: a file is missing, additional, unreadable or not as it was written, or fits another model; raised
            in every process.
    """
    remedy = "remove it to resume from the one before"
    try:
        shards = json.loads((checkpoint.path / SHARDS_FILE).read_text(encoding="utf-8"))
        state = json.loads((checkpoint.path / STATE_FILE).read_text(encoding="utf-8"))
        files, steps = dict(shards["files"]), dict(shards["optimizer_steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"{checkpoint.path}: the checkpoint cannot be read ({error}); {remedy}") from error
    found = _hashes(checkpoint.path, processes)
    changed = sorted(name for name in files.keys() | found.keys() if files.get(name) != found.get(name))
    if changed:
        raise BackboneError(
            f"{checkpoint.path}: not as this run wrote it, by the hashes in {SHARDS_FILE} ({', '.join(changed)}); "
            f"{remedy}"
        )
    reshard(model)
    trained = _trained(model)
    if not steps.keys() <= trained.keys():
        raise BackboneError(f"{checkpoint.path}: the checkpoint holds the weights of another model; start a new run")
    for name, count in steps.items():
        weight = trained[name]
        optimizer.state[weight] = {
            _STEP: torch.tensor(float(count)),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    tensors, _ = _tensors(model, optimizer)
    try:
        with torch.no_grad():
            load(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint.path)))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, CheckpointException) as error:
        raise BackboneError(
            f"{checkpoint.path}: the checkpoint holds the weights of another model ({error}); start a new run"
        ) from error
    return dict(state)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _tensors(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The trained weights and their moments, and how many steps the optimiser has taken with each."""
    tensors: dict[str, Tensor] = {}
    steps: dict[str, float] = {}
    for name, weight in _trained(model).items():
        tensors[_WEIGHT + name] = weight.detach()
        for key, value in optimizer.state.get(weight, {}).items():
            if key == _STEP:
                steps[name] = float(value)
            else:
                tensors[f"{key}:{name}"] = value
    return tensors, steps


def _hashes(directory: Path, processes: ProcessGroup) -> dict[str, str]:
    """Name → SHA-256 of all safetensors in a directory; each process reads its part of them."""
    names = processes.agreed(sorted(path.name for path in directory.glob("*.safetensors")))
    own = {}
    for name in names[processes.number :: processes.count]:
        try:
            with (directory / name).open("rb") as file:
                own[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            own[name] = f"unreadable: {error.strerror}"
    return {name: digest for part in processes.everyone(own) for name, digest in part.items()}
