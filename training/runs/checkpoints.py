"""Writes and restores checkpoints of a training run; a checkpoint is renamed into place when it is complete.

A checkpoint is a directory ``step-<n>`` with the trained weights and AdamW's moments as safetensors (no pickle) and
``state.json``. Order and dropout depend only on the seed and the step, so no random generator is saved.
"""

import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from training.errors import BackboneError

_NAME = re.compile(r"step-(\d{8})")
_WEIGHTS = "weights.safetensors"
_MOMENTS = "optimizer.safetensors"
STATE_FILE = "state.json"
"""The state of a run beside weights and moments, in a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: its directory.
        step: optimiser steps done.
    """

    path: Path
    step: int


def newest(directory: Path) -> Checkpoint | None:
    """The newest complete checkpoint in a directory; None if there is none."""
    found = _all(directory)
    return found[-1] if found else None


def at(directory: Path, step: int) -> Checkpoint:
    """The checkpoint of a step, which need not exist."""
    return Checkpoint(directory / f"step-{step:08d}", step)


def write(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    state: Mapping[str, Any],
    *,
    keep: int,
    beside: Collection[int] = (),
) -> Checkpoint:
    """Write a checkpoint and remove the oldest beyond ``keep``.

    Args:
        directory: of all the checkpoints of a run.
        step: optimiser steps done.
        model: only its trained weights are written.
        optimizer: AdamW over these weights.
        state: other JSON-able state.
        keep: number of the newest checkpoints that stay, at least 1.
        beside: steps whose checkpoints stay too.
    """
    partial = begin(directory, step)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    save_file({name: weight.detach().cpu().contiguous() for name, weight in trained.items()}, partial / _WEIGHTS)
    moments: dict[str, Tensor] = {}
    for name, weight in trained.items():
        for key, value in optimizer.state.get(weight, {}).items():
            moments[f"{key}:{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    save_file(moments, partial / _MOMENTS)
    (partial / STATE_FILE).write_text(json.dumps(dict(state), indent=2) + "\n", encoding="utf-8")
    return complete(partial, at(directory, step), keep=keep, beside=beside)


def begin(directory: Path, step: int) -> Path:
    """Make the empty directory that :func:`complete` renames, and remove incomplete checkpoints of a killed run."""
    for part in directory.glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)
    partial = directory / f".{at(directory, step).path.name}.part"
    partial.mkdir(parents=True)
    return partial


def complete(partial: Path, target: Checkpoint, *, keep: int, beside: Collection[int] = ()) -> Checkpoint:
    """Rename a checkpoint into place once all its files are on the disk, and remove the oldest beyond ``keep``.

    Args:
        partial: of :func:`begin`, with every file of the checkpoint.
        target: the checkpoint; one of the same step is replaced.
        keep: number of the newest checkpoints that stay, at least 1.
        beside: steps whose checkpoints stay too.
    """
    directory = target.path.parent
    for path in partial.iterdir():
        _sync(path)
    shutil.rmtree(target.path, ignore_errors=True)
    partial.rename(target.path)
    _sync(directory)
    for old in _all(directory)[:-keep]:
        if old.step not in beside:
            shutil.rmtree(old.path, ignore_errors=True)
    return target


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Restore weights and moments.

    Args:
        checkpoint: to read.
        model: the same model as when it was written.
        optimizer: over the model's trained weights.

    Returns:
        The other state.

    Raises:
        BackboneError: a file is unreadable, or fits another model.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    try:
        weights, moments = load_file(checkpoint.path / _WEIGHTS), load_file(checkpoint.path / _MOMENTS)
        state = json.loads((checkpoint.path / STATE_FILE).read_text(encoding="utf-8"))
        if set(weights) != set(trained):
            raise BackboneError(
                f"{checkpoint.path}: the checkpoint holds the weights of another model; start a new run"
            )
        with torch.no_grad():
            for name, weight in trained.items():
                weight.copy_(weights[name])
        for entry, value in moments.items():
            key, name = entry.split(":", 1)
            slot = optimizer.state[trained[name]]
            slot[key] = value if key == "step" else value.to(trained[name].device)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise BackboneError(
            f"{checkpoint.path}: the checkpoint cannot be read ({error}); remove it to resume from the one before"
        ) from error
    return dict(state)


def _all(directory: Path) -> list[Checkpoint]:
    """Complete checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    named = ((path, _NAME.fullmatch(path.name)) for path in directory.iterdir())
    return sorted((Checkpoint(path, int(m.group(1))) for path, m in named if m), key=lambda found: found.step)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
