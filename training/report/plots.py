"""Curves over training steps: where their points lie, what their axes name, what a reader without eyes is told.

Places are on 0 … 100 from left to right and from top to bottom, so that a page can stretch a plot to any size. A long
log is drawn as the means of equally many lines each.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from index.evaluation.axis import Axis, axis_over
from training.finetune.run_history import Point, RunHistory

MOST_POINTS = 80
_FEW_POINTS = 24
_LABEL_GAP = 9.0
"""Least distance of two labels beside a plot, as a share of its height."""


@dataclass(frozen=True)
class Measure:
    """What one plot shows.

    Attributes:
        title: of the plot.
        definition: what is measured, in a line, and which direction is good.
        names: name in the log → label beside its line.
        around: numbers that the axis holds whatever was measured, e.g. 0 where the sign matters.
        rule: a number with a meaning, drawn as a line; None for no line.
        above: what it means to lie above the rule.
        below: what it means to lie below it.
        marks: further numbers to draw, what was measured elsewhere.
    """

    title: str
    definition: str
    names: Mapping[str, str]
    around: tuple[float, ...] = ()
    rule: float | None = None
    above: str = ""
    below: str = ""
    marks: tuple["Mark", ...] = ()


@dataclass(frozen=True)
class Mark:
    """A number beside the lines.

    Attributes:
        name: whose colour it has.
        label: for people.
        value: on the vertical axis.
    """

    name: str
    label: str
    value: float


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        name: in the log; says which colour it has.
        label: for people.
        points: step and value, ascending.
        path: of an SVG, on 0 … 100 twice.
        dots: of an SVG, its points where they are few.
        end: place of its last point, from the top.
        label_at: place of its label, from the top, away from the other labels.
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
class Stop:
    """A step that a reader can point at.

    Attributes:
        step: steps done.
        left: where its strip begins, 0 … 100.
        width: of its strip.
        at: place of the step itself inside its strip, 0 … 100.
        values: label → value, of the lines that have one here.
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
        measure: what it shows.
        lines: in the order of the measure's names, without those that were not logged.
        steps: its horizontal axis.
        axis: its vertical axis.
        stops: the steps of its points.
        binned: lines of the log that one point stands for, at most.
    """

    measure: Measure
    lines: tuple[Line, ...]
    steps: Axis
    axis: Axis
    stops: tuple[Stop, ...] = field(repr=False)
    binned: int

    @property
    def rule_at(self) -> float | None:
        """Place of the rule, from the top."""
        return None if self.measure.rule is None else 100.0 - self.axis.at(self.measure.rule)

    @property
    def marks_at(self) -> tuple[float, ...]:
        """Places of the marks, from the top."""
        return tuple(100.0 - self.axis.at(mark.value) for mark in self.measure.marks)

    @property
    def said(self) -> str:
        """The plot in words."""
        told = [
            f"{line.label} {_shown(line.points[0][1])} at step {line.points[0][0]}"
            + (f", {_shown(line.last)} at step {line.points[-1][0]}" if len(line.points) > 1 else "")
            for line in self.lines
        ]
        return f"{self.measure.title} over training steps: {'; '.join(told)}."


def curve(history: RunHistory, measure: Measure) -> Curve | None:
    """Draw one measure.

    Args:
        history: the log.
        measure: what to draw.

    Returns:
        The plot; None if nothing of it was logged.
    """
    logged = {name: history.series(name) for name in measure.names}
    binned = max(1, math.ceil(max(map(len, logged.values()), default=0) / MOST_POINTS))
    series = {name: _thinned(points, binned) for name, points in logged.items() if points}
    if not series:
        return None
    values = [value for points in series.values() for _, value in points]
    rule = () if measure.rule is None else (measure.rule,)
    axis = axis_over([*values, *measure.around, *rule, *(mark.value for mark in measure.marks)])
    steps = axis_over([0.0, float(max(history.steps, 1))], high=float(max(history.steps, 1)))
    ends = {name: 100.0 - axis.at(points[-1][1]) for name, points in series.items()}
    labels = _apart(ends)
    lines = tuple(
        Line(name, measure.names[name], points, *_paths(points, steps, axis), ends[name], labels[name])
        for name, points in series.items()
    )
    return Curve(measure, lines, steps, axis, _stops(lines, steps), binned)


def _thinned(points: Sequence[Point], together: int) -> tuple[Point, ...]:
    """Means of so many points each, at the last one's step."""
    groups = [points[start : start + together] for start in range(0, len(points), together)]
    return tuple((group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups)


def _paths(points: Sequence[Point], steps: Axis, axis: Axis) -> tuple[str, str]:
    """The line, and its points; a line of no length is drawn as a dot, as line ends are round."""
    places = [f"{steps.at(step):g} {100.0 - axis.at(value):g}" for step, value in points]
    dots = "".join(f"M{place}h0" for place in places) if len(places) <= _FEW_POINTS else ""
    return "M" + "L".join(places), dots


def _stops(lines: Sequence[Line], steps: Axis) -> tuple[Stop, ...]:
    """Strips that meet half-way between two steps."""
    every = sorted({step for line in lines for step, _ in line.points})
    values = {line.label: dict(line.points) for line in lines}
    places = [steps.at(step) for step in every]
    between = [(before + after) / 2 for before, after in itertools.pairwise(places)]
    starts, ends = [0.0, *between], [*between, 100.0]
    return tuple(
        Stop(
            step,
            round(start, 3),
            round(end - start, 3),
            round(100.0 * (place - start) / (end - start or 1.0), 3),
            {label: found[step] for label, found in values.items() if step in found},
        )
        for step, place, start, end in zip(every, places, starts, ends, strict=True)
    )


def _apart(ends: Mapping[str, float]) -> dict[str, float]:
    """Places near these, none nearer to another than the gap of labels, in the same order."""
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
