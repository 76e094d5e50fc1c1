"""`vlm2rec retrain`: catalogue and exported events → fit → gate of recipes → publish."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cli.offline.encoder import ConfigOption, SeedOption, chosen_config, fit_and_print
from cli.offline.left_out import print_left_out
from cli.offline.retraining.comparison import NEW, SERVED, check_comparison, compared, drop_comparison, read_comparison
from cli.offline.retraining.model import run_embeddings, train_and_embed, training_config
from cli.offline.threads import ThreadsOption, set_torch_threads
from cli.online.index_options import (
    BoundOption,
    BoundsOption,
    CodesOption,
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
    from index.bundle.index_spec import IndexSpec
    from index.bundle.registries import AnyRegistry
    from training.config.encoder_config import EncoderConfig
    from training.config.run_config import RunConfig
    from training.data.data_place import DataPlace
    from training.data.event_weights import EventRules
    from training.events.retraining_inputs import RetrainingInputs

_EXIT_REFUSED = 1
_RUNS = Path("runs")
_JOB = "retrain"
_MADE, _BUNDLE, _BUNDLES = "made", "bundle", "bundles"

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Retraining:
    """One job of retraining.

    Attributes:
        data: the data set with the catalogue.
        place: the run directory, locked.
        inputs: frozen interactions.
        rules: which events are positive, and how much each weighs.
        recipe: how the encoder is fitted.
        trained: how the vision-language model is trained; None: it is not.
        registry: where the bundle is published.
        spec: of the index.
        force: publish also what the gate refuses.
    """

    data: "DataPlace"
    place: Path
    inputs: "RetrainingInputs"
    rules: "EventRules"
    recipe: "EncoderConfig"
    trained: "RunConfig | None"
    registry: "AnyRegistry"
    spec: "IndexSpec"
    force: bool


def retrain(
    data: Annotated[
        str, typer.Argument(help="The data set with the catalogue: a directory, or s3://bucket/prefix.", metavar="SHOP")
    ],
    events: Annotated[
        str, typer.Option("--events", help="The export of `vlm2rec events export`: DIR or s3://….", metavar="EXPORT")
    ],
    registry: RegistryOption,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run directory; default runs/NAME of SHOP.", metavar="RUN")
    ] = None,
    config: ConfigOption = None,
    seed: SeedOption = None,
    measure_days: Annotated[
        float, typer.Option(min=0.01, help="The events of these last days measure the recipes.")
    ] = 7.0,
    kind: KindOption = "auto",
    codes: CodesOption = "auto",
    memory_mb: MemoryOption = None,
    target_recall: TargetRecallOption = 0.97,
    fresh_share: FreshShareOption = 0.0,
    bounds: BoundsOption = None,
    bound: BoundOption = None,
    threads: ThreadsOption = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train the vision-language model first, by the same configuration.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Fit the next bundle on the catalogue and what happened, and publish it if its recipe is no worse.

    The served bundle has learned from most of the newest days, so the gate compares recipes: the new one and that of
    the served bundle are both fitted on what lies before the last days and measured on them. What is published is then
    fitted on everything. Resumes after being killed at any moment. New items are embedded by the model of RUN; without
    one, all are embedded without a vision-language model.
    """
    from index.bundle.registries import check_publishable
    from index.errors import GateRefused
    from index.machine.outputs import check_directory_writable
    from training.data.data_place import DataPlace
    from training.data.event_weights import EventRules
    from training.errors import EvaluationError
    from training.runs.disk import writing_run
    from training.runs.lock import run_lock

    shop = DataPlace.open(data)
    place = run or _RUNS / shop.short_name
    recipe, target = chosen_config(place, config, seed), published_at(registry)
    spec = index_spec(kind, codes, memory_mb, target_recall, bounds, bound, threads, fresh_share)
    check_directory_writable(place, place / _JOB, place / _BUNDLES)
    check_publishable(target)
    set_torch_threads(threads)
    with shop.naming():
        rules = EventRules.of_exported_events(shop.directory)
    trained = training_config(place, config, seed) if train else None
    parts = [recipe.model_dump(mode="json"), target.current(), measure_days, repr(rules)]
    mark = json.dumps([*parts, None if trained is None else trained.model_dump(mode="json")])
    with writing_run(place):
        place.mkdir(parents=True, exist_ok=True)
        with run_lock(place):
            if _was_published(place / _JOB, target):
                return
            inputs = _frozen_inputs(shop, events, place, target, days=measure_days, mark=mark)
            try:
                _carry_out(Retraining(shop, place, inputs, rules, recipe, trained, target, spec, force))
            except (EvaluationError, GateRefused) as error:
                inputs.end()  # the next job begins with newer events
                _err.print(f"refused: {error}; nothing was published", markup=False, style="red")
                raise typer.Exit(_EXIT_REFUSED) from None


