"""Writes and restores the checkpoints of a run whose processes each have all weights or a part of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from training.backbones.gradient_cache import Embedder
from training.finetune.distributed import ProcessGroup
from training.finetune.processes import sharded_checkpoints
from training.finetune.processes.run_copy import RunCopy
from training.finetune.run_directory import RunDirectory
from training.runs import checkpoints

_CHECKPOINTS = Path("checkpoints")


class RunCheckpoints:
    """The checkpoints of one run; every process of it must call each method.

    Args:
        run_dir: whose checkpoints the first process writes, or every process if the weights are sharded.
        run_copy: brings a checkpoint to machines that do not see it.
        processes: all processes of the run.
        embedder: the model.
        optimizer: over its trained weights.
        sharded: each process holds a part of every weight.
        keep: number of the newest checkpoints that stay.
    """

    def __init__(
        self,
        run_dir: RunDirectory,
        run_copy: RunCopy,
        processes: ProcessGroup,
        embedder: Embedder,
        optimizer: Optimizer,
        *,
        sharded: bool,
        keep: int,
    ) -> None:
        self._directory, self._run_copy, self._processes = run_dir.checkpoints, run_copy, processes
        self._embedder, self._optimizer = embedder, optimizer
        self._sharded, self._keep = sharded, keep

    def newest_step(self) -> int | None:
        """Steps done at the first process's newest checkpoint; None if there is none."""
        last = checkpoints.newest(self._directory) if self._processes.first else None
        return self._processes.agreed(None if last is None else last.step)

    def restore(self, step: int) -> dict[str, Any]:
        """Restore weights and moments, and return the other state.

        Raises:
            BackboneError: a file is unreadable or was changed, or the checkpoint is of another model.
        """
        if self._sharded:
            checkpoint = checkpoints.at(self._directory, step)
            return sharded_checkpoints.restore(checkpoint, self._embedder, self._optimizer, self._processes)
        self._run_copy.update(_CHECKPOINTS / checkpoints.at(self._directory, step).path.name, replaces=True)
        checkpoint = checkpoints.at(self._run_copy.readable.checkpoints, step)
        return checkpoints.restore(checkpoint, self._embedder, self._optimizer)

    def write(self, step: int, state: Mapping[str, Any], *, best_step: int) -> None:
        """Write a checkpoint; the one of the best validation stays beside the newest ones."""
        if self._sharded:
            sharded_checkpoints.write(
                self._directory, step, self._embedder, self._optimizer, state, self._processes,
                keep=self._keep, beside={best_step},
            )  # fmt: skip
        elif self._processes.first:
            checkpoints.write(
                self._directory, step, self._embedder, self._optimizer, state, keep=self._keep, beside={best_step}
            )
