"""Defines the errors of `training` in one tree.

TrainingError
├── DatasetError       the catalogue or the interactions break a rule (file, row, field, value)
├── PictureError       one picture cannot be used; it counts as unreadable, and the job continues
├── ConfigError        a training configuration breaks a rule (section, key, value)
├── BackboneError      a vision-language model cannot be loaded or does not fit the configuration
├── EmbeddingsError    stored embeddings are missing, unreadable, or belong to another catalogue
├── TrainingDiverged   the loss or a gradient is not finite; carries the item ids of the batch
├── OutOfMemory        a training step does not fit into memory; says which keys to lower
├── ExportError        the ONNX export failed or does not agree with PyTorch
├── EvaluationError    there is nothing to evaluate, or a score is not finite
├── ReindexError       a run cannot be indexed again
├── RunBusy            another job is using the run
└── JobStopped         a job was stopped; the next one resumes it

Every message names the rule, the value and a remedy.
"""


class TrainingError(Exception):
    """Root of the errors of this package."""


class DatasetError(TrainingError):
    """The catalogue or the interactions break a rule."""


class PictureError(TrainingError):
    """One picture cannot be used."""


class ConfigError(TrainingError):
    """A training configuration breaks a rule."""


class BackboneError(TrainingError):
    """A vision-language model cannot be loaded or does not fit the configuration."""


class EmbeddingsError(TrainingError):
    """Stored embeddings are missing, unreadable, or belong to another catalogue."""


class TrainingDiverged(TrainingError):
    """The loss or a gradient is not finite."""


class OutOfMemory(TrainingError):
    """A training step does not fit into memory."""


class ExportError(TrainingError):
    """The ONNX export failed or does not agree with PyTorch."""


class EvaluationError(TrainingError):
    """There is nothing to evaluate, or a score is not finite."""


class ReindexError(TrainingError):
    """A run cannot be indexed again."""


class RunBusy(TrainingError):
    """Another job is using the run."""


class JobStopped(TrainingError):
    """A job was stopped; the next one resumes it."""
