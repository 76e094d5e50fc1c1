"""Exchanges vectors, gradients and decisions between the processes of one training run."""

# Every process encodes its own part of the global batch and computes the loss over the whole of it. The vectors of
# the other processes are constants there, so a process's gradient is that of the global loss on its own vectors,
# including as negatives of other processes' rows. Summed over the processes, the weights' gradients are exactly those
# of one process with the whole batch. A single process sends and copies nothing.

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, gather_object
from numpy.typing import NDArray
from torch import Tensor, nn

from training.errors import ConfigError

_Plain = TypeVar("_Plain")
_BUCKET_VALUES = 1 << 25


class ProcessGroup:
    """All processes of a run, as seen by one of them.

    Args:
        accelerator: set up from the environment of `torchrun`.

    Attributes:
        count: number of processes.
        number: of this process, from 0.
        first: whether this process writes files and reports.
        first_here: whether this process is the first of its machine.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.count = int(accelerator.num_processes)
        self.number = int(accelerator.process_index)
        self.first = bool(accelerator.is_main_process)
        self.first_here = bool(accelerator.is_local_main_process)

    def share(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of some numbers; the parts in order make the whole."""
        return np.array_split(numbers, self.count)[self.number]

    def wait(self) -> None:
        """Wait until every process has called this."""
        self._accelerator.wait_for_everyone()

    def leave(self) -> None:
        """End the group after every process has called this."""
        self.wait()
        if self.count > 1:
            self._accelerator.end_training()

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all processes, in their order.

        Args:
            rows: (n, …) of this process; n may differ between processes.

        Returns:
            (Σ n, …); a gradient flows into the rows of this process alone.
        """
        if self.count == 1:
            return rows
        sizes = self._accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
        padded = self._accelerator.pad_across_processes(rows.detach(), dim=0)
        all_rows = self._accelerator.gather(padded.contiguous()).split(len(padded))
        parts = [part[:size] for part, size in zip(all_rows, sizes, strict=True)]
        parts[self.number] = rows
        return torch.cat(parts)

    def padded(self, rows: Tensor, fill: int) -> Tensor:
        """(n, L) padded on the right to the longest L of any process."""
        if self.count == 1:
            return rows
        widest: Tensor = self._accelerator.pad_across_processes(rows, dim=1, pad_index=fill)
        return widest

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; a gradient that no process has stays None."""
        if self.count == 1:
            return
        trained = [weight for weight in weights if weight.requires_grad]
        has = torch.tensor([weight.grad is not None for weight in trained], device=trained[0].device)
        anywhere = self._accelerator.reduce(has.int(), reduction="sum").tolist()
        with_gradient = [weight for weight, count in zip(trained, anywhere, strict=True) if count]
        for bucket in _buckets(with_gradient):
            flat = torch.cat([_gradient(weight).flatten() for weight in bucket])
            summed = self._accelerator.reduce(flat, reduction="sum")
            for weight, part in zip(bucket, summed.split([weight.numel() for weight in bucket]), strict=True):
                weight.grad = part.view_as(weight).clone()

    def summed(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes, which must all give the same names in the same order."""
        if self.count == 1:
            return dict(values)
        own = torch.tensor(list(values.values()), dtype=torch.float32, device=self._accelerator.device)
        sums = self._accelerator.reduce(own, reduction="sum").tolist()
        return dict(zip(values, sums, strict=True))

    def agreed(self, value: _Plain) -> _Plain:
        """The value of process 0; a decision on a number that hardware may round differently is made once."""
        if self.count == 1:
            return value
        boxed = [value]
        broadcast_object_list(boxed)
        return boxed[0]

    def everyone(self, value: _Plain) -> list[_Plain]:
        """The values of all processes, in their order, in every process."""
        if self.count == 1:
            return [value]
        return list(gather_object([value]))

    def most(self, counts: Sequence[int]) -> list[int]:
        """For each count the largest one of any process."""
        return [max(same) for same in zip(*self.everyone(list(counts)), strict=True)]

    def sent(self, content: bytes, length: int) -> bytes:
        """The bytes of process 0 in every process.

        Args:
            content: read in process 0 alone.
            length: number of its bytes, the same in every process.
        """
        buffer = torch.zeros(length, dtype=torch.uint8)
        if self.first:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return bytes(broadcast(buffer.to(self._accelerator.device)).cpu().numpy().tobytes())


def launch_name() -> str | None:
    """Names the `torchrun` that started this process, the same after it has restarted it; None without one."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run_id is None else f"{run_id} {platform.node()} {os.getppid()}"


def check_restarts() -> None:
    """Refuse restarts over several machines that would read addresses of processes that have ended.

    `torchrun` keeps one store of addresses for all restarts unless it is switched off; processes that are started again
    may then wait for each other without end (pytorch/pytorch issue 135712).

    Raises:
        ConfigError: `torchrun` may restart processes on several machines, and its store is shared.
    """
    several = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if several and restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise ConfigError(
            "torchrun with --max-restarts above 0 on several machines needs --rdzv-backend c10d and the environment "
            "variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each of them, got a shared store; set both, or use "
            "--max-restarts 0 and --resume"
        )


def _gradient(weight: nn.Parameter) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _buckets(weights: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Consecutive weights of one dtype, at most 32 Mi values together unless a single one has more."""
    bucket: list[nn.Parameter] = []
    filled = 0
    for weight in weights:
        if bucket and (filled + weight.numel() > _BUCKET_VALUES or weight.dtype != bucket[0].dtype):
            yield bucket
            bucket, filled = [], 0
        bucket.append(weight)
        filled += weight.numel()
    if bucket:
        yield bucket
