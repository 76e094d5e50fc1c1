"""`vlm2rec data check`: prints the contents and the defects of a data set."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from index.machine.text_files import replace_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypedDict

    from rich.progress import Progress, TaskID

    from training.data_check.report import DatasetReport, ImageFacts, InteractionFacts, ItemFacts

    class TrainingOptions(TypedDict, total=False):
        """Options of a training that decide which data it can use."""

        modalities: tuple[str, ...]
        cold_items: float
        exclude_seen: bool


_EXIT_DEFECTS = 1
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}

_console = Console(highlight=False, soft_wrap=True)


def check(
    data: Annotated[str, typer.Argument(help="The data set: a directory, or s3://bucket/prefix.", metavar="DATA")],
    interactions: Annotated[
        Path | None, typer.Option(help="Interactions to check instead of those in DIR (.csv or .parquet).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration (TOML) of the training, such as RUN/config.toml.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report to this file.")] = None,
) -> None:
    """Check a data set: counts, k-core, history lengths, pictures, and all defects with row numbers.

    Exit code 1: training would refuse the data set, or it has no user to hold out for evaluation.
    """
    from rich.progress import Progress

    from index.machine.outputs import check_file_writable
    from training.data_check.check import check_dataset

    if json_file is not None:
        check_file_writable(json_file)
    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True), transient=True) as bar:
        report = check_dataset(
            data,
            interactions=interactions,
            **({} if config is None else _training_options(config)),
            progress=lambda step, share: _show(bar, tasks, step, share),
        )
    _print_facts(report)
    _print_defects(report)
    if json_file is not None:
        _write_json(json_file, report)
    if not report.ok:
        raise typer.Exit(_EXIT_DEFECTS)


def _training_options(config: Path) -> "TrainingOptions":
    """Read the options of a training that the check depends on."""
    from training.config.run_config import check_new_training, load_config  # it loads torch

    chosen = load_config(config)
    check_new_training(chosen)
    encoder = chosen.encoder
    return {
        "modalities": chosen.train.modalities,
        "cold_items": encoder.cold_items,
        "exclude_seen": encoder.exclude_seen,
    }


def _show(bar: "Progress", tasks: "dict[str, TaskID]", step: str, share: float) -> None:
    if step not in tasks:
        tasks[step] = bar.add_task(f"checking {step}", total=1.0)
    bar.update(tasks[step], completed=share)


def _print_facts(report: "DatasetReport") -> None:
    rows = [
        *(_item_rows(report.items) if report.items else []),
        *(_image_rows(report.images) if report.images else []),
        *(_interaction_rows(report.interactions) if report.interactions else []),
    ]
    width = max((len(name) for name, _ in rows), default=0)
    _console.print(report.directory, markup=False, style="italic")
    for name, value in rows:
        _console.print(Text.assemble((f"{name:<{width}}  ", "dim"), value))


def _item_rows(facts: "ItemFacts") -> list[tuple[str, str]]:
    columns = [f"{column.name} ({column.kind}{_missing(column.missing)})" for column in facts.metadata]
    return [
        ("items", f"{facts.items:,} in {facts.file}, {facts.with_text:,} with text"),
        ("metadata", ", ".join(columns) or "none"),
    ]


def _missing(missing: int) -> str:
    return f", {missing:,} missing" if missing else ""


def _image_rows(facts: "ImageFacts") -> list[tuple[str, str]]:
    parts = [f"{facts.readable:,} readable"]
    counts = {"missing": facts.missing, "unreadable": facts.unreadable, "duplicate": facts.duplicates}
    parts += [f"{count:,} {name}" for name, count in counts.items() if count]
    return [("images", f"{facts.named:,} named, {', '.join(parts)}" if facts.named else "none named")]


def _interaction_rows(facts: "InteractionFacts") -> list[tuple[str, str]]:
    five, largest = facts.five_core, facts.largest_core
    usable = "all usable" if facts.usable == facts.rows else f"{facts.usable:,} usable"
    rows = [
        (
            "interactions",
            f"{facts.rows:,} in {facts.file}, {usable}, of {facts.users:,} users with {facts.items:,} items",
        ),
        *([("not positive", _named(facts.left_out))] if facts.left_out else []),
        ("time", f"{facts.first} … {facts.last} ({facts.time_unit})" if facts.first else f"({facts.time_unit})"),
        ("history lengths", "  ".join(f"{name} {value:g}" for name, value in facts.lengths.items()) or "none"),
        ("long enough", f"{facts.long_enough:,} users with at least 3 events, for validation and test"),
        ("repeats", f"{facts.repeats:,} of their last events are of an item that they had before"),
        ("5-core", f"{five.users:,} users, {five.items:,} items, {five.pairs:,} pairs of user and item"),
        ("largest core", f"k = {largest.k}: {largest.users:,} users, {largest.items:,} items, {largest.pairs:,} pairs"),
    ]
    return rows if facts.usable else rows[: 1 + bool(facts.left_out)]


def _named(left_out: "Mapping[str, int]") -> str:
    return ", ".join(f"{count:,} {meaning}" for meaning, count in left_out.items()) + " by events.toml, left out"


def _print_defects(report: "DatasetReport") -> None:
    if not report.defects:
        _console.print("\nno defects", style="green")
        return
    _console.print()
    for defect in report.defects:
        level = defect.severity.value
        _console.print(Text.assemble((f"{level:8}", _STYLES[level]), f"{defect.count:>9,}  {defect.message}"))
    counts = [sum(defect.severity.value == level for defect in report.defects) for level in _STYLES]
    verdict = "training accepts this data set" if report.ok else "correct the errors before training"
    named = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in zip(_STYLES, counts, strict=True))
    _console.print(f"\n{named}: {verdict}", style="green" if report.ok else "red")


def _write_json(path: Path, report: "DatasetReport") -> None:
    from index.machine.disk import describe_disk_error
    from training.errors import DatasetError

    try:
        replace_text(path, json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DatasetError(
            describe_disk_error(error, path, "check again, or name another --json", what="the report")
        ) from error
