"""Prints an estimate of what a size of shop takes (`vlm2rec plan`)."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.capacity.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.capacity.estimate import Demand, Figure

_MOST = 10**15  # far above any shop; larger whole numbers are no floats

_out = Console(highlight=False, soft_wrap=True)


def _parsed(text: str, name: str) -> int:
    try:
        return parse_size(text, name=name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def plan(
    items: Annotated[str, typer.Option(metavar="N", help="Items of the catalogue, as in 2.5M.")],
    users: Annotated[str, typer.Option(metavar="N", help="Users with a stored history, as in 10M.")],
    rps: Annotated[str, typer.Option(metavar="N", help="Requests a second at the busiest time, as in 2k.")],
    p99: Annotated[float, typer.Option(min=1, max=60_000, help="Milliseconds that 99 of 100 answers may take.")] = 50.0,
    history: Annotated[int, typer.Option(min=1, max=10_000, help="Mean stored events a user.")] = 10,
    dim: Annotated[int, typer.Option(min=1, max=65_536, help="Dimensions of the vectors, all slots together.")] = 192,
    lists: Annotated[int, typer.Option(min=0, max=16, help="Item-to-item lists.")] = 3,
    load: Annotated[
        float, typer.Option(min=0.05, max=1, help="Share of its highest rate that a replica is planned for.")
    ] = 0.3,
    cores: Annotated[int, typer.Option(min=1, max=4, help="Cores of a replica.")] = 2,
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Worker processes of a replica.", show_default="one a core")
    ] = 0,
    replica_gib: Annotated[
        float, typer.Option(min=0.5, help="Most memory of a replica; a larger catalogue is searched in Milvus.")
    ] = 64.0,
    redis_gib: Annotated[float, typer.Option(min=0.5, help="Memory of a Redis node.")] = 32.0,
    milvus_gib: Annotated[float, typer.Option(min=1, help="Memory of a query node of Milvus.")] = 128.0,
    stream_events: Annotated[int, typer.Option(min=1, max=_MOST, help="Kept in the event stream.")] = 1_000_000,
    steps: Annotated[int, typer.Option(min=1, max=_MOST, help="Training steps, of 32 windows each.")] = 3_000,
    coefficients: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML file that replaces some of the coefficients.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate memory, replicas, Redis, Milvus and GPU hours for a size of shop; docs/capacity.md has the formulae.

    Each figure is computed, and says from what: from coefficients that a bench measured, also from others, or from a
    guess. Needs the extra `plan`.
    """
    from cli.capacity.coefficients import Coefficients
    from cli.capacity.estimate import Demand, estimate, in_milvus

    demand = Demand(
        items=_parsed(items, "--items"),
        users=_parsed(users, "--users"),
        rate=_parsed(rps, "--rps"),
        p99_ms=p99,
        history=history,
        dim=dim,
        lists=lists,
        load=load,
        cores=cores,
        workers=workers,
        replica_gib=replica_gib,
        redis_gib=redis_gib,
        milvus_gib=milvus_gib,
        stream_events=stream_events,
        steps=steps,
    )
    known = Coefficients.read(coefficients)
    figures = estimate(demand, known)
    if as_json:
        found = {
            "demand": _plain(asdict(demand)),
            "figures": [_plain(asdict(figure)) for figure in figures],
            "coefficients": {name: known[name].model_dump() for name in known},
        }
        typer.echo(json.dumps(found, indent=1, allow_nan=False))
        return
    _print(figures, demand, milvus=in_milvus(demand, known))


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with null in place of numbers that JSON does not have, as of ``--redis-gib inf``."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }


def _print(figures: "Sequence[Figure]", demand: "Demand", *, milvus: bool) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True, justify="right")
    for heading in ("", "basis", "grows with"):
        table.add_column(heading)
    for figure in figures:
        table.add_row(figure.name, _short(figure.value), figure.unit, figure.basis, figure.grows_with)
    _out.print(table)
    if milvus:
        _out.print(
            f"\nThe bundle exceeds the {demand.replica_gib:g} GiB of a replica, so Milvus searches. No bench of this "
            "project has measured Milvus."
        )
    _out.print("\nThe largest are the cost drivers; put your prices beside them. Formulae: docs/capacity.md")


def _short(value: float) -> str:
    """A number as in 1,234 or 0.57: as many digits as an estimate is worth."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"
