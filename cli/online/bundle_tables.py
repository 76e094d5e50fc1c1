"""Prints the tables of `vlm2rec index …`: a bundle's figures, its bounds, and the bundles of a registry."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from index.bound_check import BoundCheck
    from index.bundle.manifest import Manifest
    from index.bundle.registry import BundleInfo

_WIDE = 1000

_out = Console(soft_wrap=True, highlight=False)


def show_bundle(bundle: Path) -> None:
    """Print the figures of a bundle.

    Args:
        bundle: its directory.

    Raises:
        BundleNotFound: there is no such directory.
        BundleInvalid: manifest or report are missing, altered or of another form.
    """
    from index.bundle.manifest import PAGE_FILE, REPORT_FILE
    from index.bundle.unused_modalities import REMEDY
    from index.errors import BundleInvalid
    from index.evaluation.report_file import read_report

    manifest, report = read_report(bundle)
    try:
        recall, lines = _recall_table(manifest, report["search_ms"]), "\n".join(_lines(report))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleInvalid(
            f"{bundle / REPORT_FILE}: not a report that this version reads ({error!r}); build the bundle again"
        ) from error
    _out.print(
        f"{manifest.index.kind}: {manifest.index.reason}; {manifest.indexed} of {manifest.items} items indexed",
        markup=False,
    )
    _out.print(recall)
    _out.print(lines, markup=False)
    if manifest.checks:
        _out.print(check_table(manifest.checks))
    for unused in manifest.unused_modalities:
        _out.print(f"warning: {unused}; {REMEDY}", markup=False, style="yellow")
    _out.print(f"{_verdict(manifest)}; as a page: {bundle / PAGE_FILE}", markup=False)


def _recall_table(manifest: "Manifest", search_ms: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("queries")
    for name in (f"recall@{manifest.index.recall_k}", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right")
    missed = {check.figure for check in manifest.shortfalls}
    for kind, times in search_ms.items():
        value = manifest.index.recall[kind]
        style = "red" if f"recall.{kind}" in missed else None
        table.add_row(escape(kind), f"{value:.4f}", f"{times['p50']:.2f}", f"{times['p99']:.2f}", style=style)
    return table


def _lines(report: Mapping[str, Any]) -> Iterable[str]:
    answers, total = report["answers"], report["items"]["total"]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in answers["slot_shares"].items())
    yield (
        f"answers: {answers['distinct_items'] / total:.1%} of the catalogue in {answers['queries']} answers; "
        f"score from {shares}"
    )
    if report.get("lists"):
        parts = (
            f"{part['name']} ({part['slot']}) weight {part['weight']:.3g}, {part['neighbours']} neighbours, "
            f"{part['share']:.1%} of the score"
            for part in report["lists"]["lists"]
        )
        yield f"item-to-item lists: {'; '.join(parts)}"
    sizes = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in report["memory"].items())
    yield f"memory in MB: {sizes}"
    for slot, found in report["missing"].items():
        if found["present"] < total:
            yield (
                f"without {slot}: {found['absent']} not in the catalogue, {found['unreadable']} unreadable, "
                f"{found.get('not_found', 0)} not found, {found['cold']} with too little history"
                f"{_imputed(found)}"
            )
    if report["near_duplicates"] is not None:
        yield f"near-duplicate pictures: {report['near_duplicates']['share']:.1%} of the pictured items"
    if report["disagreement"] is not None:
        yield f"text and picture disagree: {report['disagreement']['share']:.1%} of the items that have both"
    if report.get("refit"):
        pair = report["refit"]
        yield (
            f"the encoder {pair['served']} serves, refitted on every event; it was not itself measured, accuracy "
            f"figures are of {pair['measured']}"
        )
    if report["quality"] is not None:
        named = {system["name"]: system for system in report["quality"]["systems"]}
        ratios = (f"{name} {_ratio(system)}" for name, system in named.items() if name != "popularity")
        yield f"{report['quality']['metric']} over popularity, {report['quality']['targets']}: {', '.join(ratios)}"


def _imputed(found: Mapping[str, int]) -> str:
    """How many behaviour vectors are imputed; empty where none is."""
    return f", {found['imputed']} of these imputed" if found.get("imputed") else ""


def _ratio(system: Mapping[str, float | None]) -> str:
    ratio, low, high = system["ratio"], system["low"], system["high"]
    if ratio is None:
        return "not defined"
    return f"{ratio:.2f}" if low is None or high is None else f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def _verdict(manifest: "Manifest") -> str:
    if not manifest.checks:
        return "no bound was set"
    missed = len(manifest.shortfalls)
    if not missed:
        return f"keeps to all {len(manifest.checks)} bounds"
    return f"misses {missed} of {len(manifest.checks)} bounds{', published by force' if manifest.forced else ''}"


def check_table(checks: "Sequence[BoundCheck]") -> Table:
    """Figures with their bounds: the broken ones in red, then the narrowest of every bound."""
    from index.bundle.gate import decisive_checks

    table = Table(box=None, pad_edge=False)
    table.add_column("figure")
    for name in ("measured", "bound"):
        table.add_column(name, justify="right")
    table.add_column("")
    for check, stands_for in decisive_checks(checks):
        figure = check.figure if stands_for == 1 else f"{check.figure} and {stands_for - 1} more"
        value = "–" if check.value is None else f"{check.value:.6g}"
        limit = f"{'≥' if check.at_least else '≤'} {check.limit:g}"
        verdict = "kept" if check.passed else ("not measured" if check.value is None else "missed")
        table.add_row(escape(figure), value, limit, verdict, style=None if check.passed else "red")
    return table


def show_bundles(found: "Iterable[BundleInfo]") -> None:
    """Print the bundles of a registry, one per line."""
    table = Table(box=None, pad_edge=False)
    for name in ("", "bundle", "created", "items", "MB", "recall", "lists", "verdict"):
        number = name in {"items", "MB", "recall"}
        table.add_column(name, justify="right" if number else "left", no_wrap=name != "verdict", overflow="fold")
    for info in found:
        table.add_row(*_bundle_row(info), style="red" if info.problem else None)
    # In a file or a pipe a bundle stays on one line, for grep.
    wide = Console(soft_wrap=True, highlight=False, width=None if _out.is_terminal else _WIDE)
    wide.print(table)


def _bundle_row(info: "BundleInfo") -> tuple[str, ...]:
    recall = f"{min(info.recall.values()):.3f}" if info.recall else ""
    created = f"{info.created:%Y-%m-%d %H:%M:%S}" if info.created else ""
    size = f"{info.size / 1e6:.1f}" if info.size else ""
    if info.problem is not None:
        verdict = info.problem
    elif info.shortfalls:
        verdict = f"forced: misses {', '.join(check.figure for check in info.shortfalls)}"
    else:
        verdict = f"keeps to {info.bounds} bounds" if info.bounds else "no bounds"
    if info.refitted:
        verdict = f"{verdict}; refitted, accuracy measured before"
    if info.warnings:
        verdict = f"{verdict}; warning: {'; '.join(map(str, info.warnings))}"
    if not info.published:
        verdict = f"never published; {verdict}"
    lists = ", ".join(f"{name} {neighbours}" for name, neighbours in info.lists.items())
    return ("*" if info.current else "", info.id, created, str(info.items or ""), size, recall, lists, escape(verdict))
