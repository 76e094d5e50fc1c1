"""Computes the range and ticks of a plot axis, and the positions of values on it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_TICKS = 4


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low: value at its start.
        high: value at its end, above ``low``.
        ticks: values to label, ascending.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """Position of a value, 0 (``low``) … 100 (``high``); values outside are clipped to the ends."""
        position = 100.0 * (value - self.low) / (self.high - self.low)
        return round(min(max(position, 0.0), 100.0), 3)


def axis_over(values: Sequence[float], *, high: float | None = None) -> Axis:
    """An axis with about four round steps that covers all values.

    Args:
        values: finite numbers, at least one.
        high: end of the axis, above the least value; None for the next round number.
    """
    least, most = min(values), max(values) if high is None else high
    step = _round_step(most - least or abs(most) or 1.0)
    low = math.floor(least / step + 1e-9) * step
    end = max(math.ceil(most / step - 1e-9) * step, low + step) if high is None else high
    count = math.floor((end - low) / step + 1e-9)
    return Axis(low, end, tuple(round(low + number * step, 12) for number in range(count + 1)))


def _round_step(width: float) -> float:
    raw = width / _TICKS
    unit = 10.0 ** math.floor(math.log10(raw))
    return unit * next(step for step in _STEPS if raw <= step * unit * (1 + 1e-9))
