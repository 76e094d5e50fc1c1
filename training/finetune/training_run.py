"""Reads the directory of a training run, complete or not, without writing to it."""

import json
from dataclasses import dataclass
from pathlib import Path

from training.backbones.trained_model import TRAINING_DIRECTORY
from training.config.run_config import RunConfig, load_run_config
from training.data.dataset import Dataset
from training.encoder.job import Split, split_dataset
from training.finetune.run_directory import RunDirectory, run_fingerprint
from training.finetune.run_history import RunHistory
from training.finetune.validation import METRIC, ValidationEvents


@dataclass(frozen=True)
class TrainingRun:
    """A run of `vlm2rec train`.

    Attributes:
        path: the run directory.
        config: as ``config.toml`` says, the preset's where there is none.
        history: the log; empty if nothing was trained.
        fingerprint: recorded at the start of the run; None if it was not.
        finished: whether the trained model exists.
        diverged: name and step of the value that was not finite, if that ended the run.
    """

    path: Path
    config: RunConfig
    history: RunHistory
    fingerprint: str | None
    finished: bool
    diverged: str | None

    @classmethod
    def read(cls, path: Path) -> "TrainingRun":
        """Read a run directory, which may be incomplete or empty.

        Raises:
            ConfigError: its ``config.toml`` cannot be read.
        """
        run_dir = RunDirectory(path / TRAINING_DIRECTORY)
        return cls(
            path,
            load_run_config(path),
            RunHistory.read(run_dir.log),
            _text(run_dir.fingerprint),
            run_dir.model.is_dir(),
            None if run_dir.model.is_dir() else _diverged(run_dir.diverged),
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it was trained on."""
        return self.config.train.modalities

    @property
    def kept_step(self) -> int | None:
        """The validated step whose weights the run keeps, or its last one so far."""
        return self.history.kept_step(patience=self.config.train.patience)

    def split(self, dataset: Dataset) -> Split:
        """Split a data set as for this run."""
        return split_dataset(dataset, self.config.encoder.cold_items)

    def is_of(self, dataset: Dataset, split: Split) -> bool:
        """Whether the run was trained on this data set with its stored configuration."""
        now = run_fingerprint(dataset, split.parts.train, split.parts.validation, self.config)
        return self.fingerprint == now

    def validation_events(self, dataset: Dataset, split: Split) -> ValidationEvents:
        """The events that the run is validated on."""
        options = self.config.train
        return ValidationEvents.choose(
            split.parts.validation,
            len(dataset),
            users=options.validation_users,
            items=options.validation_items,
            seed=options.seed,
        )

    def validated(self, modality: str | None = None) -> float | None:
        """NDCG@10 at :attr:`kept_step`.

        Args:
            modality: rank by this modality alone; None for the fused score.

        Returns:
            Mean over the validated users, higher is better; None if it was not measured.
        """
        if self.kept_step is None:
            return None
        alone = modality is None or self.modalities == (modality,)
        return self.history.at(self.kept_step, METRIC if alone else f"{METRIC} {modality}")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _diverged(path: Path) -> str | None:
    """``loss in step 7``; None if the run was not ended by that."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"{found['what']} in step {int(found['step'])}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
