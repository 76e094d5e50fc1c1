"""`vlm2rec fit-encoder` and `vlm2rec evaluate`: slots and sequence encoder, and how good they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress

    from training.evaluate import Table as EvaluationTable
    from training.metrics import Interval

_ALL_COLUMNS = 125

_console = Console(highlight=False)


def fit_encoder(
    data: Annotated[Path, typer.Argument(help="The data set.", metavar="DATA")],
    run: Annotated[Path, typer.Option("--run", help="The run directory, with the embeddings.", metavar="RUN")],
    interactions: Annotated[
        Path | None, typer.Option(help="Interactions in place of those in DATA (.csv or .parquet).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration (TOML, section [encoder]); default RUN/config.toml.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="In place of encoder.seed.")] = None,
) -> None:
    """Fit slots and sequence encoder to the histories, export them and write RUN/encoder.

    Every user's last event (test) and the one before it (validation) are held out. Run it again after an interruption
    and it goes on from the last whole epoch.
    """
    from training.config import load_config
    from training.dataset import load_dataset
    from training.embeddings import Embeddings
    from training.encoder_run import ENCODER_DIRECTORY, fit_run
    from training.run_lock import run_lock

    path = config or (run / "config.toml" if (run / "config.toml").is_file() else None)
    chosen = load_config(path, overrides={} if seed is None else {"encoder.seed": seed}).encoder
    dataset = load_dataset(data, interactions=interactions)
    with run_lock(run), _progress() as bar:
        embeddings = Embeddings.load(run / "embeddings")
        epochs = bar.add_task("fitting", total=chosen.epochs)
        steps = bar.add_task("epoch", total=1.0)
        pictures = bar.add_task("thumbnails", total=None, visible=False)

        def report(line: Mapping[str, Any]) -> None:
            bar.update(epochs, completed=line["epoch"] + 1, description=f"fitting  {_epoch(line)}")

        record = fit_run(
            dataset,
            embeddings,
            chosen,
            run / ENCODER_DIRECTORY,
            report=report,
            step_done=lambda share: bar.update(steps, completed=share),
            pictured=lambda done, every: bar.update(pictures, completed=done, total=max(every, 1), visible=True),
        )
    best = record["log"][record["best_epoch"]]
    _console.print(f"best of {len(record['log'])} epochs: {_epoch(best)}")
    _console.print(
        f"{record['data']['items']:,} items, slots {', '.join(f'{name} {dim}' for name, dim in record['slots'])}, "
        f"{record['seconds']:.0f} s; ONNX Runtime agrees with PyTorch to {record['parity']['difference']:.1g}"
    )
    thumbnails = record["thumbnails"]
    if thumbnails["made"] or thumbnails["unreadable"]:
        skipped = f", {thumbnails['unreadable']:,} unreadable pictures skipped" if thumbnails["unreadable"] else ""
        _console.print(f"{thumbnails['made']:,} thumbnails{skipped}")


def evaluate(
    data: Annotated[Path, typer.Argument(help="The data set that the encoder was fitted on.", metavar="DATA")],
    run: Annotated[Path, typer.Option("--run", help="The run directory.", metavar="RUN")],
    interactions: Annotated[
        Path | None, typer.Option(help="Interactions in place of those in DATA; the same as for fit-encoder.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="Interactions of fresh users: their last event is the target.")
    ] = None,
    validation: Annotated[
        bool, typer.Option("--validation", help="Use the validation targets: for choosing, so test stays untouched.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the encoder.")] = 1,
) -> None:
    """Rank the whole catalogue for every held-out event and compare with popularity, co-occurrence and each slot alone.

    The history is masked, ties count half; "text only" means that every other slot is zero on both sides.
    """
    from training.dataset import load_dataset
    from training.encoder_run import ENCODER_DIRECTORY
    from training.evaluate import FittedRun, evaluate_run, rankers
    from training.sequences import Sequences, last_item

    fitted = FittedRun.load(run / ENCODER_DIRECTORY, threads=threads)
    dataset = load_dataset(data, interactions=interactions)
    split = fitted.split(dataset)
    fresh = None
    if users is not None:
        others = load_dataset(data, interactions=users).interactions
        fresh = last_item(Sequences.from_interactions(others, dataset.item_ids()))
    with _progress() as bar:
        systems = rankers(fitted, split)
        part = fresh if fresh is not None else (split.parts.validation if validation else split.parts.test)
        task = bar.add_task("ranking", total=len(systems) * len(part))
        tables = evaluate_run(
            split, systems, fresh=fresh, on_validation=validation, advance=lambda done: bar.advance(task, done)
        )
    for table in tables:
        _print_table(table)
    if json_file is not None:
        _write_json(json_file, tables, fitted.record)


def _progress() -> "Progress":
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)


def _epoch(line: Mapping[str, Any]) -> str:
    parts = [f"epoch {line['epoch'] + 1}", f"loss {line['loss']:.3f}"]
    parts += [f"validation {name.upper()} {line[name]:.4f}" for name in ("ndcg@10", "hr@10") if name in line]
    return ", ".join(parts)


def _print_table(table: "EvaluationTable") -> None:
    wide = Console(highlight=False, width=None if _console.is_terminal else 140)
    columns = {"HR@10": "hr@10", "NDCG@10": "ndcg@10", "HR@20": "hr@20", "NDCG@20": "ndcg@20"}
    if wide.width >= _ALL_COLUMNS:
        columns |= {"HR@10/100": "hr@10/100", "NDCG@10/100": "ndcg@10/100", "coverage@10": "coverage@10"}
    title = f"{table.name}: {table.users:,} targets, full ranking over {table.items:,} items, history masked"
    printed = Table(title=title, title_justify="left", caption_justify="left")
    printed.caption = (
        "/100 = among 100 negatives; x popularity = ratio of NDCG@10 with a paired bootstrap 95 % interval"
    )
    printed.add_column("system", no_wrap=True)
    for heading in (*columns, "x popularity"):
        printed.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        values = (f"{row.values[name]:.4f}" for name in columns.values())
        printed.add_row(row.name, *values, _ratio(row.ratios["ndcg@10"]))
    wide.print(printed)


def _ratio(interval: "Interval") -> str:
    if interval.ratio != interval.ratio:
        return "–"
    return f"{interval.ratio:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _write_json(path: Path, tables: "list[EvaluationTable]", record: dict[str, Any]) -> None:
    from training.errors import EvaluationError

    about = {name: record[name] for name in ("model", "data", "config")}
    written = {"tables": [table.as_json() for table in tables], **about}
    partial = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise EvaluationError(f"{path}: the figures cannot be written ({error.strerror}); check --json") from error
