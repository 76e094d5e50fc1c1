"""`vlm2rec reindex`: embeds changed items, then builds, gates and publishes a bundle."""

import contextlib
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cli.offline.ray_shards import (
    EngineOption,
    RayAddressOption,
    RayStorageOption,
    RayWorkersOption,
    WorkerThreadsOption,
    check_engine,
    ray_shards,
)
from cli.offline.threads import set_torch_threads
from cli.online.bundles_in_use import RedisOption
from cli.online.index_options import (
    BoundOption,
    BoundsOption,
    CodesOption,
    EvaluationOption,
    ForceOption,
    FreshShareOption,
    KindOption,
    MemoryOption,
    TargetRecallOption,
    index_spec,
)
from cli.online.published import RegistryOption, published_at
from index.machine.text_files import replace_text

if TYPE_CHECKING:
    from index.bundle.registries import AnyRegistry
    from training.embedding.job import Progress
    from training.nightly.record import ReindexRecord
    from training.nightly.reindex import Findings, ReindexJob
    from training.nightly.volume_bounds import VolumeBounds

_EXIT_REFUSED = 1
_EXIT_BAD_INPUT = 2
_EXIT_BUG = 70  # EX_SOFTWARE
_EXIT_BUSY = 75  # EX_TEMPFAIL
_EXIT_INTERRUPTED = 130
_EXIT_TERMINATED = 143
_UNREADABLE_SHOWN = 5

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)

RunOption = Annotated[
    Path, typer.Option("--run", help="The run directory, with a trained model and a fitted encoder.", metavar="RUN")
]
InteractionsOption = Annotated[
    Path | None, typer.Option(help="Interactions instead of those in DATA (.csv or .parquet).")
]
KeepOption = Annotated[
    int | None, typer.Option(min=1, help="Afterwards keep only this many bundles, those published last.")
]
TrustTimesOption = Annotated[
    bool,
    typer.Option(
        "--trust-times", help="Treat a picture of the same path, size and time as unchanged without reading it."
    ),
]
TextfileOption = Annotated[
    Path | None, typer.Option(help="Write metrics for node_exporter's textfile collector (a .prom file).")
]


def reindex(
    data: Annotated[
        str, typer.Argument(help="The current data set: a directory, or s3://bucket/prefix.", metavar="DATA")
    ],
    run: RunOption,
    registry: RegistryOption,
    interactions: InteractionsOption = None,
    kind: KindOption = "auto",
    codes: CodesOption = "auto",
    memory_mb: MemoryOption = None,
    target_recall: TargetRecallOption = 0.97,
    fresh_share: FreshShareOption = 0.0,
    bounds: BoundsOption = None,
    bound: BoundOption = None,
    evaluation: EvaluationOption = None,
    threads: WorkerThreadsOption = None,
    keep: KeepOption = None,
    redis: RedisOption = None,
    force: ForceOption = False,
    trust_times: TrustTimesOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; change nothing.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the summary to this file.")] = None,
    textfile: TextfileOption = None,
    pushgateway: Annotated[str | None, typer.Option(help="Push metrics to this Pushgateway (host:port).")] = None,
    engine: EngineOption = "process",
    ray_address: RayAddressOption = None,
    ray_workers: RayWorkersOption = None,
    ray_storage: RayStorageOption = None,
) -> None:
    """Bring the published index up to date with the catalogue: embed only new and changed items, build, gate, publish.

    Resumes after being killed at any moment. Exit codes: 0 published or nothing to do, 1 refused by the gate or because
    too much of the data is gone, 2 bad input, 75 another job works on the run, 130 interrupted, 143 stopped by SIGTERM,
    70 a defect of the program.
    """
    check_engine(engine, ray_address, ray_workers, ray_storage)
    with _termination() as stop_requested:
        from training.nightly.record import ReindexRecord

        record, started = ReindexRecord(), time.monotonic()

        def work() -> None:
            from cli.online.index import read_evaluation
            from training.data.dataset import load_dataset
            from training.nightly.reindex import ReindexJob

            _check_files(json_file, textfile)
            target = published_at(registry)
            if not dry_run:
                _check_places(run, target)
            set_torch_threads(threads)
            volume, others = _bounds(bounds, bound or [])
            spec = index_spec(kind, codes, memory_mb, target_recall, bounds, others, threads, fresh_share)
            dataset = load_dataset(data, interactions=interactions)
            figures = read_evaluation(run, evaluation)
            spare = _spare(redis, ask_now=keep is not None and not dry_run)
            by = "process" if dry_run else engine
            shards = ray_shards(
                by, dataset, run, address=ray_address, most=ray_workers, threads=threads, storage=ray_storage
            )
            job = ReindexJob(run, dataset, target, spec, figures, keep, force, trust_times, spare, volume, shards)
            _dry_run(job, record, stop_requested) if dry_run else _carry_out(job, record, stop_requested)

        _guard(work, record)
        record.seconds = time.monotonic() - started
        _report(record, json_file)
        if not dry_run:
            _export_metrics(record, run, textfile, pushgateway)
    if record.exit_code:
        raise typer.Exit(record.exit_code)


