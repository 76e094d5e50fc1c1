"""Computes ratios and differences of the turns of `bench.events.cost`, and writes them as tables."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from bench.markdown_table import markdown_table

RATES: Final = {"single": "single_events_s", "bulk": "bulk_events_s"}
"""Figures of which ratios are given."""
LATENCIES: Final = {"p50": "recommend_p50_ms", "p99": "recommend_p99_ms"}
"""Figures of which differences are given."""
ECHO: Final = "echo"

Turns = Mapping[str, Sequence[Mapping[str, Any]]]
Spread = tuple[float, float, float]


def summary(turns: Turns, memory: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios and differences to the first contender, then the medians of all figures.

    Args:
        turns: of each contender by round; the first one is what the others are compared with.
        memory: of answers.

    Returns:
        ``ratios`` of rates and ``added_ms`` of latencies as median, least and largest over the rounds.
    """
    first, *others = (name for name in turns if name != ECHO)
    return {
        "compared_with": first,
        "ratios": {
            kind: {name: _spread(a / b for a, b in _pairs(turns, name, first, figure)) for name in others}
            for kind, figure in RATES.items()
        },
        "added_ms": {
            kind: {name: _spread(a - b for a, b in _pairs(turns, name, first, figure)) for name in others}
            for kind, figure in LATENCIES.items()
        },
        "memory": dict(memory),
        "medians": {name: _medians(some) for name, some in turns.items()},
    }


def tables(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table in docs/events.md.

    Args:
        found: from :func:`summary`.
    """
    medians, first = found["medians"], found["compared_with"]
    head = ("service", "single events", "bulks", "events/s, single", "in bulks", "p50 of /recommend", "p99 added")
    rows = []
    for name, figures in medians.items():
        if name == ECHO:
            continue
        cells = [name, *(["1", "1"] if name == first else [_ratio(found["ratios"][kind][name]) for kind in RATES])]
        cells += [f"{figures[figure]:,.0f}" for figure in RATES.values()]
        p50 = f"{figures[LATENCIES['p50']]:.2f} ms"
        if name == first:
            rows.append([*cells, p50, ""])
            continue
        added = {kind: found["added_ms"][kind][name] for kind in LATENCIES}
        rows.append([*cells, f"{p50} ({_difference(added['p50'])})", _difference(added["p99"])])
    yield from markdown_table(head, rows)
    yield f"{found['memory']['answers']:,} answers of 20 items: {found['memory']['bytes_an_answer']:.0f} bytes each."


def _pairs(turns: Turns, name: str, other: str, figure: str) -> Iterator[tuple[float, float]]:
    """A figure of two contenders in each round."""
    for one, compared in zip(turns[name], turns[other], strict=True):
        yield float(one[figure]), float(compared[figure])


def _spread(values: Iterator[float]) -> Spread:
    found = list(values)
    return round(statistics.median(found), 3), round(min(found), 3), round(max(found), 3)


def _medians(some: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the figures that all turns have; a result that no event had is no figure."""
    names = [name for name in some[0] if all(isinstance(turn.get(name), int | float) for turn in some)]
    return {name: statistics.median(turn[name] for turn in some) for name in names}


def _ratio(spread: Spread) -> str:
    return "{:.2f} ({:.2f} … {:.2f})".format(*spread)


def _difference(spread: Spread) -> str:
    return "{:+.2f} ms, {:+.2f} … {:+.2f}".format(*spread)
