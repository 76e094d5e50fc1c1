"""Records the newest event that a model has learned from, so that a cut-off in time can be compared with it."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from index.machine.text_files import replace_text
from training.backbones.identity import KIND, other_space
from training.backbones.trained_model import TRAINING_DIRECTORY, TrainedModel
from training.data.dataset import TIMESTAMP, Dataset, in_order
from training.encoder.job import Split
from training.errors import BackboneError, ConfigError
from training.ranking.cold_items import without_items

NEWEST_EVENT_FILE: Final = "newest_event.json"
"""In ``RUN/train``."""
_NEWEST: Final = "newest_event"


def newest_event(dataset: Dataset, split: Split, *, validated: bool) -> int:
    """Time of the newest event that decides the weights of a model, in seconds since 1970 UTC; 0 without any.

    Args:
        dataset: catalogue and interactions.
        split: of it.
        validated: validation chooses the weights, so its events count too.
    """
    events = in_order(dataset.interactions)
    numbered = dataclasses.replace(split.sequences, shown=np.arange(events.height)[:, None])
    known = without_items(numbered, split.cold)
    held_out = known.lengths - split.parts.train.lengths  # 2 for a user with validation and test events, else 0
    last = known.offsets[1:] - 1 - np.maximum(held_out - int(validated), 0)
    numbers = np.arange(events.height) if known.shown is None else known.shown[last[known.lengths > 0], 0]
    return int(events[TIMESTAMP].to_numpy()[numbers].max(initial=0))


def record_newest_event(directory: Path, time_s: int) -> None:
    """Write ``newest_event.json``.

    Args:
        directory: of the training.
        time_s: see :func:`newest_event`.
    """
    replace_text(directory / NEWEST_EVENT_FILE, json.dumps({_NEWEST: time_s}) + "\n")


@dataclass(frozen=True)
class ModelEvents:
    """The events that the model of some embeddings has learned from, beside a cut-off.

    Attributes:
        newest: time of the newest of them, seconds since 1970 UTC; None: not known.
        cutoff: seconds since 1970 UTC; events from here on are measured.
    """

    newest: int | None
    cutoff: int

    @classmethod
    def of(cls, run: Path, embedded_by: Mapping[str, Any], cutoff: int) -> "ModelEvents | None":
        """What the run of a model recorded.

        Args:
            run: with the model in ``RUN/train``.
            embedded_by: provenance of the embeddings.
            cutoff: seconds since 1970 UTC.

        Returns:
            None for features that learn from no event. The newest event is not known for a training of an earlier
            version, and for embeddings of another model than that of the run.
        """
        if embedded_by.get("kind") != KIND:
            return None
        try:
            if other_space(dict(embedded_by), TrainedModel.of(run).provenance):
                return cls(None, cutoff)
            found = json.loads((run / TRAINING_DIRECTORY / NEWEST_EVENT_FILE).read_text(encoding="utf-8"))
            return cls(int(found[_NEWEST]), cutoff)
        except (BackboneError, ConfigError, OSError, ValueError, KeyError, TypeError, RecursionError):
            return cls(None, cutoff)

    @property
    def measured_too(self) -> bool | None:
        """Whether events from the cut-off on are among them; None: not known."""
        return None if self.newest is None else self.newest >= self.cutoff

    def as_json(self) -> dict[str, Any]:
        """``newest_event`` and ``has_measured_events``; null where it is not known."""
        return {_NEWEST: self.newest, "has_measured_events": self.measured_too}

    def note(self, model: str) -> str | None:
        """A line for the reader of the figures; None if the model has learned from no measured event.

        Args:
            model: name of the model, the subject of the line.
        """
        if self.measured_too is False:
            return None
        if self.newest is None:
            return f"it is not known whether {model} has learned from measured events; its figures may be too high"
        return (
            f"{model} has learned from events up to {_day(self.newest)}, measured are those since {_day(self.cutoff)}: "
            "its figures are too high"
        )


def _day(time_s: int) -> str:
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
