"""Reports on an experiment that runs on a live service (`vlm2rec experiments report`)."""

import json
import math
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from service.experiments.interleaved_report import InterleavedArmReport, InterleavedReport
    from service.experiments.report import ArmReport, CandidateReport, ExperimentReport
    from service.experiments.statistics import RatioEstimate

_out = Console(soft_wrap=True, highlight=False)
_wide_out = Console(width=200, highlight=False)  # a narrower table is cut, and with it its figures

_KEY_VARIABLE = "VLM2REC_ADMIN_KEYS"

app = typer.Typer()


@app.callback()
def experiments() -> None:
    """Look at experiments of a live service."""


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="Name of the experiment.", metavar="NAME")],
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
    goal: Annotated[
        Literal["clicks", "conversions", "revenue"],
        typer.Option(help="What is compared, per answer; interleaved: clicks or conversions."),
    ] = "clicks",
    api_key: Annotated[
        str | None, typer.Option(envvar=_KEY_VARIABLE, help="Admin key of the service; of several the first.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that one answer may take.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Compare the arms of an experiment; may be looked at any time. Ends with keep, roll back or not yet."""
    from cli.errors import LiveServiceError
    from cli.online.live_service import LiveService
    from service.experiments.interleaved_report import interleaved_report
    from service.experiments.report import experiment_report

    key = api_key.partition(",")[0].strip() or None if api_key else None
    with closing(LiveService(url, key, timeout_s=timeout, key_variable=_KEY_VARIABLE)) as live:
        counted = live.experiment_groups(name)
    found: ExperimentReport | InterleavedReport
    try:
        experiment, groups = counted["experiment"], counted["groups"]
        if not experiment.get("interleave"):
            found = experiment_report(experiment, groups, goal)
        elif goal == "revenue":
            raise typer.BadParameter("must be clicks or conversions where answers are interleaved", param_hint="--goal")
        else:
            found = interleaved_report(experiment, groups, goal)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LiveServiceError(f"{url} answers with something else than an experiment ({error!r})") from error
    if as_json:
        _out.print_json(json.dumps(_plain(asdict(found))))
    elif experiment.get("interleave"):
        _show_interleaved(cast("InterleavedReport", found))
    else:
        _show(cast("ExperimentReport", found))


def _show(found: "ExperimentReport") -> None:
    _out.print(f"experiment {found.name}: per answer, 95 % intervals of one look", markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("arm", "share", "answers", "clicks", "conversions", "revenue", "latency ms", "degraded"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for arm in found.arms:
        table.add_row(*_cells(arm))
    _wide_out.print(table)
    for candidate in found.candidates:
        _out.print(_line(candidate, found.goal), markup=False)
        for reason in candidate.reasons:
            _out.print(f"  {candidate.verdict}: {reason}", markup=False)
    _out.print(f"users divided as planned: p = {found.mismatch_p:.3g}")
    _out.print(f"verdict: {found.verdict}", style="bold")


def _show_interleaved(found: "InterleavedReport") -> None:
    _out.print(f"experiment {found.name}: interleaved, items of both arms in every answer", markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("arm", "answers", "items", "clicks", "conversions", "revenue", "wins", "degraded"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for arm in found.arms:
        table.add_row(*_interleaved_cells(arm))
    _wide_out.print(table)
    _out.print(f"both arms as many {found.goal}: {found.ties:,.0f} answers")
    preference, test, candidate = found.preference, found.test, found.arms[1]
    line = f"{candidate.name}: preferred in {_number(preference.value, '.1%')} of {preference.denominator:,.0f} answers"
    if math.isfinite(test.low):
        line += f", always valid interval [{0.5 + test.low:.1%}, {0.5 + test.high:.1%}], p = {test.p:.3g}"
    _out.print(line, markup=False)
    for reason in found.reasons:
        _out.print(f"  {found.verdict}: {reason}", markup=False)
    _out.print(f"verdict: {found.verdict}", style="bold")


def _interleaved_cells(arm: "InterleavedArmReport") -> list[str]:
    counts = [f"{arm.totals[measure]:,.0f}" for measure in ("answers", "shown", "clicks", "conversions")]
    revenue, degraded = f"{arm.totals['revenue']:,.2f}", _number(arm.degraded.value, ".2%")
    return [arm.name, *counts, revenue, f"{arm.wins:,.0f}", degraded]


def _cells(arm: "ArmReport") -> list[str]:
    rates = [_rate(arm.rates[goal]) for goal in ("clicks", "conversions", "revenue")]
    return [
        *(arm.name, f"{arm.share:.0%}", f"{arm.totals['answers']:,.0f}"),
        *rates,
        *(_number(arm.latency_ms.value, ".2f"), _number(arm.degraded.value, ".2%")),
    ]


def _rate(rate: "RatioEstimate") -> str:
    low, high = rate.interval
    return f"{rate.value:.4f} [{low:.4f}, {high:.4f}]" if math.isfinite(low) else _number(rate.value, ".4f")


def _number(value: float, form: str) -> str:
    """The number in a form; a dash without answers."""
    return format(value, form) if math.isfinite(value) else "–"


def _line(candidate: "CandidateReport", goal: str) -> str:
    test = candidate.test
    if not math.isfinite(test.low):
        return f"{candidate.name}: {goal} per answer {_number(test.difference, '+.4f')}, no interval yet"
    lift = f" ({candidate.lift:+.1%})" if math.isfinite(candidate.lift) else ""
    return (
        f"{candidate.name}: {goal} per answer {test.difference:+.4f}{lift}, always valid interval "
        f"[{test.low:+.4f}, {test.high:+.4f}], p = {test.p:.3g}"
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The value with null in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
