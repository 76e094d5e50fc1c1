"""`vlm2rec evaluate`: compares a run with baselines, with each slot alone and with the vision-language model."""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cli.offline.evaluation_page import EVALUATION_DIRECTORY, figures_file, report_tables
from cli.offline.left_out import print_left_out
from cli.offline.progress import counted_progress
from cli.offline.threads import MOST_THREADS, set_torch_threads

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from training.data.dataset import Dataset
    from training.encoder.job import Split
    from training.evaluation.evaluate import System, TargetSet
    from training.evaluation.fitted_run import FittedRun
    from training.ranking.saved_ranks import RankedTable

_MEASURE_DAYS = 7.0
_TIME_SPLIT_RULE = (
    "--split time goes with --measure-days, --interactions, --targets, --against, --threads and --json alone"
)
_OTHER_SPLIT = (
    "the vision-language model was trained on other data than this split, or by another version: it may have seen "
    "the targets"
)

_console = Console(highlight=False, soft_wrap=True)

DataArgument = Annotated[
    str,
    typer.Argument(
        help="The data set that the encoder was fitted on: a directory, or s3://bucket/prefix.", metavar="DATA"
    ),
]
RunOption = Annotated[Path, typer.Option("--run", help="The run directory.", metavar="RUN")]
InteractionsOption = Annotated[
    Path | None, typer.Option(help="Interactions instead of those in DATA; the same as for fit-encoder.")
]
UsersOption = Annotated[
    Path | None, typer.Option(help="Interactions of further users; the last event of each is the target.")
]
ValidationOption = Annotated[
    bool, typer.Option("--validation", help="Use the validation targets, to choose settings without touching test.")
]
DirectOption = Annotated[
    bool | None,
    typer.Option(
        "--direct/--no-direct",
        help="Also rank by the vectors of the vision-language model, trained and untrained; default if RUN has one.",
    ),
]
EaseOption = Annotated[
    bool | None,
    typer.Option("--ease/--no-ease", help="Also rank by EASE; default up to 8,000 items with events, at most 20,000."),
]
FreshShareOption = Annotated[
    float,
    typer.Option(
        min=0, max=1, help="Add a row of the served encoder that keeps this share of ten places for new items."
    ),
]
TargetsOption = Annotated[int | None, typer.Option(min=1, help="Most targets of a table, evenly spaced.")]
AgainstOption = Annotated[
    str | None,
    typer.Option(help="The row to compare with; default popularity, for cold items TF-IDF neighbours."),
]
RanksOption = Annotated[
    list[str] | None,
    typer.Option(metavar="[LABEL=]FILE", help="Add the rows of another run or library (--save-ranks); repeatable."),
]
SaveRanksOption = Annotated[Path | None, typer.Option(help="Write every rank to this file, for --ranks.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", help="Write the figures here; default RUN/evaluation/TABLE.json.")
]
EncoderThreadsOption = Annotated[
    int, typer.Option("--threads", min=1, max=MOST_THREADS, help="Threads of the encoder.")
]


class HeldOut(StrEnum):
    """Which events are held out."""

    LEAVE_ONE_OUT = "leave-one-out"
    TIME = "time"


HeldOutOption = Annotated[
    HeldOut,
    typer.Option(
        "--split",
        help="leave-one-out: the last event of every user. time: the events of the last days; the run's recipe is "
        "fitted anew on what lies before them.",
    ),
]
MeasureDaysOption = Annotated[
    float | None,
    typer.Option(min=0.01, help="With --split time: the events of these last days are held out; default 7."),
]


