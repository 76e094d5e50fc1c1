"""`vlm2rec train` and `vlm2rec embed`: train the vision-language model and embed the catalogue with it."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli.offline.left_out import print_left_out
from cli.offline.progress import counted_progress
from cli.offline.ray_shards import (
    EngineOption,
    RayAddressOption,
    RayStorageOption,
    RayWorkersOption,
    WorkerThreadsOption,
    check_engine,
    ray_shards,
)
from cli.offline.threads import ThreadsOption, set_torch_threads
from index.machine.text_files import replace_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.progress import TaskID

    from training.backbones.trained_model import TrainedModel
    from training.config.run_config import RunConfig
    from training.data.dataset import Dataset
    from training.embedding.job import EncodeShards
    from training.embedding.store import Embeddings

_TRAINING = "train"
_MODEL = "model"
_EMBEDDINGS = "embeddings"
_UNREADABLE_SHOWN = 5
_LACKING = {
    "text": "no item has a text with a letter or digit in it: pictures and behaviour alone recommend",
    "image": "no item has a readable picture: texts and behaviour alone recommend",
}
_console = Console(highlight=False, soft_wrap=True)


def train(
    data: Annotated[str, typer.Argument(help="The data set: a directory, or s3://bucket/prefix.", metavar="DATA")],
    run: Annotated[Path, typer.Option("--run", help="The run directory; made if needed.", metavar="RUN")],
    interactions: Annotated[
        Path | None, typer.Option(help="Interactions instead of those in DATA (.csv or .parquet).")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration (TOML), copied to RUN/config.toml.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Start from this preset: tiny (the default), towers-minilm, siglip2-base, qwen3-vl-embedding-2b, "
            "embeddinggemma-2 or qwen2.5-vl-3b."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Instead of vlm.revision: the commit of a model from a hub, 40 hex digits.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the training in RUN, if there is one.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Instead of train.steps.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of train.seed.")] = None,
    threads: ThreadsOption = None,
) -> None:
    """Fine-tune a vision-language model on the histories, balanced between text and picture.

    Holds out every user's last two events. Writes model, checkpoints and log.jsonl to RUN/train, and RUN/report.html at
    the end. --resume continues an interrupted run with the same order of the data and the same losses. For several
    processes, use `torchrun --nproc-per-node N -m cli.main` instead of `vlm2rec`; they share each batch.
    """
    from index.machine.outputs import check_directory_writable
    from training.config.run_config import CONFIG_FILE, check_new_training, load_config
    from training.data.dataset import load_dataset
    from training.runs.disk import writing_run
    from training.runs.lock import finish_interrupted, run_lock

    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    if first:
        check_directory_writable(run, run / _TRAINING)
        finish_interrupted(run)
    stored_config = run / CONFIG_FILE
    use_stored = resume and config is None and preset is None and stored_config.is_file()
    path = stored_config if use_stored else config
    given = {"train.steps": steps, "train.seed": seed, "vlm.revision": revision}
    chosen = load_config(path, preset, {key: value for key, value in given.items() if value is not None})
    if not use_stored:
        check_new_training(chosen)
    if revision is not None and chosen.vlm.model is None:
        raise typer.BadParameter(
            "--revision is the commit of vlm.model, and none is set; leave it out, or set vlm.towers.text_revision and "
            "image_revision of towers"
        )
    dataset = load_dataset(data, interactions=interactions)
    set_torch_threads(threads)
    if first:
        print_left_out(dataset, _console)
        _print_licences(chosen)
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing_run(run, again="start the same command again with --resume to continue"))
        if not first:  # the first process holds the lock for all and writes the files
            train_model(dataset, chosen, run / _TRAINING, resume=resume, shown=False)
            return
        run.mkdir(parents=True, exist_ok=True)
        stack.enter_context(run_lock(run))
        _train_and_report(dataset, chosen, run, resume=resume)


def _train_and_report(dataset: "Dataset", chosen: "RunConfig", run: Path, *, resume: bool) -> None:
    """Train in a locked run directory and write configuration and report."""
    from training.config.run_config import CONFIG_FILE, to_toml
    from training.finetune.unreadable_pictures import recorded_unreadable

    if not (run / CONFIG_FILE).is_file():
        replace_text(run / CONFIG_FILE, to_toml(chosen))
    before = (run / _TRAINING / _MODEL).is_dir()
    model, done = train_model(dataset, chosen, run / _TRAINING, resume=resume)
    replace_text(run / CONFIG_FILE, to_toml(chosen))
    _console.print(f"trained {done:,} steps: {model}")
    _print_not_found(dataset.pictures_not_found())
    _print_unreadable(recorded_unreadable(run / _TRAINING))
    _report(dataset, run, changed=not before)


def train_model(
    dataset: "Dataset", chosen: "RunConfig", directory: Path, *, resume: bool, shown: bool = True
) -> tuple[Path, int]:
    """Train with a progress bar.

    Args:
        dataset: catalogue and interactions.
        chosen: the configuration.
        directory: of the training.
        resume: go on from the newest checkpoint, if there is one.
        shown: False for all but one of several processes.

    Returns:
        Path of the model, and number of finished steps.
    """
    from training.encoder.job import split_dataset
    from training.finetune.trained_events import newest_event
    from training.finetune.trainer import TrainingProgress, train_vlm

    split = split_dataset(dataset, chosen.encoder.cold_items)
    done = chosen.train.steps
    with counted_progress(shown=shown) as bar:
        task = bar.add_task("training", total=done)

        def report(now: TrainingProgress) -> None:
            nonlocal done
            done = now.step
            description = "training" if now.loss is None else f"training  loss {now.loss:.3f}"
            bar.update(task, completed=now.step, total=now.steps, description=description)

        def embedding(step: str, done: int, every: int) -> None:
            bar.update(task, description=step, completed=done, total=every)

        model = train_vlm(
            dataset,
            split.parts.train,
            directory,
            chosen,
            validation=split.parts.validation,
            newest_event=newest_event(dataset, split, validated=chosen.train.patience > 0),
            resume=resume,
            report=report,
            embedding=embedding,
        )
    return model, done


def _report(dataset: "Dataset", run: Path, *, changed: bool) -> None:
    """Write the report unless nothing changed; a failure never fails the finished training."""
    from cli.offline.report import REPORT_FILE, write_report
    from training.errors import TrainingError

    if not changed and (run / REPORT_FILE).is_file():
        return  # the present page may compare with other runs
    try:
        _, path = write_report(dataset, run)
    except TrainingError as error:
        _console.print(f"no report: {error}", markup=False)
    else:
        _console.print(f"report: {path}", markup=False)


def embed(
    data: Annotated[str, typer.Argument(help="The data set: a directory, or s3://bucket/prefix.", metavar="DATA")],
    run: Annotated[Path, typer.Option("--run", help="The run directory.", metavar="RUN")],
    no_vlm: Annotated[
        bool, typer.Option("--no-vlm", help="TF-IDF of the texts and simple picture features instead of a model.")
    ] = False,
    trust_times: Annotated[
        bool,
        typer.Option(
            "--trust-times", help="Treat a picture of the same path, size and time as unchanged without reading it."
        ),
    ] = False,
    threads: WorkerThreadsOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be embedded; change nothing.")] = False,
    engine: EngineOption = "process",
    ray_address: RayAddressOption = None,
    ray_workers: RayWorkersOption = None,
    ray_storage: RayStorageOption = None,
) -> None:
    """Embed the catalogue with the trained model and write RUN/embeddings; later only new and changed items.

    An item without a text or a readable picture lacks that modality; this is recorded and no error. Resumes after an
    interruption with the next shard.
    """
    from index.machine.outputs import check_directory_writable
    from training.data.dataset import load_dataset
    from training.runs.disk import writing_run
    from training.runs.lock import finish_interrupted, run_lock

    check_engine(engine, ray_address, ray_workers, ray_storage)
    if no_vlm and (dry_run or engine == "ray" or trust_times):
        raise typer.BadParameter(
            "--no-vlm computes statistics of the whole catalogue; leave out --engine, --dry-run and --trust-times"
        )
    if not dry_run:
        check_directory_writable(run, run / _EMBEDDINGS)
        finish_interrupted(run)
    dataset = load_dataset(data)
    set_torch_threads(threads)
    if no_vlm:
        from training.embedding.baseline_job import baseline_embeddings

        with writing_run(run):
            run.mkdir(parents=True, exist_ok=True)
            with run_lock(run), counted_progress() as bar:
                embeddings, _ = baseline_embeddings(dataset, run / _EMBEDDINGS, again=True, progress=bar)
        print_baseline(embeddings, dataset)
        return
    from training.backbones.trained_model import TrainedModel

    model = TrainedModel.of(run)
    _print_licences(model.config)
    if dry_run:
        _would_embed(dataset, model, trust_times=trust_times)
        return
    encode_shards = ray_shards(
        engine, dataset, run, address=ray_address, most=ray_workers, threads=threads, storage=ray_storage
    )
    with run_lock(run), writing_run(run):
        embed_items(dataset, model, trust_times=trust_times, encode_shards=encode_shards)


def _would_embed(dataset: "Dataset", model: "TrainedModel", *, trust_times: bool) -> None:
    from training.embedding.job import pending_items
    from training.embedding.plan import work_done

    pending = pending_items(dataset, model.provenance, model.embeddings, trust_times=trust_times)
    wanted = int(pending.wanted.sum())
    done = work_done(model.embeddings, pending.wanted_contents(), pending.model) if wanted else 0
    if pending.reason is not None:
        _console.print(f"every item would be embedded: {pending.reason}", markup=False)
    _console.print(
        f"would embed {wanted - done:,} of {len(dataset):,} ({done:,} are done by an interrupted job, "
        f"{pending.reused:,} known by content); nothing was changed"
    )


def embed_items(
    dataset: "Dataset", model: "TrainedModel", *, trust_times: bool, encode_shards: "EncodeShards | None" = None
) -> "Embeddings":
    """Embed new and changed items with a progress bar, print how it went, and return the embeddings of all."""
    from training.embedding.job import embed_catalogue, pending_items

    with counted_progress() as bar:
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
            encode_shards=encode_shards,
        )
    delta, wanted = pending.delta, int(pending.wanted.sum())
    resumed = f" ({done.resumed:,} of them before an interruption)" if done.resumed else ""
    _console.print(
        f"embedded {wanted:,} of {len(dataset):,}{resumed}: {delta.new:,} new, {delta.changed:,} changed, "
        f"{delta.unchanged:,} unchanged, {delta.deleted:,} deleted"
    )
    if pending.reused:
        _console.print(f"{pending.reused:,} of the new and changed ones needed no embedding: their content is known")
    _print_not_found(int(pending.contents.not_found().sum()))
    _console.print(f"vectors: {_slots(done.embeddings)}")
    _print_unreadable(done.embeddings.unreadable)
    return done.embeddings


def print_baseline(embeddings: "Embeddings", dataset: "Dataset") -> None:
    """Print what was embedded without a vision-language model."""
    _console.print(f"embedded {len(embeddings):,} items: {_slots(embeddings)}")
    for name, lacking in _LACKING.items():
        if not embeddings.vectors[name].any():
            _console.print(lacking)
    _print_not_found(dataset.pictures_not_found())
    _print_unreadable(embeddings.unreadable)


def _print_licences(config: "RunConfig") -> None:
    """Name the licence of the pretrained models, if there are any."""
    from training.backbones.licences import licences

    found = licences(config.vlm)
    if found:
        _console.print(f"licence of the pretrained model: {', '.join(found)}", markup=False)


def _print_not_found(lost: int) -> None:
    """Count the items whose picture does not exist or lies outside the data set."""
    if lost:
        _console.print(f"{lost:,} items name a picture that is not found; `vlm2rec data check` lists them")


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
