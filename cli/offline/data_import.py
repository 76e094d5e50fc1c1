"""`vlm2rec data import`: files that shops and public data sets come in, as a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from training.imports.format_names import FormatName

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from training.imports.import_record import Entry, ImportRecord

_console = Console(highlight=False)


def import_data(
    name: Annotated[FormatName, typer.Argument(help="What the files are: docs/recipes.md.", metavar="FORMAT")],
    source: Annotated[
        Path, typer.Argument(help="Directory with the files that the recipe names, or the one file.", metavar="SRC")
    ],
    directory: Annotated[Path, typer.Argument(help="Where the data set goes: a new directory.", metavar="DIR")],
    interactions: Annotated[
        Path | None,
        typer.Option(help="Events to take in place of those in SRC: .csv or .parquet, columns as in a data set."),
    ] = None,
    with_history: Annotated[
        bool,
        typer.Option(
            "--with-history", help="mind: take the clicks without a time too, at the user's first in the log."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier import in DIR; fetched pictures are kept.")
    ] = False,
) -> None:
    """Import google-merchant, amazon-2023, movielens, hm, shopify, mind or postgres files as a data set.

    Counts every row that is left out, with its reason and line. Nothing is fetched: pictures that are only named by an
    address come with `vlm2rec data fetch-images`.
    """
    from rich.progress import Progress

    from training.imports.run_import import run_import

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        record = run_import(
            name,
            source,
            directory,
            interactions=interactions,
            with_history=with_history,
            force=force,
            progress=lambda file, share: _show(bar, tasks, file, share),
        )
    _print(record, directory)


def _show(bar: "Progress", tasks: "dict[str, TaskID]", file: str, share: float) -> None:
    if file not in tasks:
        tasks[file] = bar.add_task(f"reading {escape(file)}", total=1.0)
    bar.update(tasks[file], completed=share)


def _print(record: "ImportRecord", directory: Path) -> None:
    events = "no interactions" if record.interactions is None else f"{record.interactions:,} interactions"
    _say(f"{directory}: {record.items:,} items, {events}", "green")
    for entry in record.rows_left_out:
        _say(f"left out   {entry.count:>9,}  {_spelled(entry, 'rows')}", "yellow")
    for entry in record.values_left_empty:
        _say(f"left empty {entry.count:>9,}  {_spelled(entry, 'values')}", "yellow")
    for note in record.notes:
        _say(f"note       {note}", "cyan")
    _say(f"next: vlm2rec data check {directory}", "dim")


def _say(line: str, style: str) -> None:
    _console.print(escape(line), style=style, soft_wrap=True)


def _spelled(entry: "Entry", what: str) -> str:
    lines = ", ".join(f"{line:,}" for line in entry.lines[:3])
    more = f" and {entry.count - 3:,} more" if entry.count > 3 else ""
    return f"{what} of {entry.file}: {entry.reason} (line{'s' * (entry.count != 1)} {lines}{more})"