def evaluate(
    data: DataArgument,
    run: RunOption,
    interactions: InteractionsOption = None,
    users: UsersOption = None,
    validation: ValidationOption = False,
    direct: DirectOption = None,
    ease: EaseOption = None,
    targets: TargetsOption = None,
    fresh_share: FreshShareOption = 0.0,
    against: AgainstOption = None,
    ranks: RanksOption = None,
    save_ranks: SaveRanksOption = None,
    json_file: JsonOption = None,
    threads: EncoderThreadsOption = 1,
    held_out: HeldOutOption = HeldOut.LEAVE_ONE_OUT,
    measure_days: MeasureDaysOption = None,
) -> None:
    """Rank the whole catalogue for every held-out event: baselines, the VLM itself, the encoder, each slot alone.

    Excludes the user's history, as the service does, so a target in the history is a miss; a second table omits such
    targets. A run fitted with exclude_seen = false excludes nothing. Ties count by their expected gain. "text only"
    sets every other slot to zero on both sides; the lists of text still count, and there is a row without them, too.
    Ratios have paired bootstrap intervals. The tables are saved as JSON
    and Markdown. Encoding histories with a vision-language model resumes after an interruption.
    """
    from cli.offline.time_split import evaluate_by_time
    from training.data.dataset import load_dataset
    from training.encoder.encoder_files import ENCODER_DIRECTORY
    from training.evaluation.evaluate import fresh_targets, measured_tables, rank_sets, rankers, target_sets
    from training.evaluation.fitted_run import FittedRun
    from training.ranking.saved_ranks import save_ranks as write_ranks

    set_torch_threads(None)
    if held_out is HeldOut.TIME:
        if users or validation or direct or ease or fresh_share or ranks or save_ranks:
            raise typer.BadParameter(_TIME_SPLIT_RULE)
        _check_outputs(run, json_file, None)
        days = _MEASURE_DAYS if measure_days is None else measure_days
        evaluate_by_time(data, run, interactions, days, targets, against, json_file, threads)
        return
    _check_last_events(measure_days, users, validation=validation)
    _check_outputs(run, json_file, save_ranks)
    fitted = FittedRun.load(run / ENCODER_DIRECTORY, threads=threads)
    dataset = load_dataset(data, interactions=interactions)
    print_left_out(dataset, _console)
    split, fresh = fitted.split(dataset), None
    if fitted.record.get("refit"):
        _console.print("note: measured is the encoder fitted without held-out events; its refit on every event serves")
    if users is not None:
        others = load_dataset(data, interactions=users)
        print_left_out(others, _console, of="further users: ")
        fresh = fresh_targets(others.interactions, dataset.item_ids(), split)
    sets = target_sets(split, fresh=fresh, on_validation=validation, most=targets)
    about = {name: fitted.record[name] for name in ("model", "data", "config")} | {"lists": fitted.list_weights}
    with counted_progress() as bar:
        baselines, settings = _baselines(run, fitted, dataset, split, ease, bar)
        systems, about = rankers(fitted, split, dataset.texts(), baselines), about | {"baselines": settings}
        systems |= _with_fresh_places(fitted, systems, fresh_share)
        if _has_model(run) if direct is None else direct:
            found, description = _direct(run, dataset, split, sets, bar)
            systems, about = systems | found, about | description
        _check_rows(sets, systems, ranks or (), against, len(dataset), exclude_seen=fitted.exclude_seen)
        task = bar.add_task("ranking", total=len(systems) * sum(len(part.targets) for part in sets))
        ranked = rank_sets(
            sets, systems, exclude_seen=fitted.exclude_seen, advance=lambda done: bar.advance(task, done)
        )
    if save_ranks is not None:
        write_ranks(save_ranks, ranked)
    tables = measured_tables(_joined(ranked, ranks or ()), split)
    report_tables(tables, against, json_file or figures_file(run, sets[0].name), about)


def _check_outputs(run: Path, json_file: Path | None, ranks_file: Path | None) -> None:
    """Refuse a file of figures or ranks that cannot be written, before the minutes that ranking takes.

    Raises:
        EvaluationError: ranks would go to a device or a pipe.
        DiskError: a file cannot be written.
    """
    from index.machine.outputs import check_directory_writable, check_file_writable
    from training.ranking.saved_ranks import check_ranks_file

    if ranks_file is not None:
        check_ranks_file(ranks_file)
        check_file_writable(ranks_file)
    if json_file is None:
        check_directory_writable(run / EVALUATION_DIRECTORY)
    else:
        check_file_writable(json_file)


def _check_last_events(measure_days: float | None, users: Path | None, *, validation: bool) -> None:
    """Refuse options that would have no effect where the last event of each user is held out."""
    if measure_days is not None:
        raise typer.BadParameter("--measure-days goes with --split time alone")
    if users is not None and validation:
        raise typer.BadParameter("--users and --validation name different targets; give one of them")


