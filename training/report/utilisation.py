"""Computes utilisation: a joint model's figure by one modality over that of a model trained on it alone."""

# The ratio of two validation figures is meaningful only if both were measured on the same events and items. So the
# fingerprints of both runs are compared with the data set, and the validated events with each other.

import math
from dataclasses import dataclass

from training.data.dataset import Dataset
from training.encoder.job import Split
from training.errors import EvaluationError
from training.finetune.training_run import TrainingRun


@dataclass(frozen=True)
class Utilisation:
    """One modality in both models, NDCG@10 on the same validation events.

    Attributes:
        modality: ``text`` or ``image``.
        joint: of the joint model by this modality alone; higher is better.
        alone: of the model trained on this modality alone.
        users: validated events.
        items: items that competed.
        joint_step: step of the joint run that was measured.
        alone_step: step of the other run that was measured.
        unfinished: runs that have not ended, so that the figure may still change.
    """

    modality: str
    joint: float
    alone: float
    users: int
    items: int
    joint_step: int
    alone_step: int
    unfinished: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        """``joint / alone``; None if the model of the modality alone scores 0."""
        return self.joint / self.alone if self.alone > 0 else None

    @property
    def chance(self) -> float:
        """Expected NDCG@10 of a random order, as if no history were masked."""
        return math.fsum(1 / math.log2(rank + 1) for rank in range(1, min(10, self.items) + 1)) / self.items


def utilisation(joint: TrainingRun, alone: TrainingRun, modality: str, dataset: Dataset, split: Split) -> Utilisation:
    """Compare two runs.

    Args:
        joint: trained on text and image.
        alone: trained on ``modality`` only.
        modality: ``text`` or ``image``.
        dataset: of both runs.
        split: of it, as for the joint run.

    Raises:
        EvaluationError: a run was trained on other modalities or other data, was not validated, or both were
            validated on different events or items.
    """
    _check_modalities(joint, {"text", "image"}, "the joint run")
    _check_modalities(alone, {modality}, f"--{modality}-alone")
    own_split = alone.split(dataset)
    for run, its in ((joint, split), (alone, own_split)):
        _check_validated(run)
        if not run.is_of(dataset, its):
            raise EvaluationError(
                f"{run.path}: this run was trained on other data, or by another version, than what is given "
                f"(fingerprint {run.fingerprint or 'unknown'}); give DATA and --interactions as for `vlm2rec train`, "
                "or train it again"
            )
    events = joint.validation_events(dataset, split)
    same = split.fingerprint == own_split.fingerprint
    if not same or not events.same_as(alone.validation_events(dataset, own_split)):
        raise EvaluationError(
            f"{joint.path} and {alone.path} were validated on different events or items, so their figures cannot be "
            "compared; train both with the same train.validation_users, train.validation_items, train.seed and "
            "encoder.cold_items"
        )
    return Utilisation(
        modality,
        _figure(joint, modality),
        _figure(alone, modality),
        len(events.targets),
        len(events.items),
        joint.kept_step or 0,
        alone.kept_step or 0,
        tuple(str(run.path) for run in (joint, alone) if not run.finished),
    )


def _check_modalities(run: TrainingRun, wanted: set[str], role: str) -> None:
    if set(run.modalities) != wanted:
        raise EvaluationError(
            f"{run.path}: {role} must be trained on {' and '.join(sorted(wanted))}, it was trained on "
            f"{' and '.join(run.modalities)} (train.modalities)"
        )


def _check_validated(run: TrainingRun) -> None:
    if not run.config.train.validate_every or run.kept_step is None:
        raise EvaluationError(
            f"{run.path}: this run has no validation in its log; train it with train.validate_every set"
        )


def _figure(run: TrainingRun, modality: str) -> float:
    found = run.validated(modality)
    if found is None:
        raise EvaluationError(f"{run.path}: its log lacks NDCG@10 of {modality} alone; train it again")
    return found
