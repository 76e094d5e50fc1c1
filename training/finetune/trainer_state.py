"""Holds the state of a training run beside weights and moments."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from training.errors import BackboneError


@dataclass
class TrainerState:
    """State of a run beside weights and moments, stored in every checkpoint.

    Attributes:
        step: steps done.
        confidence_gap: moving average of the loss, see :func:`training.losses.method_loss.method_loss`.
        window: values of the steps since the last line of the log.
        seconds: time in steps, including the wait for batches.
        best: highest validation metric so far; None before the first validation.
        best_step: steps done when it was measured.
        worse: validations since then.
    """

    step: int = 0
    confidence_gap: float = 0.0
    window: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    worse: int = 0

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TrainerState":
        """Read what :meth:`as_json` gave.

        Raises:
            BackboneError: another version of the program wrote it, with a value that this one does not know.
        """
        values = dict(stored)
        odd = sorted((values.keys() - cls().as_json().keys()) | ({"lead"} - values.keys()))
        if odd:
            raise BackboneError(
                f"the newest checkpoint is of another version of the program ({', '.join(odd)}); resume with that "
                "version, or use another --run"
            )
        return cls(confidence_gap=values.pop("lead"), **values)

    def as_json(self) -> dict[str, Any]:
        """JSON-able values; the moving average is called ``lead`` in checkpoints."""
        values = asdict(self)
        return {"lead": values.pop("confidence_gap"), **values}
