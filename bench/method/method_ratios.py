"""Compares rows of the method's table by the means and intervals that the file holds.

Ranks of single users do not outlive a run, so a row keeps its paired intervals against other rows. Where two rows have
none against each other, a third row that both were compared with bounds the interval: half widths of logarithms add.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bench.method.method_readings import POPULARITY, Reading
from training.ranking.metrics import Interval

FIGURES: Final = "ndcg@10"
"""Key of a row's means over users and seeds."""


@dataclass(frozen=True)
class RowRatio:
    """The ratio of two rows' means.

    Attributes:
        interval: the ratio with its 95 % interval over users.
        paired: whether the interval is of the same users' gains in both rows; else it is the widest that their
            intervals against a third row allow.
    """

    interval: Interval
    paired: bool


class RowRatios:
    """Ratios between the rows of one catalogue, from the file alone.

    Args:
        rows: as :func:`bench.method.method_table.write_table` writes them.
        popularity: mean gain of ranking by popularity.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], popularity: float) -> None:
        self._rows = {row["name"]: row for row in rows}
        self._popularity = popularity

    def __contains__(self, reading: object) -> bool:
        """Whether fresh users were ranked by a reading."""
        return isinstance(reading, Reading) and self._mean(reading) is not None

    def mean(self, reading: Reading) -> float:
        """Mean over users and seeds; NaN if it was not measured."""
        found = self._mean(reading)
        return float("nan") if found is None else found

    def ratio(self, above: Reading, below: Reading) -> RowRatio | None:
        """The ratio of two means with its interval.

        Args:
            above: the one.
            below: the other, of the same reading, or popularity.

        Returns:
            None if one of them was not measured, or nothing bounds the interval.
        """
        if above not in self or below not in self:
            return None
        if above == below:
            return RowRatio(Interval(1.0, 1.0, 1.0), paired=True)
        direct = self._edges(above).get(below)
        if direct is not None:
            return RowRatio(direct, paired=True)
        return self._bounded(above, below)

    def ratios_by_seed(self, above: Reading, below: Reading) -> dict[str, float]:
        """Seed → the ratio of that seed's means, of the seeds that both have."""
        one, other = (
            {seed: means[reading.name] for seed, means in self._by_seed(reading.row).items() if reading.name in means}
            for reading in (above, below)
        )
        return {seed: one[seed] / other[seed] for seed in one if other.get(seed)}

    def _bounded(self, above: Reading, below: Reading) -> RowRatio | None:
        """The narrowest interval that a third reading bounds."""
        one, other = self._edges(above), self._edges(below)
        widths = [_half_width(one[third]) + _half_width(other[third]) for third in one.keys() & other.keys()]
        shared = list(self.ratios_by_seed(above, below))
        if not widths or not shared:
            return None
        factor = math.exp(min(widths))
        ratio = self._of_seeds(above, shared) / self._of_seeds(below, shared)
        return RowRatio(Interval(ratio, ratio / factor, ratio * factor), paired=False)

    def _edges(self, reading: Reading) -> dict[Reading, Interval]:
        """Every reading that the file compares this one with."""
        return dict(self._stored(reading)) | {
            Reading(name, reading.name): _inverse(interval)
            for name in self._rows
            for other, interval in self._stored(Reading(name, reading.name))
            if other == reading
        }

    def _stored(self, reading: Reading) -> Iterator[tuple[Reading, Interval]]:
        found = self._rows.get(reading.row, {}).get("paired", {}).get(reading.name, {})
        for row, interval in found.items():
            yield Reading(row) if row == POPULARITY else Reading(row, reading.name), Interval(*interval)

    def _mean(self, reading: Reading) -> float | None:
        if reading.row == POPULARITY:
            return self._popularity
        found: float | None = self._rows.get(reading.row, {}).get(FIGURES, {}).get(reading.name)
        return found

    def _by_seed(self, row: str) -> Mapping[str, Mapping[str, float]]:
        found: Mapping[str, Mapping[str, float]] = self._rows.get(row, {}).get(f"{FIGURES} by seed", {})
        return found

    def _of_seeds(self, reading: Reading, seeds: Sequence[str]) -> float:
        by_seed = self._by_seed(reading.row)
        return sum(by_seed[seed][reading.name] for seed in seeds) / len(seeds)


def _half_width(interval: Interval) -> float:
    """Of the interval of the ratio's logarithm, the longer side."""
    return max(math.log(interval.high / interval.ratio), math.log(interval.ratio / interval.low))


def _inverse(interval: Interval) -> Interval:
    return Interval(1 / interval.ratio, 1 / interval.high, 1 / interval.low)
