"""Builds, publishes and manages bundles (`vlm2rec index …`)."""

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.offline.threads import ThreadsOption
from cli.online.bundle_tables import check_table, show_bundle, show_bundles
from cli.online.bundles_in_use import RedisOption, SpareOption, in_use_by_services
from cli.online.index_options import (
    BoundOption,
    BoundsOption,
    CodesOption,
    EvaluationOption,
    ForceOption,
    FreshShareOption,
    KindOption,
    MemoryOption,
    TargetRecallOption,
    index_spec,
)
from cli.online.milvus_push import (
    BundleArgument,
    KeepOption,
    MilvusOption,
    PublishedOption,
    RecallOption,
    SampleOption,
    TokenFileOption,
    WaitOption,
    bundle_directory,
    push_bundle,
)
from cli.online.published import RegistryOption, published_at
from cli.online.served_run import ServedRun

if TYPE_CHECKING:
    from index.bundle.bundle import Bundle

app = typer.Typer(no_args_is_help=True)

_EXIT_REFUSED = 1

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)


@app.command()
def build(
    run: Annotated[Path, typer.Option(help="Run directory with `encoder/` from fit-encoder.")],
    out: Annotated[Path | None, typer.Option(help="Where the bundle goes; RUN/bundles if not given.")] = None,
    kind: KindOption = "auto",
    codes: CodesOption = "auto",
    memory_mb: MemoryOption = None,
    target_recall: TargetRecallOption = 0.97,
    fresh_share: FreshShareOption = 0.0,
    bounds: BoundsOption = None,
    bound: BoundOption = None,
    threads: ThreadsOption = None,
    evaluation: EvaluationOption = None,
    publish_to: Annotated[str | None, typer.Option("--publish", help="Registry to publish the bundle to.")] = None,
    force: ForceOption = False,
) -> None:
    """Build a bundle from a run, measure it, check its bounds, and publish it with --publish."""
    from index.build.build import build_bundle
    from index.bundle.registries import check_publishable
    from index.machine.outputs import check_directory_writable

    place = out or run / "bundles"
    check_directory_writable(place)
    if publish_to is not None:
        check_publishable(published_at(publish_to))
    spec = index_spec(kind, codes, memory_mb, target_recall, bounds, bound, threads, fresh_share)
    fitted = ServedRun.load(run)
    with _progress() as report:
        bundle = build_bundle(
            fitted.table,
            fitted.encoder,
            fitted.queries,
            place,
            spec,
            lists=fitted.lists,
            evaluation=read_evaluation(run, evaluation),
            exclude_seen=fitted.exclude_seen,
            event_types=fitted.event_types,
            progress=report,
        )
    show_bundle(bundle)
    _out.print(str(bundle), markup=False)
    if publish_to is not None:
        _publish(bundle, publish_to, force=force)


@app.command()
def publish(
    bundle: Annotated[Path, typer.Argument(help="A bundle's directory.")],
    registry: RegistryOption,
    force: ForceOption = False,
) -> None:
    """Check a bundle's bounds, verify it, copy it into the registry and make it current."""
    _publish(bundle, registry, force=force)


@app.command("list")
def list_bundles(registry: RegistryOption) -> None:
    """List the bundles in order of publication; * marks the current one."""
    found = published_at(registry).list()
    if found:
        show_bundles(found)
    else:
        _out.print(f"{registry}: nothing is published yet", markup=False)


@app.command()
def show(
    bundle: Annotated[str | None, typer.Argument(help="A bundle's directory; with --registry, an id.")] = None,
    registry: Annotated[
        str | None, typer.Option("--registry", help="Show one published here, the current one if no id is given.")
    ] = None,
) -> None:
    """Show the figures of a bundle with its bounds."""
    show_bundle(bundle_directory(bundle, registry))