def _bounds(file: Path | None, options: list[str]) -> "tuple[VolumeBounds, list[str]]":
    """The bounds of what may be lost, and the options that name others."""
    from training.nightly.volume_bounds import VolumeBounds

    names = VolumeBounds.names()
    others = [option for option in options if option.partition("=")[0].strip() not in names]
    return VolumeBounds.read(file, options), others


def _spare(redis: str | None, *, ask_now: bool) -> Callable[[], frozenset[str] | None]:
    """Asks which bundles `--keep` spares.

    Args:
        redis: URL of the service's Redis.
        ask_now: also now, so that a wrong URL ends the job before hours of work and not after it.
    """
    spare = partial(_in_use, redis)
    if ask_now:
        spare()
    return spare


def _in_use(redis: str | None) -> frozenset[str] | None:
    """Ids of the bundles that `--keep` spares; None, with a line, where Redis does not answer."""
    from cli.online.bundles_in_use import in_use_by_services
    from service.errors import OperatorStateUnavailable

    try:
        return in_use_by_services(redis)
    except OperatorStateUnavailable as error:
        _err.print(f"--keep deletes nothing as long as pins cannot be read: {error}", markup=False)
        return None


def _dry_run(job: "ReindexJob", record: "ReindexRecord", stop_requested: Callable[[], bool]) -> None:
    """Print what would be done; fails if another job runs, but does not stop one from starting."""
    from training.nightly.reindex import find_changes
    from training.runs.lock import run_lock

    with run_lock(job.run, shared=True):
        pass
    with _progress() as report:
        findings = find_changes(job, _stoppable(report, stop_requested))
    _count(findings, record)
    record.outcome = "dry run"
    before = findings.embedded_before()
    if findings.pending.reason is not None and record.to_embed:
        _out.print(f"would embed every item: {findings.pending.reason}", markup=False)
    more = f", {before:,} more were embedded by an interrupted job" if before else ""
    _out.print(f"would embed {record.to_embed - before:,} of {record.items:,} items{more}")
    findings.check_volume(job)
    _out.print("would publish nothing" if findings.bundle else "would build a bundle and publish it")


def _carry_out(job: "ReindexJob", record: "ReindexRecord", stop_requested: Callable[[], bool]) -> None:
    from training.nightly.reindex import find_changes, run_reindex
    from training.runs.lock import run_lock

    with run_lock(job.run), _progress() as report:
        findings = find_changes(job, _stoppable(report, stop_requested))
        _count(findings, record)
        if findings.pending.reason is not None and record.to_embed:
            _err.print(f"embedding every item: {findings.pending.reason}", markup=False)
        run_reindex(job, findings, record, progress=report, stopped=stop_requested)


def _stoppable(report: "Progress", stop_requested: Callable[[], bool]) -> "Progress":
    """Wrap a progress callback so that it raises JobStopped once a stop is requested."""
    from training.errors import JobStopped

    def reporting(step: str, done: int, every: int) -> None:
        report(step, done, every)
        if stop_requested():
            raise JobStopped(f"stopped while {step}; start the same command again to go on")

    return reporting


def _count(findings: "Findings", record: "ReindexRecord") -> None:
    delta, pending = findings.delta, findings.pending
    record.items = len(pending.contents)
    record.new, record.changed = delta.new, delta.changed
    record.unchanged, record.deleted = delta.unchanged, delta.deleted
    record.to_embed, record.reused = findings.to_embed, pending.reused
    record.not_found = int(pending.contents.not_found().sum())
    record.why, record.losses = list(findings.why), list(findings.losses)
    record.unreadable = pending.unreadable_before()


