"""Draws the axes and plots of both report pages: curves, stacked parts and histograms, as positions on 0 … 100."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_POINTS = 80
"""Most points of a line; a longer series is drawn as means of equally many values."""
_FEW_POINTS = 24
_LABEL_GAP = 9.0
"""Least distance of two labels beside a plot, as a share of its height."""
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_TICKS = 4

Point = tuple[int, float]
"""A step and a value."""


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


def stacked_parts(sizes: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parts of a whole, as adjacent intervals of 0 … 100."""
    total = sum(sizes.values()) or 1.0
    parts, start = [], 0.0
    for name, size in sizes.items():
        width = 100.0 * size / total
        parts.append({"name": name, "size": size, "share": size / total, "x": start, "width": width})
        start += width
    return parts


def rootogram(counts: Sequence[int], expected: float) -> dict[str, Any]:
    """A histogram with square-root heights (Tukey, 1972), so that small counts stay visible.

    Args:
        counts: of the bins, which divide 0 … 1 evenly.
        expected: count of a bin that is marked by a line.
    """
    width, highest = 100.0 / len(counts), math.sqrt(max(counts) or 1)
    bars = [
        {
            "x": width * position,
            "width": width,
            "height": 100.0 * math.sqrt(count) / highest,
            "suspicious": position >= len(counts) / 2,
        }
        for position, count in enumerate(counts)
    ]
    return {
        "axis": Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)),
        "bars": bars,
        "flat": 100.0 * math.sqrt(expected) / highest,
    }


@dataclass(frozen=True)
class CurveSpec:
    """The definition of one plot of curves.

    Attributes:
        title: of the plot.
        definition: meaning of the values in a line, and which direction is good.
        names: name of a series → label beside its line.
        around: values that the axis always covers, e.g. 0 where the sign matters.
        rule: a value with a meaning, drawn as a dashed line; None for no line.
        above: meaning of values above the rule.
        below: meaning of values below it.
        marks: values measured elsewhere, drawn as lines.
    """

    title: str
    definition: str
    names: Mapping[str, str]
    around: tuple[float, ...] = ()
    rule: float | None = None
    above: str = ""
    below: str = ""
    marks: tuple["ReferenceMark", ...] = ()


@dataclass(frozen=True)
class ReferenceMark:
    """A value measured elsewhere, beside the lines.

    Attributes:
        name: series whose colour it has.
        label: text for the reader.
        value: position on the vertical axis, in its unit.
    """

    name: str
    label: str
    value: float


@dataclass(frozen=True)
class CurveLine:
    """One line of a plot.

    Attributes:
        name: of the series; determines the colour.
        label: text for the reader.
        points: step and value, ascending.
        path: SVG path in a square of 0 … 100.
        dots: SVG path of its points if they are few, else empty.
        end: position of its last point, from the top.
        label_at: position of its label, from the top, apart from the other labels.
    """

    name: str
    label: str
    points: tuple[Point, ...]
    path: str
    dots: str
    end: float
    label_at: float

    @property
    def last(self) -> float:
        """Its last value."""
        return self.points[-1][1]


@dataclass(frozen=True)
class HoverStep:
    """A step whose values show under the pointer.

    Attributes:
        step: steps done.
        left: start of its strip, 0 … 100.
        width: of its strip.
        at: position of the step inside its strip, 0 … 100.
        values: label → value of the lines that have one here.
    """

    step: int
    left: float
    width: float
    at: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Curve:
    """A plot.

    Attributes:
        spec: its definition.
        lines: in the order of the spec's names, without empty series.
        steps: its horizontal axis.
        axis: its vertical axis.
        stops: the steps of its points.
        binned: most values that one point is the mean of.
    """

    spec: CurveSpec
    lines: tuple[CurveLine, ...]
    steps: Axis
    axis: Axis
    stops: tuple[HoverStep, ...] = field(repr=False)
    binned: int

    @property
    def rule_at(self) -> float | None:
        """Position of the rule, from the top."""
        return None if self.spec.rule is None else 100.0 - self.axis.at(self.spec.rule)

    @property
    def marks_at(self) -> tuple[float, ...]:
        """Positions of the marks, from the top."""
        return tuple(100.0 - self.axis.at(mark.value) for mark in self.spec.marks)

    @property
    def description(self) -> str:
        """The plot as a sentence, for screen readers."""
        lines = [
            f"{line.label} {_shown(line.points[0][1])} at step {line.points[0][0]}"
            + (f", {_shown(line.last)} at step {line.points[-1][0]}" if len(line.points) > 1 else "")
            for line in self.lines
        ]
        return f"{self.spec.title} over training steps: {'; '.join(lines)}."


