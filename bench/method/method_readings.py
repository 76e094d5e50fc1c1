"""Holds per-user gains of one catalogue's runs and computes paired ratios of their means.

A reading is the vector that a model ranks with: ``fused``, ``text`` or ``image``. Users are the same in every run, so
all ratios are paired: gains of a user are averaged over the seeds first, then users are drawn again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.ranking import metrics

POPULARITY = "popularity"
FUSED = "fused"
_RESAMPLES = 1_000
_ALWAYS = -1
"""The seed of what has none."""


@dataclass(frozen=True)
class Reading:
    """One way to rank by one row's models.

    Attributes:
        row: its name, or ``popularity``.
        name: ``fused``, ``text`` or ``image``.
    """

    row: str
    name: str = FUSED


class Readings:
    """Gains of one catalogue's users by row, seed and reading.

    Args:
        runs: row → seed → reading → (users,) gains, higher is better.
        popularity: (users,) gains of ranking by popularity.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        runs: Mapping[str, Mapping[int, Mapping[str, NDArray[np.float64]]]],
        popularity: NDArray[np.float64],
        *,
        seed: int = 0,
    ) -> None:
        self._columns: dict[Reading, dict[int, int]] = {Reading(POPULARITY): {_ALWAYS: 0}}
        columns = [popularity]
        for row, seeds in runs.items():
            for number, readings in seeds.items():
                for name, gains in readings.items():
                    self._columns.setdefault(Reading(row, name), {})[number] = len(columns)
                    columns.append(gains)
        self._gains = np.stack(columns, axis=1)
        self._drawn = metrics.resampled_means(self._gains, resamples=_RESAMPLES, seed=seed)

    def __contains__(self, reading: object) -> bool:
        """Whether a reading was measured with any seed."""
        return reading in self._columns

    def seeds(self, *readings: Reading) -> list[int]:
        """Seeds that all of these were measured with."""
        found = [set(columns) for one in readings if _ALWAYS not in (columns := self._columns.get(one, {}))]
        return sorted(set.intersection(*found)) if found else []

    def mean(self, reading: Reading, seeds: Sequence[int] = ()) -> float:
        """Mean over users and seeds; NaN if it was not measured.

        Args:
            reading: of what.
            seeds: which; default all that there are.
        """
        columns = self._of(reading, seeds or self.seeds(reading))
        return float(self._gains[:, columns].mean()) if columns else float("nan")

    def ratio(self, above: Reading, below: Reading, seeds: Sequence[int] = ()) -> metrics.Interval | None:
        """Ratio of two readings' means with its 95 % interval over users.

        Args:
            above: the one.
            below: the other.
            seeds: which; default all that both were measured with.

        Returns:
            None if one of them was not measured, or no seed is shared.
        """
        chosen = seeds or self.seeds(above, below)
        one, other = self._of(above, chosen), self._of(below, chosen)
        if not one or not other:
            return None
        gains, drawn = self._gains, self._drawn
        return metrics.ratio_interval(
            gains[:, one].mean(axis=1), gains[:, other].mean(axis=1),
            drawn[:, one].mean(axis=1), drawn[:, other].mean(axis=1),
        )  # fmt: skip

    def ratios_by_seed(self, above: Reading, below: Reading) -> dict[int, float]:
        """Seed → the same ratio of that seed's runs alone."""
        found = {seed: self.ratio(above, below, [seed]) for seed in self.seeds(above, below)}
        return {seed: ratio.ratio for seed, ratio in found.items() if ratio is not None}

    def _of(self, reading: Reading, seeds: Sequence[int]) -> list[int]:
        columns = self._columns.get(reading, {})
        if _ALWAYS in columns:
            return [columns[_ALWAYS]]
        return [columns[seed] for seed in seeds if seed in columns]
