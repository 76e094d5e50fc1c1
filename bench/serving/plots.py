"""Draws the plots of the bench pages as small SVG files that are equal for equal figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, OTHERS, REFERENCE = "#c2410c", "#64748b", "#cbd5e1"
_LINES = ("#1d4ed8", "#0f766e", "#7e22ce", "#a16207", "#475569", "#be185d", "#4d7c0f")
_TICKS_MS = [mantissa * 10**power for power in range(-1, 4) for mantissa in (1, 2, 5)]

_STYLE = {
    "svg.hashsalt": "vlm2rec",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


def throughput(path: Path, rates: Mapping[str, tuple[float, float, float]], reference: str, ours: str) -> None:
    """Bars of closed-loop requests a second.

    Args:
        path: of the SVG file.
        rates: median, smallest and largest by contender, drawn from the top.
        reference: a contender drawn pale, as it does no work.
        ours: the one drawn in colour.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(0.5 + 0.32 * len(rates))
        for place, (name, (median, low, high)) in enumerate(reversed(rates.items())):
            colour = {ours: OURS, reference: REFERENCE}.get(name, OTHERS)
            axes.barh(place, median, color=colour, xerr=[[median - low], [high - median]], error_kw={"lw": 0.8})
            axes.annotate(f"{median:,.0f}", (high, place), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rates)), list(reversed(rates)))
        axes.set_xlabel("whole answers a second, closed loop (line: lowest and highest round)")
        _save(figure, path)


def latency(
    path: Path, series: Mapping[str, Sequence[tuple[float, float]]], *, over: str, ours: str, goal_ms: float
) -> None:
    """Lines of p99 (or whatever the caller names) against a rate or a size, both axes logarithmic.

    Args:
        path: of the SVG file.
        series: (x, milliseconds) by name.
        over: what x is.
        ours: the series drawn in colour.
        goal_ms: drawn as a dashed line.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(3.2)
        others = [name for name in series if not name.startswith(ours)]
        for number, (name, points) in enumerate(series.items()):
            mine = name not in others
            colour = OURS if mine else _LINES[others.index(name) % len(_LINES)]
            style = ("-", "--", ":")[number % 3] if mine and len(others) == 0 else "-"
            axes.plot(
                *zip(*points, strict=True), style, color=colour, lw=2.2 if mine else 1, marker="o", ms=3, label=name
            )
        axes.axhline(goal_ms, color="black", lw=0.7, ls=(0, (2, 3)))
        axes.set(xscale="log", yscale="log", xlabel=over, ylabel="ms")
        ticks = sorted({x for points in series.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
        low, high = axes.get_ylim()
        axes.set_yticks(shown := [tick for tick in _TICKS_MS if low <= tick <= high], [f"{tick:g}" for tick in shown])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        _save(figure, path)


def timelines(
    path: Path,
    moments: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    over: str,
    marks: Sequence[float],
) -> None:
    """Figures of one run over its time, one below the other, each from zero.

    Args:
        path: of the SVG file.
        moments: when.
        series: as many values by name; None leaves a gap.
        over: what the moments are.
        marks: moments drawn as dashed lines.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 1.1 * len(series)))
        rows = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (name, values) in zip(rows, series.items(), strict=True):
            axes.plot(moments, [float("nan") if value is None else value for value in values], color=OURS, lw=1.2)
            axes.set_ylabel(name, fontsize=7)
            axes.set_ylim(bottom=0)
            for mark in marks:
                axes.axvline(mark, color="black", lw=0.5, ls=(0, (2, 3)))
        rows[-1].set_xlabel(over)
        _save(figure, path)


def readings(
    path: Path, rows: Mapping[str, Mapping[str, float]], *, names: Sequence[str], over: str, reference: float
) -> None:
    """Bars of several readings of each row, drawn from the top.

    Args:
        path: of the SVG file.
        rows: reading → value, by row; a reading may be missing.
        names: of the readings, in the order of their bars.
        over: what the values are.
        reference: drawn as a dashed line.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _canvas(0.8 + 0.2 * len(names) * len(rows))
        width = 0.8 / len(names)
        for number, (name, colour) in enumerate(zip(names, (OURS, *_LINES), strict=False)):
            values = [of.get(name, 0.0) for of in reversed(rows.values())]
            places = [place + 0.4 - (number + 0.5) * width for place in range(len(rows))]
            axes.barh(places, values, width * 0.9, color=colour, label=name)
        axes.axvline(reference, color="black", lw=0.7, ls=(0, (2, 3)))
        axes.set_yticks(range(len(rows)), list(reversed(rows)))
        axes.set_xlabel(over)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        _save(figure, path)


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.0, height))
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
