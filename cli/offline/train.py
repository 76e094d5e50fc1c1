"""`vlm2rec train` and `vlm2rec embed`: the vision-language model and the vectors that it makes of a catalogue."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli.offline.threads import set_torch_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.progress import Progress, TaskID

    from training.backbones.trained_model import TrainedModel
    from training.data.dataset import Dataset
    from training.embedding.store import Embeddings

_TRAINING = "train"
_MODEL = "model"
_EMBEDDINGS = "embeddings"
_UNREADABLE_SHOWN = 5
_console = Console(highlight=False, soft_wrap=True)


def train(
    data: Annotated[Path, typer.Argument(help="The data set.", metavar="DATA")],
    run: Annotated[Path, typer.Option("--run", help="The run directory; made if needed.", metavar="RUN")],
    interactions: Annotated[
        Path | None, typer.Option(help="Interactions in place of those in DATA (.csv or .parquet).")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration (TOML), copied to RUN/config.toml.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Start from this preset: tiny (the default) or qwen2.5-vl-3b.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what RUN holds, if it holds anything.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="In place of train.steps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="In place of train.seed.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default as many as there are cores.")] = None,
) -> None:
    """Fine-tune a vision-language model on the histories, balanced between text and picture.

    Every user's last two events are held out. The model, its checkpoints and log.jsonl go to RUN/train. A run that was
    interrupted goes on with --resume, with the same order of the data and the same losses. At the end RUN/report.html
    shows how it went. For several processes put `torchrun --nproc-per-node N -m cli.main` in place of `vlm2rec`; they
    share each batch.
    """
    from training.config.run_config import CONFIG_FILE, load_config, to_toml
    from training.data.dataset import load_dataset
    from training.encoder.job import split_dataset
    from training.finetune.trainer import UNREADABLE_FILE, TrainingProgress, train_vlm
    from training.runs.disk import writing_run

    kept = run / CONFIG_FILE
    path = kept if resume and config is None and preset is None and kept.is_file() else config
    given = {"train.steps": steps, "train.seed": seed}
    chosen = load_config(path, preset, {key: value for key, value in given.items() if value is not None})
    dataset = load_dataset(data, interactions=interactions)
    split = split_dataset(dataset, chosen.encoder.cold_items)
    set_torch_threads(threads)
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    with writing_run(run, again="start the same command again with --resume, it goes on where it was"):
        if first and not kept.is_file():
            _write(kept, to_toml(chosen))
        before = (run / _TRAINING / _MODEL).is_dir()
        with _progress(shown=first) as bar:
            task = bar.add_task("training", total=chosen.train.steps)
            done = chosen.train.steps

            def report(now: TrainingProgress) -> None:
                nonlocal done
                done = now.step
                shown = "training" if now.loss is None else f"training  loss {now.loss:.3f}"
                bar.update(task, completed=now.step, description=shown)

            model = train_vlm(
                dataset,
                split.parts.train,
                run / _TRAINING,
                chosen,
                validation=split.parts.validation,
                resume=resume,
                report=report,
            )
        if first:
            _write(kept, to_toml(chosen))
    if first:
        _console.print(f"trained {done:,} steps: {model}")
        _print_unreadable(json.loads((run / _TRAINING / UNREADABLE_FILE).read_text(encoding="utf-8")))
        _report(dataset, run, anew=not before)


def _report(dataset: "Dataset", run: Path, *, anew: bool) -> None:
    """Draw the run, unless it is as it was; that never makes a training fail which has just ended."""
    from cli.offline.report import REPORT_FILE, write_report
    from training.errors import TrainingError

    if not anew and (run / REPORT_FILE).is_file():
        return  # what is there may tell more, e.g. of other runs
    try:
        _, path = write_report(dataset, run)
    except TrainingError as error:
        _console.print(f"no report: {error}", markup=False)
    else:
        _console.print(f"report: {path}", markup=False)


def embed(
    data: Annotated[Path, typer.Argument(help="The data set.", metavar="DATA")],
    run: Annotated[Path, typer.Option("--run", help="The run directory.", metavar="RUN")],
    no_vlm: Annotated[
        bool, typer.Option("--no-vlm", help="TF-IDF of the texts and simple picture features instead of a model.")
    ] = False,
    trust_times: Annotated[
        bool,
        typer.Option("--trust-times", help="Take a picture of the same path, size and time for unchanged, unread."),
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default as many as there are cores.")] = None,
) -> None:
    """Embed the catalogue with the trained model and write RUN/embeddings; afterwards only new and changed items.

    An item without a text or a readable picture lacks that modality, which is recorded and no error. Run it again after
    an interruption and it goes on with the next shard.
    """
    from training.data.dataset import load_dataset
    from training.runs.disk import writing_run
    from training.runs.lock import run_lock

    dataset = load_dataset(data)
    set_torch_threads(threads)
    if no_vlm:
        from training.embedding.baseline_features import embed_without_vlm

        with writing_run(run):
            run.mkdir(parents=True, exist_ok=True)
            with run_lock(run), _progress() as bar:
                embeddings = embed_without_vlm(dataset, progress=bar)
                embeddings.save(run / _EMBEDDINGS)
        _console.print(f"embedded {len(embeddings):,} items: {_slots(embeddings)}")
        _print_unreadable(embeddings.unreadable)
        return
    from training.backbones.trained_model import TrainedModel

    model = TrainedModel.of(run)
    with run_lock(run), writing_run(run):
        _embed(dataset, model, trust_times=trust_times)


def _embed(dataset: "Dataset", model: "TrainedModel", *, trust_times: bool) -> None:
    from training.embedding.job import embed_catalogue, pending_items

    with _progress() as bar:
        tasks: dict[str, TaskID] = {}

        def report(step: str, done: int, every: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step)
            bar.update(tasks[step], completed=done, total=every)

        pending = pending_items(dataset, model.provenance, model.embeddings, trust_times=trust_times, progress=report)
        if pending.reason is not None:
            bar.console.print(f"embedding every item: {pending.reason}", markup=False)
        done = embed_catalogue(
            dataset,
            pending,
            model.load,
            model.embeddings,
            shard_items=model.config.embed.shard_items,
            batch_items=model.config.embed.batch_items,
            progress=report,
        )
    delta, wanted = pending.delta, int(pending.wanted.sum())
    resumed = f" ({done.resumed:,} of them before an interruption)" if done.resumed else ""
    _console.print(
        f"embedded {wanted:,} of {len(dataset):,}{resumed}: {delta.new:,} new, {delta.changed:,} changed, "
        f"{delta.unchanged:,} unchanged, {delta.deleted:,} deleted"
    )
    if pending.reused:
        _console.print(f"{pending.reused:,} of the new and changed ones needed no embedding: known by content")
    lost = int(pending.contents.not_found().sum())
    if lost:
        _console.print(f"{lost:,} items name a picture that is not found; `vlm2rec data check` lists them")
    _console.print(f"vectors: {_slots(done.embeddings)}")
    _print_unreadable(done.embeddings.unreadable)


def _print_unreadable(unreadable: "Mapping[str, str]") -> None:
    """Count the items whose picture could not be used, and name the first."""
    if not unreadable:
        return
    _console.print(f"items with an unreadable picture, which counts as none: {len(unreadable):,}")
    for item_id, reason in list(unreadable.items())[:_UNREADABLE_SHOWN]:
        _console.print(f"  unreadable: {item_id}: {reason}", markup=False)


def _slots(embeddings: "Embeddings") -> str:
    present = {name: int(block.any(axis=1).sum()) for name, block in embeddings.vectors.items()}
    return ", ".join(f"{name} {count:,} × {embeddings.dims()[name]}" for name, count in present.items())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _progress(*, shown: bool = True) -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not shown,
    )
