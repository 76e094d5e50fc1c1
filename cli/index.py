"""`vlm2rec index …`: build, publish and look after bundles."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from index.registry import BundleInfo

app = typer.Typer(no_args_is_help=True)

_EXIT_REFUSED = 1

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)

RegistryOption = Annotated[Path, typer.Option("--registry", help="Directory of published bundles.")]


@app.command()
def build(
    run: Annotated[Path, typer.Option(help="Run directory with `encoder/` from fit-encoder.")],
    out: Annotated[Path | None, typer.Option(help="Where the bundle goes; RUN/bundles if not given.")] = None,
    kind: Annotated[str, typer.Option(help="auto, flat, hnsw or ivf.")] = "auto",
    codes: Annotated[str, typer.Option(help="How the index keeps rows: auto, fp32, fp16 or sq8.")] = "auto",
    memory_mb: Annotated[
        int | None, typer.Option("--memory-mb", help="Most megabytes of the index file, for auto to choose by.")
    ] = None,
    target_recall: Annotated[
        float, typer.Option(help="Recall@20 that search effort is calibrated for; .999 and more is exact where it can.")
    ] = 0.97,
    min_recall: Annotated[
        float, typer.Option(help="Publishing refuses the bundle below this recall@20, 0 sets no bound.")
    ] = 0.95,
    threads: Annotated[int | None, typer.Option(help="Threads to build with; all cores if not given.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="JSON of `evaluate` for the report; RUN/evaluation.json if it exists.")
    ] = None,
    publish_to: Annotated[Path | None, typer.Option("--publish", help="Registry to publish the bundle to.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Publish even below the bound; the manifest says so.")] = False,
) -> None:
    """Build a bundle from a run, measure its recall, and publish it if asked to."""
    from index.build import build_bundle
    from index.index_spec import IndexSpec
    from index.item_table import ItemTable
    from index.probes import Probes

    spec = IndexSpec(
        kind=kind,  # type: ignore[arg-type]  # checked by IndexSpec, with a better message
        codes=codes,  # type: ignore[arg-type]
        memory_bytes=None if memory_mb is None else memory_mb * 1_000_000,
        target_recall=target_recall,
        min_recall=min_recall or None,
        threads=threads if threads is not None else (os.cpu_count() or 1),
    )
    encoder = run / "encoder"
    with _progress() as report:
        bundle = build_bundle(
            ItemTable.load(encoder / "table"),
            encoder / "encoder.onnx",
            Probes.load(encoder / "probes.npz"),
            out or run / "bundles",
            spec,
            evaluation=_read_evaluation(run, evaluation),
            progress=report,
        )
    _show_report(json.loads((bundle / "report.json").read_text()))
    _out.print(str(bundle), markup=False)
    if publish_to is not None:
        _publish(bundle, publish_to, force=force)


@app.command()
def publish(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.")],
    registry: RegistryOption,
    force: Annotated[bool, typer.Option("--force", help="Publish even below the bound; the manifest says so.")] = False,
) -> None:
    """Verify a bundle, copy it into the registry and point to it."""
    _publish(bundle, registry, force=force)


@app.command("list")
def list_bundles(registry: RegistryOption) -> None:
    """List the published bundles, oldest first; * marks the current one."""
    from index.registry import Registry

    table = Table(box=None, pad_edge=False)
    for name in ("", "bundle", "created", "items", "MB", "recall", "remark"):
        number = name in {"items", "MB", "recall"}
        table.add_column(name, justify="right" if number else "left", no_wrap=name != "remark", overflow="fold")
    found = Registry(registry).list()
    for info in found:
        table.add_row(*_row(info))
    _out.print(table if found else escape(f"{registry}: nothing is published yet"))


@app.command()
def rollback(registry: RegistryOption) -> None:
    """Point back to the bundle before the current one."""
    from index.registry import Registry

    _out.print(f"current: {Registry(registry).rollback()}")


@app.command()
def verify(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle's directory.")] = None,
    registry: Annotated[
        Path | None, typer.Option("--registry", help="Verify every bundle published here instead.")
    ] = None,
) -> None:
    """Hash every file of a bundle, or of all published ones, and open it once."""
    from index.bundle import Bundle
    from index.errors import BundleInvalid
    from index.registry import Registry

    if (bundle is None) == (registry is None):
        raise typer.BadParameter("give a bundle or --registry, exactly one of them")
    paths = [bundle] if bundle is not None else [info.path for info in Registry(registry or Path()).list()]
    damaged = 0
    for path in paths:
        try:
            loaded = Bundle.load(path, verify="full")
            _out.print(f"{path}: whole, {len(loaded)} items", markup=False)
        except BundleInvalid as error:
            damaged += 1
            _err.print(f"{error}", markup=False, style="red")
    if not paths:
        _out.print(f"{registry}: nothing is published yet", markup=False)
    if damaged:
        raise typer.Exit(_EXIT_REFUSED)


@app.command()
def prune(
    registry: RegistryOption,
    keep: Annotated[int, typer.Option(help="How many of the newest stay, besides the current one.")] = 5,
) -> None:
    """Delete old bundles; the newest and the current one stay."""
    from index.registry import Registry

    gone = Registry(registry).prune(keep)
    _out.print("\n".join(f"deleted: {name}" for name in gone) or "nothing to delete", markup=False)


def _publish(bundle: Path, registry: Path, *, force: bool) -> None:
    from index.errors import GateRefused
    from index.registry import Registry

    try:
        with _progress() as report:
            name = Registry(registry).publish(bundle, force=force, progress=report)
    except GateRefused as error:
        _err.print(f"refused: {error}", markup=False, style="red")
        raise typer.Exit(_EXIT_REFUSED) from error
    _out.print(f"published: {name}")


def _read_evaluation(run: Path, path: Path | None) -> dict[str, Any] | None:
    from index.errors import IndexSpecError

    chosen = path or run / "evaluation.json"
    if path is None and not chosen.is_file():
        return None
    try:
        figures = json.loads(chosen.read_text())
    except (OSError, ValueError) as error:
        raise IndexSpecError(
            f"{chosen}: no readable JSON ({error}); run `vlm2rec evaluate` with --json again"
        ) from error
    if not isinstance(figures, dict):
        raise IndexSpecError(f"{chosen}: must be a JSON object, got {type(figures).__name__}; evaluate again")
    return figures


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar per stage on stderr; only the last one is kept on the screen while it runs."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True) as bars:
        task = bars.add_task("", total=1.0)

        def report(stage: str, share: float) -> None:
            bars.update(task, description=stage, completed=share)

        yield report


def _show_report(report: dict[str, Any]) -> None:
    items, built = report["items"], report["index"]
    _out.print(
        f"{built['kind']}: {built['reason']}; {items['indexed']} of {items['total']} items indexed", markup=False
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("queries")
    for name in (f"recall@{built['recall_k']}", "p50 ms", "p99 ms"):
        table.add_column(name, justify="right")
    for name, value in built["recall"].items():
        times = report["search_ms"][name]
        low = built["min_recall"] is not None and value < built["min_recall"]
        table.add_row(name, f"{value:.4f}", f"{times['p50']:.2f}", f"{times['p99']:.2f}", style="red" if low else None)
    _out.print(table)


def _row(info: "BundleInfo") -> tuple[str, ...]:
    remark = escape(info.problem or "") or ("forced" if info.forced else "")
    recall = f"{min(info.recall.values()):.3f}" if info.recall else ""
    created = f"{info.created:%Y-%m-%d %H:%M:%S}" if info.created else ""
    size = f"{info.size / 1e6:.1f}" if info.size else ""
    return ("*" if info.current else "", info.id, created, str(info.items or ""), size, recall, remark)