def _baselines(
    run: Path, fitted: "FittedRun", dataset: "Dataset", split: "Split", ease: bool | None, bar: "Progress"
) -> "tuple[dict[str, System], dict[str, Any]]":
    """Item kNN, EASE and the mean of the content; and the settings that validation chose."""
    import numpy as np

    from training.embedding.store import Embeddings
    from training.errors import EmbeddingsError
    from training.evaluation.interaction_baselines import interaction_baselines
    from training.ranking.baselines import ContentMean
    from training.ranking.table import CONTENT_MEAN

    items, tasks = len(fitted.table), _Tasks(bar)
    found = interaction_baselines(
        split.parts, items, ease=ease, exclude_seen=fitted.exclude_seen, progress=tasks.report
    )
    for note in found.notes:
        bar.console.print(f"note: {note}", markup=False)
    everything = np.ones(items, dtype=np.bool_)
    systems: dict[str, System] = {name: (ranker, everything) for name, ranker in found.systems.items()}
    try:
        embeddings = Embeddings.load(run / "embeddings", check=False)
    except EmbeddingsError as error:
        bar.console.print(f"note: no {CONTENT_MEAN} row: {error}", markup=False)
        return systems, found.settings
    if embeddings.item_ids == dataset.item_ids():
        content = ContentMean(embeddings.vectors, fitted.encoder.max_history)
        systems[CONTENT_MEAN] = (content, content.findable)
    else:
        bar.console.print(f"note: no {CONTENT_MEAN} row: {run / 'embeddings'} is of other items", markup=False)
    return systems, found.settings


def _with_fresh_places(fitted: "FittedRun", systems: "Mapping[str, System]", share: float) -> "dict[str, System]":
    """The row of the served encoder with places kept for new items; none for a share of 0."""
    from training.evaluation.evaluate import SERVED
    from training.ranking.fresh_places import FreshPlaces

    if not share:
        return {}
    ranker, findable = systems[SERVED]
    new = fitted.table.popularity == 0
    kept = FreshPlaces(ranker, new, findable, share, exclude_seen=fitted.exclude_seen)
    return {f"{SERVED}, fresh share {share:g}": (kept, findable)}


class _Tasks:
    """A bar for every step that reports its progress."""

    def __init__(self, bar: "Progress") -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def report(self, step: str, done: int, every: int) -> None:
        """Show how much of a step is done."""
        if step not in self._tasks:
            self._tasks[step] = self._bar.add_task(step)
        self._bar.update(self._tasks[step], completed=done, total=every)


def _has_model(run: Path) -> bool:
    from training.backbones.identity import MODEL_DIRECTORY
    from training.backbones.trained_model import TRAINING_DIRECTORY

    return (run / TRAINING_DIRECTORY / MODEL_DIRECTORY).is_dir()


def _direct(
    run: Path, dataset: "Dataset", split: "Split", sets: "Sequence[TargetSet]", bar: "Progress"
) -> "tuple[dict[str, System], dict[str, Any]]":
    """Systems of the run's vision-language model, and its description for the saved file."""
    from training.backbones.trained_model import TrainedModel
    from training.evaluation.vlm_systems import direct_systems, trained_on
    from training.runs.disk import writing_run
    from training.runs.lock import run_lock

    model = TrainedModel.of(run)
    histories = [history for part in sets for history in part.targets.histories]
    with run_lock(run), writing_run(run):
        systems = direct_systems(model, dataset, histories, progress=_Tasks(bar).report)
    same = trained_on(model, dataset, split)
    if not same:
        bar.console.print(f"note: {_OTHER_SPLIT}", markup=False)
    loss = model.config.loss.model_dump(mode="json")
    return systems, {"vlm": {"model": model.provenance, "loss": loss, "trained_on_this_split": same}}


def _check_rows(
    sets: "Sequence[TargetSet]",
    systems: "Mapping[str, System]",
    given: Iterable[str],
    against: str | None,
    items: int,
    *,
    exclude_seen: bool,
) -> None:
    """Refuse files of ranks and a row to compare with before minutes of ranking, not after them."""
    from training.errors import EvaluationError
    from training.ranking.saved_ranks import RankedTable

    empty = [RankedTable(part.name, part.targets, items, {}, part.whole, exclude_seen) for part in sets]
    names = [*systems, *(name for part in _joined(empty, given) for name in part.rankings)]
    if against is not None and against not in names:
        raise EvaluationError(f"no row {against!r}; the table has {list(dict.fromkeys(names))}")


def _joined(ranked: "list[RankedTable]", given: Iterable[str]) -> "list[RankedTable]":
    """Add the rows of files, each given as `FILE` or `LABEL=FILE`."""
    for text in given:
        label, equals, path = text.partition("=")
        plain = not equals or Path(text).exists()
        ranked = [part.joined(Path(text if plain else path), None if plain else label) for part in ranked]
    return ranked
