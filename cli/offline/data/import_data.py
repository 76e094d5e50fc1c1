"""`vlm2rec data import`: converts files of shops and public data sets into a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from training.imports.format_names import FormatName

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from training.imports.import_record import Entry, ImportRecord

_console = Console(highlight=False, soft_wrap=True)


def import_data(
    name: Annotated[FormatName, typer.Argument(help="Format of the files: docs/recipes.md.", metavar="FORMAT")],
    source: Annotated[
        Path, typer.Argument(help="Directory with the files that the recipe names, or the one file.", metavar="SRC")
    ],
    directory: Annotated[Path, typer.Argument(help="The data set: a new directory.", metavar="DIR")],
    interactions: Annotated[
        Path | None,
        typer.Option(help="Events to take instead of those in SRC: .csv or .parquet, columns as in a data set."),
    ] = None,
    with_history: Annotated[
        bool,
        typer.Option(
            "--with-history", help="mind: also take clicks without a time, at the user's first time in the log."
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier import in DIR; fetched pictures are kept.")
    ] = False,
) -> None:
    """Import google-merchant, amazon-2023, movielens, hm, shopify, mind or postgres files as a data set.

    Counts every skipped row with its reason and line. Fetches nothing: `vlm2rec data fetch-images` fetches pictures
    that are addresses.
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
        _say(f"left out   {entry.count:>9,}  {_entry_line(entry, 'rows')}", "yellow")
    for entry in record.values_left_empty:
        _say(f"left empty {entry.count:>9,}  {_entry_line(entry, 'values')}", "yellow")
    for note in record.notes:
        _say(f"note       {note}", "cyan")
    _say(f"next: vlm2rec data check {directory}", "dim")


def _say(line: str, style: str) -> None:
    _console.print(line, style=style, markup=False)


def _entry_line(entry: "Entry", what: str) -> str:
    lines = ", ".join(f"{line:,}" for line in entry.lines[:3])
    more = f" and {entry.count - 3:,} more" if entry.count > 3 else ""
    return f"{what} of {entry.file}: {entry.reason} (line{'s' * (entry.count != 1)} {lines}{more})"
