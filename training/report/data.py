"""Gathers the content of a run's report from its directory and its data set."""

# Nothing is required: a run may be incomplete, without validation, of one modality, or without embeddings. Missing
# parts are listed with the command that makes them.

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from index.bundle.quality import Quality
from index.errors import IndexingError
from index.evaluation.plots import Curve, CurveSpec, ReferenceMark, curve
from training.backbones.trained_model import EMBEDDINGS_DIRECTORY
from training.data.dataset import Dataset
from training.embedding.store import Embeddings
from training.encoder.encoder_files import ENCODER_DIRECTORY, ENCODER_FILE, FIT_FILE
from training.errors import ConfigError, EmbeddingsError, EvaluationError
from training.finetune.training_run import TrainingRun
from training.report.diagnosis import Diagnosis, judge
from training.report.metric_definitions import ALONE, BALANCE, TRAINING, VALIDATION
from training.report.nearest_items import Example, nearest_items
from training.report.utilisation import Utilisation, utilisation

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class RunReport:
    """The content of a report.

    Attributes:
        run: the run.
        dataset: of the training.
        same_data: whether the run was trained on this data set as it is now; None if nothing was trained.
        histories: users with a training history.
        verdict: is a modality collapsing?
        validation: plot of the validations; None without any.
        balance: plots of the balance of the modalities.
        training: plots of loss and rate.
        utilisations: of the modalities that were compared.
        quality: the evaluation with and without each modality; None without one.
        examples: items and their nearest items.
        embedded_by: kind of model that made the embeddings; None without any.
        missing: missing parts and how to make them.
    """

    run: TrainingRun
    dataset: Dataset
    same_data: bool | None
    histories: int
    verdict: Diagnosis
    validation: Curve | None
    balance: tuple[Curve, ...]
    training: tuple[Curve, ...]
    utilisations: tuple[Utilisation, ...]
    quality: Quality | None
    examples: Sequence[Example]
    embedded_by: str | None
    missing: tuple[str, ...]