@app.command()
def push(
    milvus: MilvusOption,
    bundle: BundleArgument = None,
    registry: PublishedOption = None,
    token_file: TokenFileOption = None,
    min_recall: RecallOption = 0.95,
    sample: SampleOption = 200,
    keep: KeepOption = 2,
    wait: WaitOption = 3600.0,
    redis: RedisOption = None,
    spare: SpareOption = None,
) -> None:
    """Put a bundle into Milvus, check it, measure its recall, and let it serve; goes on where it was interrupted."""
    push_bundle(
        bundle, registry, milvus, token_file, min_recall, sample, keep, wait, _progress, redis=redis, spare=spare or ()
    )


@app.command()
def rollback(
    registry: RegistryOption,
    to: Annotated[
        str | None, typer.Option(metavar="ID", help="The bundle to point to; the one before if not given.")
    ] = None,
) -> None:
    """Make the previous bundle, or any published one, current."""
    _out.print(f"current: {published_at(registry).rollback(to)}", markup=False)


@app.command()
def verify(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle's directory.")] = None,
    registry: Annotated[
        str | None, typer.Option("--registry", help="Verify every bundle published here instead.")
    ] = None,
) -> None:
    """Hash every file of a bundle, or of all published ones, and open it once."""
    from index.errors import BundleInvalid, BundleNotFound

    if (bundle is None) == (registry is None):
        raise typer.BadParameter("give a bundle or --registry, exactly one of them")
    damaged = 0
    checked = _loaders(bundle, registry)
    for name, load in checked.items():
        try:
            _out.print(f"{name}: whole, {len(load())} items", markup=False)
        except (BundleInvalid, BundleNotFound) as error:
            if registry is not None and name not in _loaders(None, registry):
                _out.print(f"{name}: was deleted meanwhile", markup=False)
                continue
            if isinstance(error, BundleNotFound):
                raise
            damaged += 1
            _err.print(f"{error}", markup=False, style="red")
    if not checked:
        _out.print(f"{registry}: nothing is published yet", markup=False)
    if damaged:
        raise typer.Exit(_EXIT_REFUSED)


def _loaders(bundle: Path | None, registry: str | None) -> dict[str, Callable[[], "Bundle"]]:
    """What loads each bundle in full, by the place of the bundle: one bundle, or all of a registry."""
    from index.bundle.bundle import Bundle

    if bundle is not None:
        return {str(bundle): partial(Bundle.load, bundle, verify="full")}
    published = published_at(registry or "")
    return {f"{published.location}/{info.id}": partial(published.load_verified, info.id) for info in published.list()}


@app.command()
def prune(
    registry: RegistryOption,
    keep: Annotated[int, typer.Option(help="Number of newest bundles to keep.")] = 5,
    spare: SpareOption = None,
    redis: RedisOption = None,
) -> None:
    """Delete old bundles, in order of publication.

    The current bundle, the target of a rollback, and bundles that a service on this machine, or of the given Redis, has
    pinned or runs an experiment with are kept.
    """
    gone = published_at(registry).prune(keep, spare={*(spare or ()), *in_use_by_services(redis)})
    _out.print("\n".join(f"deleted: {name}" for name in gone) or "nothing to delete", markup=False)


def _publish(bundle: Path, registry: str, *, force: bool) -> None:
    from index.errors import GateRefused

    try:
        with _progress() as report:
            name = published_at(registry).publish(bundle, force=force, progress=report)
    except GateRefused as error:
        _err.print(check_table(error.shortfalls))
        _err.print(f"refused: {error}", markup=False, style="red")
        raise typer.Exit(_EXIT_REFUSED) from error
    _out.print(f"published: {name}", markup=False)


def read_evaluation(run: Path, path: Path | None) -> dict[str, Any] | None:
    """The figures of ``evaluate --json``: from a file, else from ``RUN/evaluation.json`` if there is one.

    Raises:
        IndexSpecError: the file cannot be read.
    """
    from index.errors import IndexSpecError

    chosen = path or run / "evaluation.json"
    if path is None and not chosen.is_file():
        return None
    try:
        figures = json.loads(chosen.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
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
