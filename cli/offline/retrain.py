"""`vlm2rec retrain`: catalogue and exported events → fit → gate of recipes → publish."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cli.offline.encoder import chosen_config, fit_and_print
from cli.offline.evaluation_page import print_table
from cli.offline.retrain_model import adopt, is_adopted, run_embeddings, train_and_embed, training_config
from cli.offline.threads import set_torch_threads
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

if TYPE_CHECKING:
    from index.bundle.index_spec import IndexSpec
    from index.bundle.registries import AnyRegistry
    from training.config.encoder_config import EncoderConfig
    from training.config.run_config import RunConfig
    from training.data.dataset import Dataset
    from training.data.event_weights import EventRules
    from training.embedding.store import Embeddings
    from training.events.retraining_inputs import RetrainingInputs
    from training.ranking.table import Table

_EXIT_REFUSED = 1
_RUNS = Path("runs")
_JOB = "retrain"
_FITTED, _BUNDLE, _COMPARISON = "fitted", "bundle", "comparison.json"
_NEW, _SERVED = "new recipe", "served recipe"
_METRIC = "ndcg@10"

_out = Console(soft_wrap=True, highlight=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False)


def retrain(
    data: Annotated[Path, typer.Argument(help="The data set with the catalogue.", metavar="SHOP")],
    events: Annotated[
        str, typer.Option("--events", help="The export of `vlm2rec events export`: DIR or s3://….", metavar="EXPORT")
    ],
    registry: RegistryOption,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run directory; default runs/NAME of SHOP.", metavar="RUN")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration (TOML, section [encoder]); default RUN/config.toml.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Instead of encoder.seed.")] = None,
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
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
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
    from index.errors import GateRefused
    from training.data.event_weights import EventRules
    from training.errors import EvaluationError
    from training.events.retraining_inputs import freeze_inputs
    from training.runs.disk import writing_run
    from training.runs.lock import run_lock

    place = run or _RUNS / data.resolve().name
    recipe, target = chosen_config(place, config, seed), published_at(registry)
    spec = index_spec(kind, codes, memory_mb, target_recall, bounds, bound, threads, fresh_share)
    set_torch_threads(threads)
    rules = EventRules.of_exported_events(data)
    trained = training_config(place, config, seed) if train else None
    parts = [recipe.model_dump(mode="json"), target.current(), measure_days, repr(rules)]
    mark = json.dumps([*parts, None if trained is None else trained.model_dump(mode="json")])
    with writing_run(place):
        place.mkdir(parents=True, exist_ok=True)
        with run_lock(place):
            if _was_published(place / _JOB, target):
                return
            served = _served_recipe(target, place)
            found = None if served is None else served.model_dump(mode="json")
            inputs = freeze_inputs(place / _JOB, data, events, days=measure_days, mark=mark, served_recipe=found)
            _print_inputs(inputs)
            try:
                _carry_out(data, place, inputs, rules, recipe, trained, target, spec, force=force)
            except (EvaluationError, GateRefused) as error:
                inputs.end()  # the next job begins with newer events
                _err.print(f"refused: {error}; nothing was published", markup=False, style="red")
                raise typer.Exit(_EXIT_REFUSED) from None


def _carry_out(
    data: Path,
    place: Path,
    inputs: "RetrainingInputs",
    rules: "EventRules",
    recipe: "EncoderConfig",
    trained: "RunConfig | None",
    registry: "AnyRegistry",
    spec: "IndexSpec",
    *,
    force: bool,
) -> None:
    """The steps after the inputs are frozen; each that an earlier job finished is left out.

    Raises:
        EvaluationError: the new recipe is refused, or nothing measures it.
        GateRefused: the bundle misses a bound.
    """
    from training.data.dataset import load_dataset
    from training.errors import EvaluationError

    everything = load_dataset(data, interactions=inputs.everything, rules=rules)
    if everything.left_out:
        others = ", ".join(f"{count:,} {meaning}" for meaning, count in everything.left_out.items())
        _out.print(f"not positive, so not learned from: {others}")
    if everything.orphans:
        _out.print(f"{everything.orphans:,} interactions are of items that the catalogue lacks; left out")
    adopted = trained is not None and is_adopted(inputs.directory, place)
    embeddings = served = None
    if trained is not None and not adopted:
        _out.print("training the model on what lies before the last days")
        before = load_dataset(data, interactions=inputs.before, rules=rules)
        embeddings = train_and_embed(inputs.directory, trained, before, everything)
        served = run_embeddings(place, everything) if inputs.record["served_recipe"] else None
    if embeddings is None:
        embeddings = run_embeddings(place, everything)
    comparison = _compared(data, inputs, everything, embeddings, recipe, served)
    if comparison["refused"] and not force:
        raise EvaluationError(comparison["refused"])
    if trained is not None and not adopted:
        adopt(inputs.directory, place)
    if not (inputs.directory / _FITTED).exists():
        _out.print("fitting on everything")
        fit_and_print(everything, embeddings, recipe, place)
        (inputs.directory / _FITTED).touch()
    bundle = _built(place, inputs, recipe, comparison, spec, trained=trained is not None)
    _out.print(f"published: {registry.publish(bundle, force=force)}", markup=False)
    inputs.end()


def _was_published(job: Path, registry: "AnyRegistry") -> bool:
    """Whether a job was killed between publishing and its end; its files are deleted then."""
    noted = job / _BUNDLE
    if not noted.exists() or Path(noted.read_text(encoding="utf-8")).name != registry.current():
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
    left_out = ", ".join(f"{counts[name]:,} {name}" for name in ("erased", "duplicates", "incomplete", "future"))
    _out.print(f"{counts['events']:,} of {counts['rows']:,} exported events (left out: {left_out})")
    _out.print(f"{counts['late']:,} of them late, {counts['out_of_order']:,} out of order: sorted by their times")
    _out.print(
        f"{record['from_data_set']:,} interactions of the data set before them ({record['replaced']:,} others count as "
        "exported)"
    )


def _compared(
    data: Path,
    inputs: "RetrainingInputs",
    everything: "Dataset",
    embeddings: "Embeddings",
    recipe: "EncoderConfig",
    served_embeddings: "Embeddings | None",
) -> dict[str, Any]:
    """Figures of the recipes after the cut-off, and why the new one is refused; an empty text if it is not.

    The served recipe is fitted with the embeddings of the served model, if a new one was trained.
    """
    from training.config.encoder_config import EncoderConfig
    from training.data.dataset import load_dataset
    from training.data.sequences import evenly_spaced
    from training.encoder.encoder_files import ENCODER_DIRECTORY, FIT_FILE
    from training.evaluation.evaluate import FittedRun
    from training.evaluation.recipes import MOST_TARGETS, compare_recipes, targets_after

    path = inputs.directory / _COMPARISON
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    known = inputs.record["served_recipe"]  # an earlier job may have fitted into the run that it was read from
    served = recipe if known is None else EncoderConfig.model_validate(known)
    recipes = {_NEW: recipe} | ({} if served == recipe and served_embeddings is None else {_SERVED: served})
    targets = targets_after(everything.interactions, everything.item_ids(), inputs.cutoff)
    if len(targets):
        before = load_dataset(data, interactions=inputs.before, rules=everything.rules)
        for name, config in recipes.items():
            directory = inputs.directory / name.replace(" ", "-")
            if not (directory / ENCODER_DIRECTORY / FIT_FILE).exists():
                _out.print(f"fitting the {name} on what lies before the last days")
                its_own = served_embeddings if name == _SERVED and served_embeddings is not None else embeddings
                fit_and_print(before, its_own, config, directory)
    runs = {
        name: FittedRun.load(inputs.directory / name.replace(" ", "-") / ENCODER_DIRECTORY, served=True)
        for name in (recipes if len(targets) else ())
    }
    table = compare_recipes(runs, evenly_spaced(targets, MOST_TARGETS), len(targets))
    print_table(table, table.rows[0].name)
    found = {"refused": _refusal(table), "table": table.as_json([_SERVED] if _SERVED in recipes else [])}
    _write(path, json.dumps(found, indent=1))
    return found


def _refusal(table: "Table") -> str:
    """Why the new recipe is refused; empty if it is not."""
    popularity = table.rows[0]
    own = table.row(_NEW).values[_METRIC]
    if own < popularity.values[_METRIC]:
        return (
            f"NDCG@10 of the new recipe is {own:.4f} on {table.users:,} users, below {popularity.values[_METRIC]:.4f} "
            "of popular items"
        )
    if any(row.name == _SERVED for row in table.rows):
        ratio = table.ratio(_NEW, _SERVED, _METRIC)
        if ratio.high < 1:
            return (
                f"NDCG@10 of the new recipe is {ratio.ratio:.3f} × that of the served one ({ratio.low:.3f} to "
                f"{ratio.high:.3f}, {table.users:,} users)"
            )
    return ""


def _built(
    place: Path,
    inputs: "RetrainingInputs",
    recipe: "EncoderConfig",
    comparison: dict[str, Any],
    spec: "IndexSpec",
    *,
    trained: bool,
) -> Path:
    """The bundle; its manifest says of the model by which recipe it was fitted and how that was measured."""
    from cli.online.served_run import ServedRun
    from index.build.build import build_bundle

    noted = inputs.directory / _BUNDLE
    if noted.exists() and (built := Path(noted.read_text(encoding="utf-8"))).is_dir():
        return built
    fitted = ServedRun.load(place)
    retrained = {
        "recipe": recipe.model_dump(mode="json"),
        "fitted_on": "everything",
        "model_trained_on": "the events before the cut-off" if trained else None,
        "measured": "the recipe, fitted on the events before the cut-off, on those after it",
        "cutoff": inputs.cutoff,
        "until": inputs.record["until"],
        "exported": inputs.record["exported"],
        "comparison": comparison,
    }
    bundle = build_bundle(
        dataclasses.replace(fitted.table, model=fitted.table.model | {"retrain": retrained}),
        fitted.encoder,
        fitted.queries,
        place / "bundles",
        spec,
        lists=fitted.lists,
        exclude_seen=fitted.exclude_seen,
        event_types=fitted.event_types,
    )
    _write(noted, str(bundle.resolve()))
    return bundle


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