def _frozen_inputs(
    data: "DataPlace", events: str, place: Path, registry: "AnyRegistry", *, days: float, mark: str
) -> "RetrainingInputs":
    """Freeze what the job learns from, or take up what a killed job froze, and print it."""
    from training.events.retraining_inputs import freeze_inputs

    served = _served_recipe(registry, place)
    inputs = freeze_inputs(
        place / _JOB,
        data,
        events,
        days=days,
        mark=mark,
        served_recipe=None if served is None else served.model_dump(mode="json"),
        drop_outdated=lambda: _drop_outdated(place / _JOB),
    )
    _print_inputs(inputs)
    return inputs


def _carry_out(job: Retraining) -> None:
    """The steps after the inputs are frozen; each that an earlier job finished is left out.

    What the run has changes only once the gate has agreed: before that everything new lies in the job's directory.

    Raises:
        EvaluationError: the new recipe is refused, or nothing measures it.
        GateRefused: the bundle misses a bound.
    """
    from index.bundle.registry import check_gate
    from training.runs.adoption import adopt

    bundle = _noted_bundle(job.inputs.directory, job.spec)
    if bundle is None:
        bundle = _made(job)
    elif not job.force:
        check_comparison(read_comparison(job.inputs))
    check_gate(bundle, force=job.force)
    adopt(job.inputs.directory / _MADE, job.place)
    _out.print(f"published: {job.registry.publish(bundle, force=job.force)}", markup=False)
    job.inputs.end()


def _made(job: Retraining) -> Path:
    """Train, compare, fit and build; returns the bundle.

    Raises:
        EvaluationError: the new recipe is refused, or nothing measures it.
    """
    from training.backbones.trained_model import EMBEDDINGS_DIRECTORY
    from training.data.dataset import load_dataset
    from training.embedding.baseline_job import existing_embeddings
    from training.encoder.encoder_files import ENCODER_DIRECTORY, FIT_FILE
    from training.finetune.trained_events import ModelEvents

    inputs = job.inputs
    made, served = inputs.directory / _MADE, None
    everything = load_dataset(job.data, interactions=inputs.everything, rules=job.rules)
    print_left_out(everything, _out)
    if job.trained is None:
        embeddings = run_embeddings(job.place, everything)
    else:
        existing_embeddings(job.place / EMBEDDINGS_DIRECTORY)  # raises what would end the job after training
        _out.print("training the model on what lies before the last days")
        before = load_dataset(job.data, interactions=inputs.before, rules=job.rules)
        embeddings = train_and_embed(made, job.trained, before, everything)
        served = run_embeddings(job.place, everything) if inputs.record["served_recipe"] else None
    models = {NEW: ModelEvents.of(job.place if job.trained is None else made, embeddings.model, inputs.cutoff)}
    if served is not None:
        models[SERVED] = ModelEvents.of(job.place, served.model, inputs.cutoff)
    comparison = compared(job.data, inputs, everything, embeddings, job.recipe, served, models)
    if not job.force:
        check_comparison(comparison)
    if not (made / ENCODER_DIRECTORY / FIT_FILE).exists():  # written last
        _out.print("fitting on everything")
        fit_and_print(everything, embeddings, job.recipe, made, exported=True)
    return _built(job, comparison)