def _guard(work: Callable[[], None], record: "ReindexRecord") -> None:
    """Do the work; turn any exception into an outcome, an exit code and a message."""
    from index.errors import GateRefused, IndexingError
    from service.errors import ServiceError
    from training.errors import JobStopped, RunBusy, TrainingError

    def end(outcome: str, code: int, error: BaseException) -> None:
        record.outcome, record.exit_code, record.error = outcome, code, str(error) or outcome

    try:
        work()
        record.exit_code = 0
    except GateRefused as error:
        end("refused", _EXIT_REFUSED, error)
    except RunBusy as error:
        end("busy", _EXIT_BUSY, error)
    except JobStopped as error:
        end("stopped", _EXIT_TERMINATED, error)
    except KeyboardInterrupt as error:
        end("interrupted", _EXIT_INTERRUPTED, error)
    except (TrainingError, IndexingError, ServiceError) as error:
        end("failed", _EXIT_BAD_INPUT, error)
    except Exception as error:  # noqa: BLE001 - a defect gets an exit code of its own
        traceback.print_exc()
        end("failed", _EXIT_BUG, error)


def _report(record: "ReindexRecord", json_file: Path | None) -> None:
    if record.error is not None:
        word = "error" if record.outcome == "failed" else record.outcome
        _err.print(f"{word}: {record.error}", markup=False, style="red")
    if record.items:
        _out.print(
            f"{record.items:,} items: {record.new:,} new, {record.changed:,} changed, {record.unchanged:,} unchanged, "
            f"{record.deleted:,} deleted, {len(record.unreadable):,} with an unreadable picture, "
            f"{record.not_found:,} with one that is not found"
        )
    for item_id, reason in list(record.unreadable.items())[:_UNREADABLE_SHOWN] if record.exit_code == 0 else ():
        _out.print(f"  unreadable: {item_id}: {reason}", markup=False)
    if record.outcome == "published":
        resumed = f", {record.resumed:,} before an interruption" if record.resumed else ""
        reused = f", {record.reused:,} known by content" if record.reused else ""
        _out.print(f"embedded {record.encoded:,}{resumed}{reused}; {record.saved:.2%} of the embedding saved")
        for loss in record.losses:
            if not loss.check.passed:
                _warn(f"published by force: {loss}")
    for why in record.why:
        _out.print(f"because {why}" if record.outcome in {"published", "refused", "dry run"} else why, markup=False)
    if record.pruned:
        _out.print(f"deleted {len(record.pruned)} old bundles: {', '.join(record.pruned)}", markup=False)
    if record.outcome in {"published", "nothing to do"}:
        _out.print(f"{record.outcome}: {record.bundle} in {record.seconds:.1f} s", markup=False)
    if json_file is not None:
        try:
            replace_text(json_file, json.dumps(record.as_json(), indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            _warn(f"{json_file}: the summary cannot be written ({error.strerror}); check --json")


def _export_metrics(record: "ReindexRecord", run: Path, textfile: Path | None, pushgateway: str | None) -> None:
    if textfile is None and pushgateway is None:
        return
    from cli.offline.reindex_metrics import export, metrics_of
    from training.nightly.record import ReindexState
    from training.nightly.reindex import REINDEX_DIRECTORY

    metrics = metrics_of(record, ReindexState(run / REINDEX_DIRECTORY))
    export(metrics, textfile=textfile, gateway=pushgateway, run=run.resolve().name, warn=_warn)


def _check_files(json_file: Path | None, textfile: Path | None) -> None:
    """Refuse an output file that cannot be written before the job, which can take hours.

    Raises:
        ReindexError: its directory is missing, or metrics would go to a device.
        DiskError: it cannot be written.
    """
    from index.machine.disk import is_stream
    from index.machine.outputs import check_file_writable
    from training.errors import ReindexError

    for file in (json_file, textfile):
        if file is None:
            continue
        streamed = is_stream(file)
        if (streamed and file == textfile) or not (streamed or file.parent.exists()):
            raise ReindexError(f"{file}: cannot be written; name a file in an existing directory")
        check_file_writable(file)


def _check_places(run: Path, registry: "AnyRegistry") -> None:
    """Refuse a run or a registry that cannot be written, before the job.

    Raises:
        DiskError: a directory cannot be written.
        RegistryError: the object store does not permit it.
    """
    from index.bundle.registries import check_publishable
    from index.machine.outputs import check_directory_writable
    from training.nightly.reindex import REINDEX_DIRECTORY

    check_directory_writable(run, run / REINDEX_DIRECTORY)
    check_publishable(registry)


@contextlib.contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM into a stop request; yields a function that tells whether it arrived."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def _warn(message: str) -> None:
    _err.print(f"warning: {message}", markup=False, style="yellow")


@contextlib.contextmanager
def _progress() -> Iterator["Progress"]:
    """Show a progress bar for each step on stderr."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_err, transient=True) as bars:

        def report(step: str, done: int, every: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step)
            counted = f"{step} {done:,} of {every:,}" if step == "embedding" else step
            bars.update(tasks[step], completed=done, total=every, description=counted)

        yield report
