"""Compares systems on one set of targets in a table of metrics with paired intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import EvaluationError
from training.ranking import metrics
from training.ranking.ranking import TargetRanks

NEGATIVES = 100
RESAMPLES = 1_000
CUTS = (10, 20)
PAIRED = tuple(f"{metric}@{k}" for k in CUTS for metric in ("hr", "ndcg"))
"""Metrics with intervals: full ranking."""
POPULARITY = "popularity"
CO_OCCURRENCE = "co-occurrence"
ITEM_KNN = "item kNN"
EASE = "EASE"
TFIDF = "TF-IDF neighbours"
CONTENT_MEAN = "content mean"
ITEM_MEAN = "item-mean"
ITEM_MEAN_UNIT = "item-mean, unit slots"
BASELINES = (POPULARITY, CO_OCCURRENCE, ITEM_KNN, EASE, TFIDF, CONTENT_MEAN)
"""Systems that every row of the saved table is compared with; they are the same for every run of a data set."""
TEST = "test"
VALIDATION = "validation"
FRESH_USERS = "fresh users"
COLD_ITEMS = "cold items"
AMONG_COLD = "cold items among cold"
NATURAL_MIX = "natural mix"
COLD_SHARE = "cold@10"
"""Share of cold items in the first ten positions."""
WITHOUT_REPEATS = "without repeats"
"""Suffix of the name of a table whose targets are not in their own history."""


class PairedUsers:
    """Metrics of every system for each user, with the same bootstrap resamples for all systems.

    Args:
        measured: system → metric → (users,) float64.
        seed: of the resampling.
        strata: numbers of users of consecutive groups that are resampled apart, with their sum; None for one group.
    """

    def __init__(
        self,
        measured: Mapping[str, Mapping[str, NDArray[np.float64]]],
        seed: int,
        strata: Sequence[int] | None = None,
    ) -> None:
        self._places = {name: number for number, name in enumerate((s, m) for s in measured for m in PAIRED)}
        self._columns = np.stack([measured[system][metric] for system, metric in self._places], axis=1)
        users, start = len(self._columns), 0
        self._drawn = np.zeros((RESAMPLES, len(self._places)))
        for number, size in enumerate([users] if strata is None else strata):
            group = self._columns[start : start + size]
            drawn = metrics.resampled_means(group, resamples=RESAMPLES, seed=seed + number)
            self._drawn += drawn * (size / users)
            start += size

    def ratio(self, system: str, against: str, metric: str) -> metrics.Interval:
        """Mean of one system over that of another, with its paired 95 % bootstrap interval.

        Args:
            system: name of a system.
            against: name of the system to compare with.
            metric: one of :data:`PAIRED`.
        """
        own, other = self._places[system, metric], self._places[against, metric]
        return metrics.ratio_interval(
            self._columns[:, own], self._columns[:, other], self._drawn[:, own], self._drawn[:, other]
        )


@dataclass(frozen=True)
class SystemRow:
    """The metrics of one system.

    Attributes:
        name: of the system.
        values: metric name → mean over users; ``hr@10`` … for full ranking, ``hr@10/100`` … for the 100 negatives,
            ``coverage@10`` = share of the catalogue in the first ten of any user; ``cold@10`` = share of cold items in
            the first ten positions, where some were held out.
        ratios: metric name → ratio to the first system on the same users, with its 95 % interval.
    """

    name: str
    values: dict[str, float]
    ratios: dict[str, metrics.Interval]


@dataclass(frozen=True)
class Table:
    """All systems on one set of targets.

    Attributes:
        name: ``test``, ``validation``, ``fresh users``, ``cold items``, ``cold items among cold`` or ``natural mix``.
        users: number of targets.
        items: size of the catalogue.
        rows: one per system, popularity first.
        paired: the same users under every system.
        whole: number of targets before evenly spaced ones were chosen; ``users`` if all were.
        repeats: targets that are in their own history.
        exclude_seen: items of the history were excluded, so that each of these is a miss.
        candidates: number of items that were ranked, before the mask; None for all.
        added: names of the rows of other runs or libraries.
    """

    name: str
    users: int
    items: int
    rows: list[SystemRow]
    paired: PairedUsers
    whole: int
    repeats: int = 0
    exclude_seen: bool = True
    candidates: int | None = None
    added: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        rankings: Mapping[str, TargetRanks],
        items: int,
        *,
        whole: int | None = None,
        repeats: int = 0,
        exclude_seen: bool = True,
        cold: NDArray[np.bool_] | None = None,
        candidates: int | None = None,
        added: tuple[str, ...] = (),
        seed: int,
    ) -> "Table":
        """Measure rankings of the same targets.

        Args:
            name: of the table.
            rankings: system → ranks; ``SystemRow.ratios`` are to the first.
            items: size of the catalogue.
            whole: number of targets before some were chosen.
            repeats: targets that are in their own history.
            exclude_seen: items of the history were excluded.
            cold: (items,) bool, items that were held out of training; None where none were.
            candidates: number of items that were ranked; None for all.
            added: names of the rows of other runs or libraries.
            seed: of the bootstrap.
        """
        measured = {system: per_user(ranking) for system, ranking in rankings.items()}
        paired, first = PairedUsers(measured, seed), next(iter(rankings))
        users = len(rankings[first].full)
        rows = [
            SystemRow(
                system,
                {metric: float(values.mean()) for metric, values in measured[system].items()}
                | {"coverage@10": metrics.coverage([ranking.lists], items)}
                | ({} if cold is None else {COLD_SHARE: metrics.share_in_lists([ranking.lists], cold)}),
                {metric: paired.ratio(system, first, metric) for metric in PAIRED},
            )
            for system, ranking in rankings.items()
        ]
        targets = users if whole is None else whole
        return cls(name, users, items, rows, paired, targets, repeats, exclude_seen, candidates, added)

    def row(self, name: str) -> SystemRow:
        """The row of one system.

        Raises:
            EvaluationError: there is no row of this name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise EvaluationError(f"no row {name!r}; the table has {[row.name for row in self.rows]}")

    def ratio(self, system: str, against: str, metric: str) -> metrics.Interval:
        """A row over another, with its paired interval; see :meth:`PairedUsers.ratio`.

        Raises:
            EvaluationError: there is no such row.
        """
        return self.paired.ratio(self.row(system).name, self.row(against).name, metric)

    def yardstick(self, wanted: str | None) -> str:
        """The row that the printed table compares with.

        Args:
            wanted: name of a row; None for popularity, or TF-IDF neighbours for cold items, which popularity
                cannot rank.

        Raises:
            EvaluationError: there is no such row.
        """
        names = {row.name for row in self.rows}
        usual = TFIDF if self.name in {COLD_ITEMS, AMONG_COLD} and TFIDF in names else self.rows[0].name
        return self.row(usual if wanted is None else wanted).name

    def as_json(self, against: Sequence[str] = ()) -> dict[str, Any]:
        """Plain values for a JSON file; a ratio that is not defined is null.

        Args:
            against: rows to compare with, beside the baselines.
        """
        names = [row.name for row in self.rows]
        baselines = list(dict.fromkeys(name for name in (*BASELINES, *against) if name in names))
        return {
            "name": self.name,
            "users": self.users,
            "whole": self.whole,
            "items": self.items,
            "candidates": self.items if self.candidates is None else self.candidates,
            "repeats": self.repeats,
            "exclude_seen": self.exclude_seen,
            "rows": [
                {
                    "name": row.name,
                    **row.values,
                    "ratio_to_popularity": _plain(row.ratios),
                    "ratios": {
                        baseline: _plain({metric: self.ratio(row.name, baseline, metric) for metric in PAIRED})
                        for baseline in baselines
                    },
                }
                for row in self.rows
            ],
        }


def per_user(ranking: TargetRanks) -> dict[str, NDArray[np.float64]]:
    """Metric name → (users,) float64."""
    measured = {}
    for k in CUTS:
        measured[f"hr@{k}"] = metrics.hits(ranking.full, k)
        measured[f"ndcg@{k}"] = metrics.gains(ranking.full, k)
    for k in CUTS:
        measured[f"hr@{k}/{NEGATIVES}"] = metrics.hits(ranking.sampled, k)
        measured[f"ndcg@{k}/{NEGATIVES}"] = metrics.gains(ranking.sampled, k)
    return measured


def _plain(ratios: Mapping[str, metrics.Interval]) -> dict[str, list[float | None]]:
    return {
        metric: [part if np.isfinite(part) else None for part in (interval.ratio, interval.low, interval.high)]
        for metric, interval in ratios.items()
    }
