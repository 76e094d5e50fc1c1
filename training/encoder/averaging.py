"""Exponential averages of weights: what is evaluated and kept while the optimiser moves on.

After Polyak and Juditsky, SIAM J. Control Optim. 1992.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

_STEPS = "steps taken in"


class WeightAverage:
    """The average of a model's weights over about ``1 / (1 − decay)`` steps.

    Early on it averages over all steps so far, so the start is forgotten at once.

    Args:
        model: whose trained weights are averaged, from where they are now.
        decay: share of the average that stays in a step, 0 ≤ decay < 1; 0 follows the weights.

    Attributes:
        steps: steps taken in so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay, self.steps = model, decay, 0
        self._average = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        share = max(1 - self._decay, 1 / self.steps)
        for name, weight in self._model.named_parameters():
            self._average[name].lerp_(weight, share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average; twice is as before."""
        for name, weight in self._model.named_parameters():
            held = weight.detach().clone()
            weight.copy_(self._average[name])
            self._average[name] = held

    def save(self, path: Path) -> None:
        """Write the average, aside first."""
        partial = path.with_name(f"{path.name}.part")
        save_file(self._average | {_STEPS: torch.tensor(self.steps)}, partial)
        partial.replace(path)

    def load(self, path: Path) -> bool:
        """Read what :meth:`save` wrote; False, and nothing is changed, if the file is missing or damaged."""
        try:
            held = load_file(path)
            self.steps = int(held.pop(_STEPS))
        except (OSError, KeyError, ValueError, SafetensorError):
            return False
        self._average = held
        return True
