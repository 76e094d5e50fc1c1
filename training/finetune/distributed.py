"""ProcessGroup: the processes of one training run, and what crosses between them.

Every rank encodes its own part of the global batch and takes the loss over the whole of it. The vectors of the other
ranks are constants there, so a rank's gradient is that of the global loss on its own vectors, negatives of other ranks'
rows included; summed over the ranks, the weights' gradients are exactly those of one process with the whole batch.
With a single rank nothing is sent and nothing is copied.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn

_Plain = TypeVar("_Plain")
_BUCKET_VALUES = 1 << 25


class ProcessGroup:
    """All processes of a run, seen from one of them.

    Args:
        accelerator: set up from the environment, as `torchrun` leaves it.

    Attributes:
        count: number of ranks.
        number: this one's, from 0.
        first: whether this is the one that writes files and reports.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.count = int(accelerator.num_processes)
        self.number = int(accelerator.process_index)
        self.first = bool(accelerator.is_main_process)

    def share(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """This rank's part of some numbers; the parts one after the other are the whole."""
        return np.array_split(numbers, self.count)[self.number]

    def wait(self) -> None:
        """Return once every rank is here."""
        self._accelerator.wait_for_everyone()

    def leave(self) -> None:
        """End the group, once every rank is here."""
        self.wait()
        if self.count > 1:
            self._accelerator.end_training()

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, in their order.

        Args:
            rows: (n, …) of this rank; n may differ from rank to rank.

        Returns:
            (Σ n, …); a gradient flows into this rank's own rows alone.
        """
        if self.count == 1:
            return rows
        sizes = self._accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
        padded = self._accelerator.pad_across_processes(rows.detach(), dim=0)
        everyone = self._accelerator.gather(padded.contiguous()).split(len(padded))
        parts = [part[:size] for part, size in zip(everyone, sizes, strict=True)]
        parts[self.number] = rows
        return torch.cat(parts)

    def padded(self, rows: Tensor, fill: int) -> Tensor:
        """(n, L) filled up on the right to the longest L of any rank."""
        if self.count == 1:
            return rows
        widest: Tensor = self._accelerator.pad_across_processes(rows, dim=1, pad_index=fill)
        return widest

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the ranks; one that no rank has stays None."""
        if self.count == 1:
            return
        trained = [weight for weight in weights if weight.requires_grad]
        has = torch.tensor([weight.grad is not None for weight in trained], device=trained[0].device)
        anywhere = self._accelerator.reduce(has.int(), reduction="sum").tolist()
        felt = [weight for weight, count in zip(trained, anywhere, strict=True) if count]
        for bucket in _buckets(felt):
            flat = torch.cat([_gradient(weight).flatten() for weight in bucket])
            summed = self._accelerator.reduce(flat, reduction="sum")
            for weight, part in zip(bucket, summed.split([weight.numel() for weight in bucket]), strict=True):
                weight.grad = part.view_as(weight).clone()

    def summed(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the ranks, which must all name the same values in the same order."""
        if self.count == 1:
            return dict(values)
        own = torch.tensor(list(values.values()), dtype=torch.float32, device=self._accelerator.device)
        found = self._accelerator.reduce(own, reduction="sum").tolist()
        return dict(zip(values, found, strict=True))

    def agreed(self, value: _Plain) -> _Plain:
        """What rank 0 has; a decision on a number that other hardware may round differently is taken once."""
        if self.count == 1:
            return value
        boxed = [value]
        broadcast_object_list(boxed)
        return boxed[0]


def _gradient(weight: nn.Parameter) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _buckets(weights: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbours of one dtype, at most 32 Mi values together unless one alone has more."""
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
