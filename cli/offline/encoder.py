"""`vlm2rec fit-encoder`: slots and sequence encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cli.offline.threads import set_torch_threads

if TYPE_CHECKING:
    from rich.progress import Progress

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
    from training.config.run_config import load_config
    from training.data.dataset import load_dataset
    from training.embedding.store import Embeddings
    from training.encoder.job import ENCODER_DIRECTORY, fit_run
    from training.runs.disk import writing_run
    from training.runs.lock import run_lock

    path = config or (run / "config.toml" if (run / "config.toml").is_file() else None)
    chosen = load_config(path, overrides={} if seed is None else {"encoder.seed": seed}).encoder
    dataset = load_dataset(data, interactions=interactions)
    set_torch_threads(None)
    with run_lock(run), writing_run(run), _progress() as bar:
        embeddings = Embeddings.load(run / "embeddings")
        epochs = bar.add_task("fitting", total=chosen.epochs)
        steps = bar.add_task("epoch", total=1.0)
        pictures = bar.add_task("thumbnails", total=None, visible=False)
        lists = bar.add_task("lists", total=None, visible=False)

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
            listed=lambda step, done, every: bar.update(
                lists, description=step, completed=done, total=max(every, 1), visible=True
            ),
        )
    best = record["log"][record["best_epoch"]]
    _console.print(f"best of {len(record['log'])} epochs: {_epoch(best)}")
    _console.print(
        f"{record['data']['items']:,} items, slots {', '.join(f'{name} {dim}' for name, dim in record['slots'])}, "
        f"{record['seconds']:.0f} s; ONNX Runtime agrees with PyTorch to {record['parity']['difference']:.1g}"
    )
    if record["lists"]:
        _console.print(_lists(record["lists"]))
    thumbnails = record["thumbnails"]
    if thumbnails["made"] or thumbnails["unreadable"]:
        skipped = f", {thumbnails['unreadable']:,} unreadable pictures skipped" if thumbnails["unreadable"] else ""
        _console.print(f"{thumbnails['made']:,} thumbnails{skipped}")


def _lists(record: Mapping[str, Any]) -> str:
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
    return ", ".join(parts)
