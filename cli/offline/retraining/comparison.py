"""Compares the recipe of a retraining with the served one: both fitted before the cut-off, measured after it."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from cli.offline.encoder import fit_and_print
from cli.offline.evaluation_page import print_table
from index.machine.text_files import replace_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from training.config.encoder_config import EncoderConfig
    from training.data.data_place import DataPlace
    from training.data.dataset import Dataset
    from training.embedding.store import Embeddings
    from training.events.retraining_inputs import RetrainingInputs
    from training.finetune.trained_events import ModelEvents
    from training.ranking.table import Table

_COMPARISON_FILE: Final = "comparison.json"
NEW, SERVED = "new recipe", "served recipe"
_METRIC = "ndcg@10"

_out = Console(soft_wrap=True, highlight=False)


def compared(
    data: "DataPlace",
    inputs: "RetrainingInputs",
    everything: "Dataset",
    embeddings: "Embeddings",
    recipe: "EncoderConfig",
    served_embeddings: "Embeddings | None",
    models: "Mapping[str, ModelEvents | None]",
) -> dict[str, Any]:
    """Figures of the recipes after the cut-off, and why the new one is refused; an empty text if it is not.

    Args:
        data: the data set.
        inputs: frozen interactions; the comparison of an earlier job with them is read.
        everything: the catalogue with every event.
        embeddings: of the catalogue, for the new recipe.
        recipe: the new one.
        served_embeddings: of the served model, if a new one was trained; None: ``embeddings`` are for both.
        models: recipe → the events that its vision-language model has learned from; None where it has no such model.
            A served recipe that is not named has the model of the new one.
    """
    from training.config.encoder_config import EncoderConfig
    from training.data.dataset import load_dataset
    from training.data.sequences import evenly_spaced
    from training.encoder.encoder_files import ENCODER_DIRECTORY, FIT_FILE
    from training.evaluation.fitted_run import FittedRun
    from training.evaluation.recipes import MOST_TARGETS, compare_recipes, targets_after

    if (inputs.directory / _COMPARISON_FILE).exists():
        return read_comparison(inputs)
    known = inputs.record["served_recipe"]  # an earlier job may have fitted into the run that it was read from
    recipe = recipe.for_catalogue(len(everything))  # the recipe of a fit has numbers in place of "auto"
    served = recipe if known is None else EncoderConfig.model_validate(known).for_catalogue(len(everything))
    recipes = {NEW: recipe} | ({} if served == recipe and served_embeddings is None else {SERVED: served})
    targets = targets_after(everything.interactions, everything.item_ids(), inputs.cutoff)
    if len(targets):
        before = load_dataset(data, interactions=inputs.before, rules=everything.rules)
        for name, config in recipes.items():
            directory = _recipe_run(inputs.directory, name)
            if not (directory / ENCODER_DIRECTORY / FIT_FILE).exists():
                _out.print(f"fitting the {name} on what lies before the last days")
                its_own = served_embeddings if name == SERVED and served_embeddings is not None else embeddings
                fit_and_print(before, its_own, config, directory)
    runs = {
        name: FittedRun.load(_recipe_run(inputs.directory, name) / ENCODER_DIRECTORY, served=True)
        for name in (recipes if len(targets) else ())
    }
    table = compare_recipes(runs, evenly_spaced(targets, MOST_TARGETS), len(targets))
    print_table(table, table.rows[0].name)
    known_models = {name: model for name in recipes if (model := models.get(name, models[NEW])) is not None}
    for name, model in known_models.items():
        if note := model.note(f"the vision-language model of the {name}"):
            _out.print(f"note: {note}", markup=False)
    found = {
        "refused": _refusal(table),
        "models": {name: model.as_json() for name, model in known_models.items()},
        "table": table.as_json([SERVED] if SERVED in recipes else []),
    }
    replace_text(inputs.directory / _COMPARISON_FILE, json.dumps(found, indent=1))
    return found


def read_comparison(inputs: "RetrainingInputs") -> dict[str, Any]:
    """The comparison of an earlier job with the same inputs."""
    found: dict[str, Any] = json.loads((inputs.directory / _COMPARISON_FILE).read_text(encoding="utf-8"))
    return found


def check_comparison(comparison: dict[str, Any]) -> None:
    """Raise the refusal of a comparison, if it has one.

    Raises:
        EvaluationError: the new recipe is refused.
    """
    from training.errors import EvaluationError

    if comparison["refused"]:
        raise EvaluationError(comparison["refused"])


def drop_comparison(job: Path) -> None:
    """Delete the comparison of a job, and what was fitted for it.

    Args:
        job: directory of the retraining.
    """
    (job / _COMPARISON_FILE).unlink(missing_ok=True)
    for fitted in (_recipe_run(job, NEW), _recipe_run(job, SERVED)):
        if fitted.exists():
            shutil.rmtree(fitted)


def _recipe_run(job: Path, name: str) -> Path:
    """Where a recipe is fitted to be compared."""
    return job / name.replace(" ", "-")


def _refusal(table: "Table") -> str:
    """Why the new recipe is refused; empty if it is not."""
    popularity = table.rows[0]
    own = table.row(NEW).values[_METRIC]
    if own < popularity.values[_METRIC]:
        return (
            f"NDCG@10 of the new recipe is {own:.4f} on {table.users:,} users, below {popularity.values[_METRIC]:.4f} "
            "of popular items"
        )
    if any(row.name == SERVED for row in table.rows):
        ratio = table.ratio(NEW, SERVED, _METRIC)
        if ratio.high < 1:
            return (
                f"NDCG@10 of the new recipe is {ratio.ratio:.3f} × that of the served one ({ratio.low:.3f} to "
                f"{ratio.high:.3f}, {table.users:,} users)"
            )
    return ""