def gather(
    dataset: Dataset,
    path: Path,
    *,
    alone: dict[str, Path] | None = None,
    evaluation: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> RunReport:
    """Gather the content of a report.

    Args:
        dataset: of the training.
        path: the run directory.
        alone: modality → directory of the run trained on it alone.
        evaluation: JSON of `vlm2rec evaluate`; None for ``RUN/evaluation.json`` if it exists.
        progress: called with the name of each step.

    Raises:
        ConfigError: the run directory does not exist, or a configuration cannot be read.
        EvaluationError: the runs cannot be compared, or the given evaluation cannot be used.
        DatasetError: the data set cannot be split.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such run directory; check --run")
    progress("reading the run")
    run = TrainingRun.read(path)
    split = run.split(dataset)
    found = tuple(
        utilisation(run, TrainingRun.read(other), modality, dataset, split) for modality, other in (alone or {}).items()
    )
    missing: list[str] = []
    quality = _quality(path, evaluation, missing)
    progress("finding near items")
    examples, kind = _examples(dataset, path, missing)
    missing += _missing_figures(run, found)
    return RunReport(
        run=run,
        dataset=dataset,
        same_data=run.is_of(dataset, split) if run.fingerprint else None,
        histories=int((split.parts.train.lengths > 0).sum()),
        verdict=judge(run, found),
        validation=_validation(run, found),
        balance=_curves(run, BALANCE),
        training=_curves(run, TRAINING),
        utilisations=found,
        quality=quality,
        examples=examples,
        embedded_by=kind,
        missing=tuple(missing),
    )


def _validation(run: TrainingRun, found: Sequence[Utilisation]) -> Curve | None:
    if len(run.modalities) == 1:
        return _curve(run, ALONE)
    marks = tuple(
        ReferenceMark(f"ndcg@10 {each.modality}", f"trained on {each.modality} alone", each.alone) for each in found
    )
    return _curve(run, replace(VALIDATION, marks=marks))


def _curve(run: TrainingRun, spec: CurveSpec) -> Curve | None:
    return curve(spec, {name: run.history.series(name) for name in spec.names}, run.history.steps)


def _curves(run: TrainingRun, specs: Sequence[CurveSpec]) -> tuple[Curve, ...]:
    """The plots of this run, without the modalities and terms that it does not use."""
    absent = {"text", "image"} - set(run.modalities)
    drawn = []
    for spec in specs:
        names = {name: label for name, label in spec.names.items() if label not in absent}
        if set(names) & {"lead", "wpcl", "crtr"} and not _moves(run, names):
            continue
        found = _curve(run, replace(spec, names=names))
        if found is not None:
            drawn.append(found)
    return tuple(drawn)


def _moves(run: TrainingRun, names: dict[str, str]) -> bool:
    return any(value != 0 for name in names for _, value in run.history.series(name))


def _quality(path: Path, evaluation: Path | None, missing: list[str]) -> Quality | None:
    chosen, encoder = evaluation or path / EVALUATION_FILE, path / ENCODER_DIRECTORY / ENCODER_FILE
    if evaluation is None and not chosen.is_file():
        missing.append(
            "How good the ranking is without a modality: `vlm2rec fit-encoder`, then `vlm2rec evaluate … --json "
            f"RUN/{EVALUATION_FILE}`."
        )
        return None
    try:
        read = json.loads(chosen.read_text(encoding="utf-8"))
        return Quality.read(read, encoder, exclude_seen=_excludes_seen(path / ENCODER_DIRECTORY / FIT_FILE))
    except (IndexingError, OSError, ValueError, TypeError, RecursionError) as error:
        why = error if encoder.is_file() else "the run has no fitted encoder that it could be of"
        if evaluation is not None:
            raise EvaluationError(f"{chosen}: this evaluation cannot be used ({why}); check --evaluation") from error
        missing.append(f"How good the ranking is without a modality: {chosen.name} cannot be used ({why}).")
        return None


def _excludes_seen(fit_file: Path) -> bool:
    """What the run was fitted with; earlier versions recorded nothing and excluded them.

    Raises:
        OSError, ValueError, TypeError: the record cannot be read.
    """
    if not fit_file.is_file():
        return True
    config = json.loads(fit_file.read_text(encoding="utf-8")).get("config", {})
    return bool(config.get("exclude_seen", True))


def _examples(dataset: Dataset, path: Path, missing: list[str]) -> tuple[list[Example], str | None]:
    try:
        embeddings = Embeddings.load(path / EMBEDDINGS_DIRECTORY, check=False)
        found = nearest_items(dataset, embeddings)
    except EmbeddingsError as error:
        absent = not (path / EMBEDDINGS_DIRECTORY).is_dir()
        missing.append(f"What the model takes for alike: {'`vlm2rec embed` first' if absent else error}.")
        return [], None
    if not found:
        missing.append("What the model takes for alike: no embedded item is in this data set.")
    return found, str(embeddings.model.get("kind", "unknown"))


def _missing_figures(run: TrainingRun, found: Sequence[Utilisation]) -> list[str]:
    """Missing parts of the log and of the comparisons."""
    missing: list[str] = []
    if not run.history.lines:
        missing.append("Curves: there is no log in RUN/train; `vlm2rec train` writes one.")
        return missing
    if run.kept_step is None:
        why = "train.validate_every = 0" if not run.config.train.validate_every else "none was reached yet"
        missing.append(f"Ranking of held-out events while training: it was not measured ({why}).")
    if not any(name.startswith("effective rank") for line in run.history.lines for name in line):
        missing.append("Balance over time: no line of the log has diagnostics (train.diagnose_every).")
    compared = {each.modality for each in found}
    if len(run.modalities) > 1 and run.kept_step is not None:
        missing += [
            f"Utilisation of {modality}: give a run that was trained on it alone, `--{modality}-alone RUN2`."
            for modality in ("image", "text")
            if modality not in compared
        ]
    return missing
