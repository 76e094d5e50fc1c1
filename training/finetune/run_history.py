"""Reads the log of a training run for reports."""

# A log may be read while it is written, after a kill, or after an edit: values that are not numbers, steps that do
# not ascend and lines that are not JSON are skipped.

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.finetune.validation import METRIC

_STEP = "step"
_LARGEST = 1e15
"""Larger numbers are not measurements, and sums of their squares would overflow."""
_LATE = 0.25
_FEWEST_LATE = 3

Point = tuple[int, float]
"""Steps done and a value."""


@dataclass(frozen=True)
class RunHistory:
    """The lines of a log in the order of their steps.

    Attributes:
        lines: name → value of each line, including ``step``, which ascends strictly.
    """

    lines: tuple[Mapping[str, float], ...]

    @classmethod
    def read(cls, path: Path) -> "RunHistory":
        """Read ``log.jsonl``; a missing file gives an empty history."""
        try:
            texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            texts = []
        lines: list[Mapping[str, float]] = []
        for text in texts:
            line = _numbers(text)
            step = line.get(_STEP, 0.0)
            if step > (lines[-1][_STEP] if lines else 0) and step == int(step):
                lines.append(line)
        return cls(tuple(lines))

    @property
    def steps(self) -> int:
        """Steps done according to the log."""
        return int(self.lines[-1][_STEP]) if self.lines else 0

    @property
    def seconds(self) -> float | None:
        """Time in training steps; None if not logged."""
        found = self.series("seconds")
        return found[-1][1] if found else None

    @property
    def pairs(self) -> int | None:
        """Pairs read in all, repeated pairs counted each time; None if not logged."""
        before, total = 0, 0.0
        for line in self.lines:
            if "pairs" not in line:
                return None
            total += line["pairs"] * (line[_STEP] - before)
            before = int(line[_STEP])
        return round(total) if self.lines else None

    def series(self, name: str) -> tuple[Point, ...]:
        """Every value of a name with its step."""
        return tuple((int(line[_STEP]), line[name]) for line in self.lines if name in line)

    def late(self, name: str) -> float | None:
        """Mean over the last quarter of the lines with this name, at least three; None without any.

        A single line covers one batch or a few, which is too noisy.
        """
        values = [value for _, value in self.series(name)]
        if not values:
            return None
        last = values[-max(_FEWEST_LATE, math.ceil(_LATE * len(values))) :]
        return math.fsum(last) / len(last)

    def kept_step(self, *, patience: int) -> int | None:
        """The validated step whose weights the run keeps.

        Args:
            patience: ``train.patience``; 0 keeps the last weights, any other value those of the first best validation.

        Returns:
            A step that was validated; None if none was.
        """
        validated = self.series(METRIC)
        if not validated:
            return None
        return max(validated, key=lambda point: (point[1], -point[0]))[0] if patience else validated[-1][0]

    def at(self, step: int, name: str) -> float | None:
        """The value of a name at a step; None if there is none."""
        return next((line.get(name) for line in self.lines if line[_STEP] == step), None)


def _numbers(text: str) -> dict[str, float]:
    """The finite numbers of one line."""
    try:
        line: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(line, dict):
        return {}
    return {name: float(value) for name, value in line.items() if _is_measurement(value)}


def _is_measurement(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
