"""Renders ``report.html``: the report of a bundle as one self-contained page.

The page has no scripts and loads nothing. Ids and titles are untrusted, so the template escapes every value, and the
page's content security policy forbids scripts and requests as a second defence.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from index.bound_check import BoundCheck
from index.bundle.gate import decisive_checks
from index.bundle.manifest import GateRecord
from index.bundle.quality import SYSTEMS
from index.bundle.unused_modalities import REMEDY, unused_modalities
from index.evaluation.plots import Axis, axis_over, rootogram, stacked_parts
from index.items.modality_status import ModalityStatus

_THOUSAND = 1000.0
_TEMPLATE = "report.html"
_LOWEST_RECALL_SHOWN = 0.9
_COMMON_SHARE = 0.5  # above this share, disagreement is the rule and no item stands out


@cache
def page_environment(*packages: str, **filters: Callable[..., str]) -> Environment:
    """The template environment of a report page, the same for the same arguments: a process compiles a template once.

    Args:
        packages: packages whose templates are searched, in this order.
        filters: filters of the templates by name.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates") for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment


def render_page(report: Mapping[str, Any], gate: GateRecord) -> str:
    """Render the page as HTML.

    Args:
        report: the content of ``report.json``.
        gate: the bounds and figures of the bundle.
    """
    checks = gate.checks(report["index"]["recall"])
    missed = [check for check in checks if not check.passed]
    environment = page_environment("index", bytes=as_bytes, share=as_share, count=as_count, ms=as_ms)
    return environment.get_template(_TEMPLATE).render(
        report=report,
        checks=len(checks),
        rows=[_row(check, represents) for check, represents in decisive_checks(checks)],
        missed=len(missed),
        unused=[str(modality) for modality in unused_modalities(gate.figures)],
        remedy=REMEDY,
        recall=_recall(report, gate),
        latency=_latency(report),
        memory=stacked_parts({name: size for name, size in report["memory"].items() if name != "resident"}),
        slot_shares=stacked_parts(report["answers"]["slot_shares"]),
        lists=report.get("lists"),
        refit=report.get("refit"),
        missing=[
            {"slot": slot, "parts": stacked_parts({state: counts[state] for state in _STATES}), "found": counts}
            for slot, counts in report["missing"].items()
        ],
        quality=None if report["quality"] is None else _quality(report["quality"], gate),
        agreement=None if report["disagreement"] is None else _agreement(report["disagreement"]),
    )


_STATES = tuple(state.name.lower() for state in ModalityStatus)


def label(figure: str) -> str:
    """A figure's name in words."""
    family, _, kind = figure.partition(".")
    words = {
        "recall": "Recall",
        "served_quality": "Quality as served",
        "text_quality": "Quality of text alone",
        "image_quality": "Quality of image alone",
        "coverage": "Coverage",
        "slot_share": "Share of the score",
        "missing": "Items without",
        "latency_p99_ms": "Latency, p99",
        "near_duplicates": "Near-duplicate pictures",
        "disagreement": "Text and picture disagree",
    }[family]
    if not kind:
        return words
    return f"{words} {kind}" if family == "missing" else f"{words}, {kind}"


def as_figure(figure: str, value: float | None) -> str:
    """A figure's value with its unit."""
    family = figure.partition(".")[0]
    if value is None:
        return "not measured"
    if family == "recall":
        return f"{value:.4f}"
    if family.endswith("_quality"):
        return f"{value:.2f} ×"
    return as_ms(value) if family == "latency_p99_ms" else as_share(value)


def as_share(value: float) -> str:
    """A share, 0 … 1, in per cent."""
    return f"{100 * value:.3g} %" if value < 1 else "100 %"


def as_count(value: int) -> str:
    """A whole number with a thousands separator."""
    return f"{value:,}"


def as_ms(value: float) -> str:
    """Milliseconds with their unit."""
    return f"{value:.3g} ms"


def as_bytes(size: float) -> str:
    """Bytes in a decimal unit."""
    for unit in ("bytes", "kB", "MB"):
        if size < _THOUSAND:
            return f"{size:.3g} {unit}"
        size /= _THOUSAND
    return f"{size:,.3g} GB"


def _row(check: BoundCheck, represents: int) -> dict[str, Any]:
    kind = check.figure.partition(".")[2]
    several = {
        "label": f"{label(check.bound)}, {represents} kinds of query",
        "remark": f"{'lowest' if check.at_least else 'highest'}: {kind}",
    }
    row = {
        "figure": check.figure,
        "label": label(check.figure),
        "remark": "",
        "value": as_figure(check.figure, check.value),
        "limit": ("≥ " if check.at_least else "≤ ") + as_figure(check.figure, check.limit),
        "passed": check.passed,
    }
    return row | (several if represents > 1 else {})


def _recall(report: Mapping[str, Any], gate: GateRecord) -> dict[str, Any]:
    recall, bound = report["index"]["recall"], gate.bounds.get("recall")
    axis = axis_over([*recall.values(), *([] if bound is None else [bound]), _LOWEST_RECALL_SHOWN], high=1.0)
    rows = [
        {"name": name, "value": value, "at": axis.at(value), "low": bound is not None and value < bound}
        for name, value in recall.items()
    ]
    return {"axis": axis, "rows": rows, "bound": bound, "bound_at": None if bound is None else axis.at(bound)}


def _latency(report: Mapping[str, Any]) -> dict[str, Any]:
    times: Mapping[str, Mapping[str, float]] = report["search_ms"]
    axis = axis_over([0.0, *(time["p99"] for time in times.values())])
    rows = [
        {"name": name, **time, "at": {part: axis.at(value) for part, value in time.items()}}
        for name, time in times.items()
    ]
    return {"axis": axis, "rows": rows}


def _quality(quality: Mapping[str, Any], gate: GateRecord) -> dict[str, Any]:
    bounds = {name: gate.bounds.get(figure) for figure, name in SYSTEMS.items()}
    highs = [system["high"] or system["ratio"] or 0.0 for system in quality["systems"]]
    axis = axis_over([0.0, 1.0, *highs, *(bound for bound in bounds.values() if bound is not None)])
    return {"axis": axis, "one": axis.at(1.0), "rows": [_system(row, bounds, axis) for row in quality["systems"]]}


def _system(system: Mapping[str, Any], bounds: Mapping[str, float | None], axis: Axis) -> dict[str, Any]:
    bound = bounds.get(system["name"])
    placed = {part: None if system[part] is None else axis.at(system[part]) for part in ("ratio", "low", "high")}
    return {
        **system,
        "served": system["name"] == SYSTEMS["served_quality"],
        "at": placed,
        "bound": bound,
        "bound_at": None if bound is None else axis.at(bound),
    }


def _agreement(disagreement: Mapping[str, Any]) -> dict[str, Any]:
    counts: Sequence[int] = disagreement["p"]
    unrelated = sum(counts) * disagreement["share"] / len(counts)
    return rootogram(counts, unrelated) | {"alarming": disagreement["share"] <= _COMMON_SHARE}
