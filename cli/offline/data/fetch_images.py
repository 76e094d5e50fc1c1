"""`vlm2rec data fetch-images`: fetches the pictures whose addresses are in a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from training.imports.fetching.image_fetches import FetchSummary

_EXIT_FAILED = 1

_console = Console(highlight=False, soft_wrap=True)


def fetch_images(
    directory: Annotated[Path, typer.Argument(help="A data set whose items have a column image_url.", metavar="DIR")],
    parallel: Annotated[int, typer.Option(min=1, max=32, help="Concurrent fetches.")] = 4,
    most: Annotated[
        int | None, typer.Option(min=1, help="Most pictures to fetch now; the next call continues.")
    ] = None,
    max_mib: Annotated[int, typer.Option(min=1, max=1024, help="Largest picture, MiB.")] = 20,
    seconds: Annotated[float, typer.Option(min=1, max=600, help="Time limit of one fetch, redirects included.")] = 30.0,
    port: Annotated[
        list[int] | None,
        typer.Option(min=1, max=65535, help="Additional port to connect to, besides 80 and 443."),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Retry pictures that failed permanently.")] = False,
) -> None:
    """Fetch the pictures of image_url into DIR/images, and write their paths to the items file.

    Resumes after an interruption. Connects to public addresses only, whatever a name or a redirect resolves to. Exit
    code 1: a picture could not be fetched.
    """
    import httpx2
    from rich.progress import Progress

    from index.machine.outputs import check_directory_writable
    from training.imports.fetching.addresses import public_address, system_resolver
    from training.imports.fetching.image_fetches import fetch_images as fetch
    from training.imports.fetching.picture_fetcher import FetchLimits, PictureFetcher

    check_directory_writable(directory)
    defaults = FetchLimits()
    limits = FetchLimits(max_mib << 20, seconds, defaults.redirects, defaults.ports | frozenset(port or ()))
    tls = httpx2.create_ssl_context()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("fetching pictures", total=None)
        summary = fetch(
            directory,
            lambda: PictureFetcher(limits, rule=public_address, resolver=system_resolver, tls=tls),
            parallel=parallel,
            most=most,
            again=again,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _print(summary, directory)
    if summary.failed:
        raise typer.Exit(_EXIT_FAILED)


def _print(summary: "FetchSummary", directory: Path) -> None:
    parts = {
        "fetched now": summary.fetched,
        "already there": summary.kept,
        "failed before, not retried (--again retries)": summary.skipped,
        "left for the next call": summary.left,
    }
    counts = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count) or "nothing to fetch"
    _say(f"{directory}: {counts}; {summary.named:,} items name a picture", "green")
    for reason, urls in sorted(summary.failed.items(), key=lambda one: -len(one[1])):
        _say(f"failed {len(urls):>9,}  {reason} ({urls[0][:200]}{', …' if len(urls) > 1 else ''})", "yellow")


def _say(line: str, style: str) -> None:
    _console.print(line, style=style, markup=False)
