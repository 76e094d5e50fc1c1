"""Computes the learning rate of both trainers: a linear warm-up times a decay to a floor."""

import math
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Decay = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class LearningRateSchedule:
    """The learning rate of every step as a share of its peak.

    Attributes:
        warmup_steps: steps of the linear warm-up, at least 1; step 0 gets 1 / warmup_steps.
        decay: half a cosine, a line, or none.
        decay_start: step from which the decay counts; its factor is 1 before.
        decay_steps: length of the decay, above 0; the floor is reached at its end.
        floor: share of the peak at the end.
    """

    warmup_steps: int
    decay: Decay
    decay_start: float
    decay_steps: int
    floor: float = 0.0

    def factor(self, step: int) -> float:
        """Share of the peak in a step.

        Args:
            step: steps done before this one, from 0.

        Returns:
            In 0 … 1.
        """
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        decayed = min(max(step - self.decay_start, 0.0), float(self.decay_steps))
        remaining = {
            "cosine": 0.5 * (1 + math.cos(math.pi * decayed / self.decay_steps)),
            "linear": 1 - decayed / self.decay_steps,
            "constant": 1.0,
        }[self.decay]
        return warmup * (self.floor + (1 - self.floor) * remaining)

    def attach(self, optimizer: Optimizer, *, steps_done: int = 0) -> LambdaLR:
        """Set the rates of an optimizer's next step; the scheduler's ``step`` sets those of the step after.

        Nothing of a scheduler has to be saved: attached with the same ``steps_done``, it continues exactly.

        Args:
            optimizer: its groups have their peak rates.
            steps_done: steps before the next one.
        """
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return LambdaLR(optimizer, self.factor, last_epoch=steps_done - 1)
