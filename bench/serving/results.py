"""Reads bench/results/serving.json and computes medians over rounds and ratios within a round."""

import json
import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

SAME_RUN: Final = timedelta(hours=1)
"""Longest time between two measurements of one round; a round takes minutes."""


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
        """Numbers of the rounds of the stage that has most."""
        return range(1, max(int(self.settings.get(name, 0)) for name in ("rounds", "overload_rounds")) + 1)

    def planned(self, stage: str) -> int:
        """How many rounds of a stage were planned."""
        name = "overload_rounds" if stage == "overload" else "rounds"
        return int(self.settings.get(name, self.settings.get("rounds", 0)))

    def value(self, key: str, name: str) -> float | None:
        """One figure of one measurement."""
        found = self.measurements.get(key, {}).get(name)
        return None if found is None else float(found)

    def median(self, key: str, name: str) -> float | None:
        """Median of a figure over the rounds; the key has ``{round}`` in it."""
        return median(self.values(key, name))

    def values(self, key: str, name: str) -> list[float]:
        """A figure of every round that has it; the key has ``{round}`` in it."""
        found = (self.value(key.format(round=number), name) for number in self.rounds)
        return [value for value in found if value is not None]

    def mean(self, key: str, name: str) -> float | None:
        """Mean of a figure over the rounds of the tuning."""
        numbers = range(1, int(self.settings.get("tuning_rounds", 0)) + 1)
        values = [value for number in numbers if (value := self.value(key.format(round=number), name)) is not None]
        return statistics.fmean(values) if values else None

    def ratio(self, key: str, to: str, name: str = "good", to_name: str | None = None) -> float | None:
        """Median of :meth:`ratios`."""
        return median(self.ratios(key, to, name, to_name))

    def ratios(self, key: str, to: str, name: str = "good", to_name: str | None = None) -> list[float]:
        """The ratio of a figure to one of the same round, of the same name by default, of every round that has both.

        A round that was gone on with on another day gives none: the machine may have been as fast as another one.
        """
        keys = ((key.format(round=number), to.format(round=number)) for number in self.rounds)
        pairs = (
            (self.value(one, name), self.value(other, to_name or name))
            for one, other in keys
            if self.are_of_one_run([one, other])
        )
        return [one / other for one, other in pairs if one is not None and other]

    def are_of_one_run(self, keys: Iterable[str]) -> bool:
        """Whether measurements, those of them that there are, were made soon after one another."""
        found = (self.measurements.get(key, {}).get("at") for key in keys)
        times = [datetime.fromisoformat(at) for at in found if at is not None]
        return not times or max(times) - min(times) <= SAME_RUN

    def of_round(self, stage: str, number: int) -> list[str]:
        """Keys of the measurements of one round of a stage."""
        return [key for key in self.measurements if key.startswith(f"{stage}/{number}/")]

    def failed(self, key: str) -> str | None:
        """The reason of a failed measurement."""
        reason: str | None = self.measurements.get(key, {}).get("failed")
        return reason

    def spread(self, key: str, name: str) -> tuple[float, float] | None:
        """Smallest and largest of a figure over the rounds."""
        values = self.values(key, name)
        return (min(values), max(values)) if values else None


def median(values: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return statistics.median(values) if values else None


def shown(values: Sequence[float], form: str, unit: str = "") -> str:
    """The median, and in brackets the lowest and the highest if they differ from it when written; a dash for nothing.

    Args:
        values: of the rounds.
        form: of one figure, as ``{:.1f}``.
        unit: behind all of them.
    """
    if not values:
        return "–"
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return middle + (f" ({low}–{high})" if {low, high} != {middle} else "") + unit
