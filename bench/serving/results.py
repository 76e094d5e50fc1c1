"""Reads bench/results/serving.json and computes medians over rounds and ratios within a round."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class ServingResults:
    """A finished or unfinished run.

    Args:
        measured: the content of the file.

    Attributes:
        settings: of the run, as :class:`bench.serving.plan.ServingPlan` has them.
        machine: what it ran on.
        measurements: by key.
    """

    def __init__(self, measured: dict[str, Any]) -> None:
        self.settings: dict[str, Any] = measured.get("settings", {})
        self.machine: dict[str, Any] = measured.get("machine", {})
        self.measurements: dict[str, dict[str, Any]] = measured.get("measurements", {})

    @classmethod
    def of(cls, path: Path) -> "ServingResults":
        """Read a file."""
        return cls(json.loads(path.read_text()))

    @property
    def rounds(self) -> range:
        """Numbers of the rounds."""
        return range(1, int(self.settings.get("rounds", 0)) + 1)

    def value(self, key: str, name: str) -> float | None:
        """One figure of one measurement."""
        found = self.measurements.get(key, {}).get(name)
        return None if found is None else float(found)

    def median(self, key: str, name: str) -> float | None:
        """Median of a figure over the rounds; the key has ``{round}`` in it."""
        return _median(self.value(key.format(round=number), name) for number in self.rounds)

    def mean(self, key: str, name: str) -> float | None:
        """Mean of a figure over the rounds of the tuning."""
        numbers = range(1, int(self.settings.get("tuning_rounds", 0)) + 1)
        values = [value for number in numbers if (value := self.value(key.format(round=number), name)) is not None]
        return statistics.fmean(values) if values else None

    def ratio(self, key: str, to: str, name: str = "good", to_name: str | None = None) -> float | None:
        """Median over the rounds of the ratio of a figure to one of the same round (of the same name by default)."""
        pairs = (
            (self.value(key.format(round=number), name), self.value(to.format(round=number), to_name or name))
            for number in self.rounds
        )
        return _median(one / other for one, other in pairs if one is not None and other)

    def failed(self, key: str) -> str | None:
        """The reason of a failed measurement."""
        reason: str | None = self.measurements.get(key, {}).get("failed")
        return reason

    def spread(self, key: str, name: str) -> tuple[float, float] | None:
        """Smallest and largest of a figure over the rounds."""
        values = [value for number in self.rounds if (value := self.value(key.format(round=number), name)) is not None]
        return (min(values), max(values)) if values else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
