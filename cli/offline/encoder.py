"""`vlm2rec fit-encoder`: fits the item slots and the sequence encoder, and exports them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cli.offline.left_out import print_left_out
from cli.offline.threads import set_torch_threads

if TYPE_CHECKING:
    from rich.progress import Progress

    from training.config.encoder_config import EncoderConfig
    from training.data.dataset import Dataset
    from training.embedding.store import Embeddings

InteractionsOption = Annotated[
    Path | None, typer.Option(help="Interactions instead of those in DATA (.csv or .parquet).")
]
ConfigOption = Annotated[
    Path | None, typer.Option(help="Configuration (TOML, section \\[encoder]); default RUN/config.toml.")
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Instead of encoder.seed.")]

_console = Console(highlight=False, soft_wrap=True)


def fit_encoder(
    data: Annotated[str, typer.Argument(help="The data set: a directory, or s3://bucket/prefix.", metavar="DATA")],
    run: Annotated[Path, typer.Option("--run", help="The run directory, with the embeddings.", metavar="RUN")],
    interactions: InteractionsOption = None,
    config: ConfigOption = None,
    seed: SeedOption = None,
) -> None:
    """Fit slots and sequence encoder to the histories, export them and write RUN/encoder.

    Holds out every user's last event (test) and the one before it (validation). Then fits once more on every event, for
    as many epochs as were best: this encoder serves, figures are of the first (encoder.refit = false: one fit). Resumes
    after an interruption from the last whole epoch of either.
    """
    from index.machine.outputs import check_directory_writable
    from training.data.dataset import load_dataset
    from training.embedding.store import Embeddings
    from training.encoder.encoder_files import ENCODER_DIRECTORY
    from training.runs.disk import writing_run
    from training.runs.lock import run_lock

    check_directory_writable(run, run / ENCODER_DIRECTORY)
    chosen = chosen_config(run, config, seed)
    dataset = load_dataset(data, interactions=interactions)
    print_left_out(dataset, _console)
    set_torch_threads(None)
    with run_lock(run), writing_run(run):
        fit_and_print(dataset, Embeddings.load(run / "embeddings"), chosen, run)


def chosen_config(run: Path, config: Path | None, seed: int | None) -> "EncoderConfig":
    """The section [encoder] of a configuration file, else of RUN/config.toml, else the defaults.

    Raises:
        ConfigError: the file cannot be read or breaks a rule.
    """
    from training.config.run_config import load_config

    path = config or (run / "config.toml" if (run / "config.toml").is_file() else None)
    return load_config(path, overrides={} if seed is None else {"encoder.seed": seed}).encoder


def fit_and_print(
    dataset: "Dataset", embeddings: "Embeddings", config: "EncoderConfig", run: Path, *, exported: bool = False
) -> None:
    """Fit with a progress bar for each step, and print how it went.

    Args:
        dataset: catalogue and interactions.
        embeddings: of the same catalogue.
        config: how to fit.
        run: the locked run directory.
        exported: the interactions are those of the data set and of an export.
    """
    from training.encoder.encoder_files import ENCODER_DIRECTORY
    from training.encoder.job import fit_run

    with _progress() as bar:
        epochs = bar.add_task("fitting", total=config.epochs)
        again = bar.add_task("refitting on every event", total=None, visible=False)
        steps = bar.add_task("epoch", total=1.0)
        pictures = bar.add_task("thumbnails", total=None, visible=False)
        lists = bar.add_task("lists", total=None, visible=False)

        def report(line: Mapping[str, Any]) -> None:
            bar.update(epochs, completed=line["epoch"] + 1, description=f"fitting  {_epoch(line)}")

        record = fit_run(
            dataset,
            embeddings,
            config,
            run / ENCODER_DIRECTORY,
            report=report,
            step_done=lambda share: bar.update(steps, completed=share),
            pictured=lambda done, every: bar.update(pictures, completed=done, total=max(every, 1), visible=True),
            listed=lambda step, done, every: bar.update(
                lists, description=step, completed=done, total=max(every, 1), visible=True
            ),
            refitted=lambda done, every: bar.update(again, completed=done, total=every, visible=True),
            exported=exported,
        )
    _print(record)


def _print(record: Mapping[str, Any]) -> None:
    best = record["log"][record["best_epoch"]]
    _console.print(f"best of {len(record['log'])} epochs: {_epoch(best)}")
    _console.print(
        f"{record['data']['items']:,} items, slots {', '.join(f'{name} {dim}' for name, dim in record['slots'])}, "
        f"{record['seconds']:.0f} s; ONNX Runtime agrees with PyTorch to {record['parity']['difference']:.1g}"
    )
    if record["lists"]:
        _console.print(lists_line(record["lists"]))
    if record.get("refit"):
        refit = record["refit"]
        _console.print(
            f"refitted on all {refit['events']:,} events for {refit['epochs']} epochs: this encoder serves and is not "
            f"measured; figures are of the one before, fitted on {record['data']['training_events']:,}"
        )
    thumbnails = record["thumbnails"]
    if thumbnails["made"] or thumbnails["unreadable"]:
        skipped = f", {thumbnails['unreadable']:,} unreadable pictures skipped" if thumbnails["unreadable"] else ""
        _console.print(f"{thumbnails['made']:,} thumbnails{skipped}")


def lists_line(record: Mapping[str, Any]) -> str:
    """What is said of the lists at the end of a fit.

    Args:
        record: what ``fit.json`` says of them; not empty.
    """
    chosen = record["chosen"]
    used = [f"{name} {weight:g}" for name, weight in chosen["weights"].items() if weight]
    figures = f"validation NDCG@10 {chosen['ndcg@10_without_lists']:.4f} without, {chosen['ndcg@10']:.4f} with"
    if not used:
        return f"item-to-item lists: none gains anything on validation ({', '.join(chosen['weights'])} tried)"
    return f"item-to-item lists: {', '.join(used)}; {figures}"


def _progress() -> "Progress":
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)


def _epoch(line: Mapping[str, Any]) -> str:
    parts = [f"epoch {line['epoch'] + 1}", f"loss {line['loss']:.3f}"]
    parts += [f"validation {name.upper()} {line[name]:.4f}" for name in ("ndcg@10", "hr@10") if name in line]
    if "served_ndcg@10" in line:
        parts += [f"NDCG@10 with lists {line['served_ndcg@10']:.4f} before their recency is chosen"]
    return ", ".join(parts)