def _note(job: Path) -> tuple[Path, str] | None:
    """The bundle that an earlier job built, which may have been deleted since, and the mark of its specification."""
    try:
        bundle, mark, *_ = (job / _BUNDLE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return Path(bundle), mark


def _noted_bundle(job: Path, spec: "IndexSpec | None" = None) -> Path | None:
    """The bundle that an earlier job built; None if it built none, that was deleted, or it is to be built again.

    Args:
        job: directory of the retraining.
        spec: of the index; a bundle of another one, or with other bounds, is to be built again from what was made,
            unless the run has adopted that. None: of any.
    """
    noted = _note(job)
    if noted is None or not noted[0].is_dir():
        return None
    is_other = spec is not None and noted[1] != _mark_of(spec) and (job / _MADE).exists()
    return None if is_other else noted[0]


def _mark_of(spec: "IndexSpec") -> str:
    """16 hex digits over what the bundle and its gate depend on; threads only change how long it takes."""
    from training.nightly.record import digest_of

    return digest_of(replace(spec, threads=1))


def _drop_outdated(job: Path) -> None:
    """Delete what a killed job made of an earlier catalogue; a model stays, since it embeds other items too.

    A bundle whose parts the run has adopted stays: it passed the gate, and only its publishing is left.
    """
    from training.encoder.encoder_files import ENCODER_DIRECTORY

    if _noted_bundle(job) is not None and not (job / _MADE).exists():
        return
    (job / _BUNDLE).unlink(missing_ok=True)
    drop_comparison(job)
    if (fitted := job / _MADE / ENCODER_DIRECTORY).exists():
        shutil.rmtree(fitted)


def _was_published(job: Path, registry: "AnyRegistry") -> bool:
    """Whether a job was killed between publishing and its end; its files are deleted then."""
    noted = _note(job)
    if noted is None or noted[0].name != registry.current():
        return False
    shutil.rmtree(job)
    _out.print(f"published: {registry.current()} by an interrupted job", markup=False)
    return True


def _served_recipe(registry: "AnyRegistry", place: Path) -> "EncoderConfig | None":
    """The recipe of the current bundle, as the bundle names it, or the run that its encoder is of; None if unknown."""
    from pydantic import ValidationError

    from index.bundle.encoder_pair import encoder_hash
    from index.bundle.manifest import ENCODER_FILE, Manifest
    from training.config.encoder_config import EncoderConfig
    from training.encoder.encoder_files import ENCODER_DIRECTORY, FIT_FILE, served_directory

    current = registry.current()
    if current is None:
        return None
    manifest = Manifest.read(registry.path(current))
    try:
        named = manifest.model.get("retrain")
        if isinstance(named, dict):
            return EncoderConfig.model_validate(named["recipe"])
        record = json.loads((place / ENCODER_DIRECTORY / FIT_FILE).read_text(encoding="utf-8"))
        encoder = served_directory(place / ENCODER_DIRECTORY, record) / ENCODER_FILE
        if manifest.files[ENCODER_FILE].sha256.startswith(encoder_hash(encoder)):
            return EncoderConfig.model_validate(record["config"])
    except (OSError, ValueError, KeyError, ValidationError):
        pass
    _out.print(f"note: the recipe of {current} is not known; the new one is compared with popularity alone")
    return None


def _print_inputs(inputs: "RetrainingInputs") -> None:
    record, counts = inputs.record, inputs.record["exported"]
    if inputs.resumed:
        _out.print("an earlier job was interrupted: going on with its interactions")
    if inputs.outdated:
        _out.print("the catalogue has changed since: comparing, fitting and building begin anew")
    left_out = ", ".join(f"{counts[name]:,} {name}" for name in ("erased", "duplicates", "incomplete", "future"))
    _out.print(f"{counts['events']:,} of {counts['rows']:,} exported events (left out: {left_out})")
    _out.print(f"{counts['late']:,} of them late, {counts['out_of_order']:,} out of order: sorted by their times")
    _out.print(
        f"{record['from_data_set']:,} interactions of the data set before them ({record['replaced']:,} others count as "
        "exported)"
    )


def _volume(data: "DataPlace") -> dict[str, Any]:
    """What re-indexing compares the data set with: its own events alone; nothing for one without interactions."""
    from training.data.dataset import load_dataset
    from training.errors import DatasetError
    from training.nightly.volume_bounds import EVENTS, VOLUME, events_of

    try:
        return {VOLUME: {EVENTS: events_of(load_dataset(data))}}
    except DatasetError:
        return {}


def _built(job: Retraining, comparison: dict[str, Any]) -> Path:
    """The bundle; its manifest says of the model by which recipe it was fitted and how that was measured."""
    from cli.online.served_run import ServedRun
    from index.build.build import build_bundle

    inputs = job.inputs
    fitted = ServedRun.load(inputs.directory / _MADE)
    retrained = {
        "recipe": job.recipe.model_dump(mode="json"),
        "fitted_on": "everything",
        "model_trained_on": "the events before the cut-off" if job.trained is not None else None,
        "measured": "the recipe, fitted on the events before the cut-off, on those after it",
        "cutoff": inputs.cutoff,
        "until": inputs.record["until"],
        "exported": inputs.record["exported"],
        "comparison": comparison,
    }
    bundle = build_bundle(
        replace(fitted.table, model=fitted.table.model | _volume(job.data) | {"retrain": retrained}),
        fitted.encoder,
        fitted.queries,
        job.place / _BUNDLES,
        job.spec,
        lists=fitted.lists,
        exclude_seen=fitted.exclude_seen,
        event_types=fitted.event_types,
    )
    replace_text(inputs.directory / _BUNDLE, f"{bundle.resolve()}\n{_mark_of(job.spec)}\n")
    return bundle