def curve(spec: CurveSpec, series: Mapping[str, Sequence[Point]], last_step: int) -> Curve | None:
    """Draw series over steps.

    Args:
        spec: definition of the plot.
        series: name → points, ascending by step.
        last_step: end of the horizontal axis.

    Returns:
        The plot; None if every series of the spec is empty.
    """
    shown = {name: series[name] for name in spec.names if series.get(name)}
    binned = max(1, math.ceil(max(map(len, shown.values()), default=0) / MOST_POINTS))
    thinned = {name: _thinned(points, binned) for name, points in shown.items()}
    if not thinned:
        return None
    values = [value for points in thinned.values() for _, value in points]
    rule = () if spec.rule is None else (spec.rule,)
    axis = axis_over([*values, *spec.around, *rule, *(mark.value for mark in spec.marks)])
    end = float(max(last_step, 1))
    steps = axis_over([0.0, end], high=end)
    ends = {name: 100.0 - axis.at(points[-1][1]) for name, points in thinned.items()}
    labels = _apart(ends)
    lines = tuple(
        CurveLine(name, spec.names[name], points, *_paths(points, steps, axis), ends[name], labels[name])
        for name, points in thinned.items()
    )
    return Curve(spec, lines, steps, axis, _stops(lines, steps), binned)


def _thinned(points: Sequence[Point], together: int) -> tuple[Point, ...]:
    """Means of equally many points each, at the step of the last one."""
    groups = [points[start : start + together] for start in range(0, len(points), together)]
    return tuple((group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups)


def _paths(points: Sequence[Point], steps: Axis, axis: Axis) -> tuple[str, str]:
    """Paths of the line and of its points; a line of length 0 shows as a dot, as line ends are round."""
    positions = [f"{steps.at(step):g} {100.0 - axis.at(value):g}" for step, value in points]
    dots = "".join(f"M{position}h0" for position in positions) if len(positions) <= _FEW_POINTS else ""
    return "M" + "L".join(positions), dots


def _stops(lines: Sequence[CurveLine], steps: Axis) -> tuple[HoverStep, ...]:
    """Strips that meet half-way between two steps."""
    every = sorted({step for line in lines for step, _ in line.points})
    values = {line.label: dict(line.points) for line in lines}
    positions = [steps.at(step) for step in every]
    between = [(before + after) / 2 for before, after in itertools.pairwise(positions)]
    starts, ends = [0.0, *between], [*between, 100.0]
    return tuple(
        HoverStep(
            step,
            round(start, 3),
            round(end - start, 3),
            round(100.0 * (position - start) / (end - start or 1.0), 3),
            {label: by_step[step] for label, by_step in values.items() if step in by_step},
        )
        for step, position, start, end in zip(every, positions, starts, ends, strict=True)
    )


def _apart(ends: Mapping[str, float]) -> dict[str, float]:
    """Positions near these in the same order, at least the gap of labels apart."""
    order = sorted(ends, key=lambda name: ends[name])
    placed: dict[str, float] = {}
    lowest = -math.inf
    for name in order:
        lowest = max(ends[name], lowest + _LABEL_GAP)
        placed[name] = lowest
    highest = 100.0
    for name in reversed(order):
        highest = min(placed[name], highest)
        placed[name] = round(highest, 3)
        highest -= _LABEL_GAP
    return placed


def _shown(value: float) -> str:
    return f"{value:.4g}"
