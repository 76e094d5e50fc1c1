"""Evaluates the recipe of a run on the events of the last days (`vlm2rec evaluate --split time`)."""

from pathlib import Path

from rich.console import Console

from cli.offline.encoder import fit_and_print
from cli.offline.evaluation_page import EVALUATION_DIRECTORY, figures_file, report_tables
from cli.offline.left_out import print_left_out

_console = Console(highlight=False, soft_wrap=True)


def evaluate_by_time(
    data: str,
    run: Path,
    interactions: Path | None,
    days: float,
    most: int | None,
    against: str | None,
    json_file: Path | None,
    threads: int,
) -> None:
    """Fit the recipe of a run on what lies before the last days, and rank the first event of every user in them.

    Args:
        data: the data set.
        run: the run directory; the recipe is fitted anew in its ``evaluation/time-split``.
        interactions: instead of those of the data set.
        days: the events of these last days are held out.
        most: most targets, evenly spaced; None: all.
        against: the row to compare with; None for the usual one.
        json_file: file for the figures; None: in the run directory.
        threads: threads of the encoder.

    Raises:
        TrainingError: the run or the data cannot be used, or no event is held out.
    """
    from dataclasses import replace

    from training.data.dataset import load_dataset
    from training.data.sequences import evenly_spaced
    from training.embedding.store import Embeddings
    from training.encoder.encoder_files import ENCODER_DIRECTORY
    from training.evaluation.evaluate import TargetSet, measured_tables, rank_sets, rankers
    from training.evaluation.fitted_run import FittedRun
    from training.evaluation.recipes import AFTER_CUTOFF, cutoff_of, events_before, targets_after
    from training.finetune.trained_events import ModelEvents
    from training.runs.disk import writing_run
    from training.runs.lock import run_lock

    recipe = FittedRun.load(run / ENCODER_DIRECTORY).recipe
    dataset = load_dataset(data, interactions=interactions)
    print_left_out(dataset, _console)
    cutoff = cutoff_of(dataset.interactions, days)
    before = replace(dataset, interactions=events_before(dataset.interactions, cutoff))
    held_out = targets_after(dataset.interactions, dataset.item_ids(), cutoff)
    again = run / EVALUATION_DIRECTORY / "time-split"
    with run_lock(run), writing_run(run):
        embeddings = Embeddings.load(run / "embeddings")
        fit_and_print(before, embeddings, recipe, again)
    model = ModelEvents.of(run, embeddings.model, cutoff)
    fitted = FittedRun.load(again / ENCODER_DIRECTORY, threads=threads, served=True)
    split = fitted.split(before)
    part = TargetSet(AFTER_CUTOFF, evenly_spaced(held_out, most), len(held_out))
    ranked = rank_sets([part], rankers(fitted, split, dataset.texts()), exclude_seen=fitted.exclude_seen)
    about = {"data": fitted.record["data"], "config": fitted.record["config"], "cutoff": cutoff, "days": days}
    if model is not None:
        about |= {"vlm": model.as_json()}
        if note := model.note("the vision-language model"):
            _console.print(f"note: {note}", markup=False)
    report_tables(measured_tables(ranked, split), against, json_file or figures_file(run, part.name), about)
