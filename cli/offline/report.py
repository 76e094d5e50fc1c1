"""`vlm2rec report`: writes the report page of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from training.data.dataset import Dataset
    from training.report.data import RunReport

REPORT_FILE = "report.html"
_console = Console(highlight=False, soft_wrap=True)


def report(
    data: Annotated[
        str,
        typer.Argument(
            help="The data set that the run was trained on: a directory, or s3://bucket/prefix.", metavar="DATA"
        ),
    ],
    run: Annotated[Path, typer.Option("--run", help="The run directory.", metavar="RUN")],
    out: Annotated[Path | None, typer.Option(help="File to write; default RUN/report.html.")] = None,
    interactions: Annotated[
        Path | None, typer.Option(help="Interactions instead of those in DATA; the same as for train.")
    ] = None,
    image_alone: Annotated[
        Path | None, typer.Option(help="A run trained on images only, to measure how far the joint run uses them.")
    ] = None,
    text_alone: Annotated[
        Path | None, typer.Option(help="A run trained on texts only, for the same measurement.")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="JSON of `evaluate`; default RUN/evaluation.json, if it exists.")
    ] = None,
) -> None:
    """Write report.html: configuration, whether a modality is collapsing, curves, nearest items.

    One file without scripts or external resources. It names what the run lacks.
    """
    from index.machine.outputs import check_file_writable
    from training.data.dataset import load_dataset

    check_file_writable(out or run / REPORT_FILE)
    alone = {"image": image_alone, "text": text_alone}
    given = {modality: path for modality, path in alone.items() if path is not None}
    dataset = load_dataset(data, interactions=interactions)
    written, path = write_report(dataset, run, out, alone=given, evaluation=evaluation)
    _console.print(written.verdict.headline, markup=False)
    for reason in written.verdict.reasons:
        _console.print(f"  {reason}", markup=False)
    _console.print(str(path), markup=False)


def write_report(
    dataset: "Dataset",
    run: Path,
    out: Path | None = None,
    *,
    alone: dict[str, Path] | None = None,
    evaluation: Path | None = None,
) -> "tuple[RunReport, Path]":
    """Write the page.

    Returns:
        Content of the page, and its path.


    Raises:
        TrainingError: the run cannot be read or compared, or the file cannot be written.
    """
    from index.bundle.integrity import write_durably
    from index.machine.disk import describe_disk_error, is_stream
    from training.errors import EvaluationError
    from training.report.data import gather
    from training.report.page import render_run

    with Console(stderr=True).status("reading the run") as status:
        content = gather(dataset, run, alone=alone, evaluation=evaluation, progress=status.update)
        status.update("drawing")
        page = render_run(content)
    path = out or run / REPORT_FILE
    try:
        if is_stream(path):
            path.write_text(page, encoding="utf-8")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, page.encode("utf-8"))
    except OSError as error:
        raise EvaluationError(
            describe_disk_error(error, path, "check --out and report again", what="the report")
        ) from error
    return content, path
