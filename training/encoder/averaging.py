"""Averages a model's weights exponentially over the steps; the average is what is evaluated and stored."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

_STEPS = "steps taken in"  # a key in the file


class WeightAverage:
    """The average of a model's weights over about ``1 / (1 − decay)`` steps (Polyak and Juditsky, 1992).

    Early on it averages over all steps so far, so the initial weights have no share.

    Args:
        model: its trained weights are averaged, starting with their current values.
        decay: share of the old average in a step, 0 ≤ decay < 1; 0 copies the weights.

    Attributes:
        steps: steps averaged so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay, self.steps = model, decay, 0
        self._average = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step to the average."""
        self.steps += 1
        share = max(1 - self._decay, 1 / self.steps)
        for name, weight in self._model.named_parameters():
            self._average[name].lerp_(weight, share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the average; a second call undoes the first."""
        for name, weight in self._model.named_parameters():
            current = weight.detach().clone()
            weight.copy_(self._average[name])
            self._average[name] = current

    def save(self, path: Path) -> None:
        """Write the average to a temporary file and rename it."""
        partial = path.with_name(f"{path.name}.part")
        save_file(self._average | {_STEPS: torch.tensor(self.steps)}, partial)
        partial.replace(path)

    def load(self, path: Path) -> bool:
        """Read the file of :meth:`save`; returns False and changes nothing if it is missing or damaged."""
        try:
            average = load_file(path)
            self.steps = int(average.pop(_STEPS))
        except (OSError, KeyError, ValueError, SafetensorError):
            return False
        self._average = average
        return True
