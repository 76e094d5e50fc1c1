"""Evaluation of a fitted run: the protocol of docs/method.md ("Evaluation protocol").

Every row is measured on the same users: full ranking with the history masked, the 100-negatives protocol beside it.
The encoder rows go through the exported ONNX model and float32 scores of the stored vectors, which is what serving
computes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.encoder import OnnxSequenceEncoder
from index.errors import IndexingError
from index.item_table import ItemTable
from training import metrics
from training.baselines import CoOccurrence, ItemMean, Popularity, Ranker
from training.cold_items import cold_targets
from training.dataset import Dataset
from training.encoder_run import ENCODER_FILE, FIT_FILE, TABLE_DIRECTORY, Split, split_dataset
from training.errors import EvaluationError
from training.ranking import Ranking, rank_targets, sample_negatives
from training.sequences import Targets
from training.slot_ranker import SlotRanker

NEGATIVES = 100
RESAMPLES = 1_000
BASELINE = "popularity"
SERVED = "served encoder"
CUTS = (10, 20)
_SUBSETS = (("text",), ("image",), ("behaviour",), ("text", "image"))


@dataclass(frozen=True)
class Row:
    """One system, measured.

    Attributes:
        name: of the system.
        values: metric name → mean over users; ``hr@10`` … for full ranking, ``hr@10/100`` … for the 100 negatives,
            ``coverage@10`` = share of the catalogue in anyone's first ten.
        ratios: metric name → ratio to popularity on the same users, with its 95 % interval.
    """

    name: str
    values: dict[str, float]
    ratios: dict[str, metrics.Interval]


@dataclass(frozen=True)
class Table:
    """All systems on one set of targets.

    Attributes:
        name: ``test``, ``validation``, ``fresh users`` or ``cold items``.
        users: number of targets.
        items: number of candidates before the mask.
        rows: one per system, popularity first.
    """

    name: str
    users: int
    items: int
    rows: list[Row]

    def row(self, name: str) -> Row:
        """The row of one system.

        Raises:
            EvaluationError: there is none of this name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise EvaluationError(f"no row {name!r}; the table has {[row.name for row in self.rows]}")

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; a ratio that is not defined is null."""
        return {
            "name": self.name,
            "users": self.users,
            "items": self.items,
            "rows": [
                {
                    "name": row.name,
                    **row.values,
                    "ratio_to_popularity": {
                        metric: [_plain(part) for part in (interval.ratio, interval.low, interval.high)]
                        for metric, interval in row.ratios.items()
                    },
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True)
class FittedRun:
    """A run directory's encoder, loaded for evaluation.

    Attributes:
        table: stored vectors.
        encoder: under ONNX Runtime.
        record: what ``fit.json`` says.
    """

    table: ItemTable
    encoder: OnnxSequenceEncoder
    record: dict[str, Any]

    @classmethod
    def load(cls, directory: Path, *, threads: int = 1) -> "FittedRun":
        """Read ``RUN/encoder``.

        Raises:
            EvaluationError: nothing was fitted there, or a file is unreadable.
        """
        if not (directory / FIT_FILE).is_file():
            raise EvaluationError(f"{directory}: no fitted encoder here; run `vlm2rec fit-encoder` first")
        try:
            return cls(
                ItemTable.load(directory / TABLE_DIRECTORY),
                OnnxSequenceEncoder(directory / ENCODER_FILE, threads=threads),
                dict(json.loads((directory / FIT_FILE).read_text(encoding="utf-8"))),
            )
        except (IndexingError, OSError, ValueError, TypeError) as error:
            raise EvaluationError(
                f"{directory}: the fitted encoder cannot be read ({error}); run `vlm2rec fit-encoder` again"
            ) from error

    def split(self, dataset: Dataset) -> Split:
        """Split the data set as it was for fitting.

        Raises:
            EvaluationError: the run was fitted on other items or interactions.
        """
        try:
            share = float(self.record["config"]["cold_items"])
            fingerprint = str(self.record["data"]["fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"{FIT_FILE} lacks {error}; run `vlm2rec fit-encoder` again") from error
        split = split_dataset(dataset, share)
        if split.fingerprint != fingerprint:
            raise EvaluationError(
                "the encoder was fitted on other items or interactions than these; give `evaluate` the same data set "
                "and --interactions as `fit-encoder`"
            )
        return split


def rankers(run: FittedRun, split: Split) -> dict[str, tuple[Ranker, NDArray[np.bool_]]]:
    """Every system to be measured, with the items it can return.

    Args:
        run: the fitted run.
        split: of the same data set; only its training part is used.

    Returns:
        Name → ranker and (n,) bool; popularity first.
    """
    layout, vectors = run.table.layout, np.asarray(run.table.vectors, dtype=np.float32)
    items = len(run.table)
    everything = np.ones(items, dtype=np.bool_)
    served = SlotRanker(vectors, run.encoder.encode, run.encoder.max_history)
    systems: dict[str, tuple[Ranker, NDArray[np.bool_]]] = {
        BASELINE: (Popularity(run.table.popularity), everything),
        "co-occurrence": (CoOccurrence(split.parts.train, items), everything),
        "item-mean": (ItemMean(vectors, run.encoder.max_history), served.findable),
        SERVED: (served, served.findable),
    }
    for subset in _SUBSETS:
        if set(subset) < set(layout.names):
            some = SlotRanker(layout.keep_only(subset, vectors), run.encoder.encode, run.encoder.max_history)
            systems[subset_name(subset)] = (some, some.findable)
    return systems


def subset_name(subset: Sequence[str]) -> str:
    """Name of the row in which only these slots exist."""
    return f"{' + '.join(subset)} only"


def evaluate_targets(
    name: str,
    systems: Mapping[str, tuple[Ranker, NDArray[np.bool_]]],
    targets: Targets,
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _users: None,
) -> Table:
    """Measure systems on one set of targets.

    Args:
        name: of the table.
        systems: name → ranker and the items it can return; the first is the one the ratios are against.
        targets: held-out events.
        seed: of the negatives and the bootstrap.
        advance: called with the number of users done, once per system and block.

    Raises:
        EvaluationError: no targets, or a score that is not finite.
    """
    if not len(targets):
        raise EvaluationError(f"{name}: nothing to evaluate, no user has a held-out event")
    items = len(next(iter(systems.values()))[1])
    negatives = sample_negatives(targets, items, NEGATIVES, seed=seed)
    per_user: dict[str, dict[str, NDArray[np.float64]]] = {}
    lists: dict[str, NDArray[np.int64]] = {}
    for system, (ranker, findable) in systems.items():
        ranking = rank_targets(ranker, targets, findable, negatives=negatives, advance=advance)
        per_user[system], lists[system] = _per_user(ranking), ranking.lists
    ratios = _ratios(per_user, seed)
    rows = [
        Row(
            system,
            {metric: float(values.mean()) for metric, values in measured.items()}
            | {"coverage@10": metrics.coverage([lists[system]], items)},
            ratios[system],
        )
        for system, measured in per_user.items()
    ]
    return Table(name, len(targets), items, rows)


def evaluate_run(
    split: Split,
    systems: Mapping[str, tuple[Ranker, NDArray[np.bool_]]],
    *,
    fresh: Targets | None = None,
    on_validation: bool = False,
    advance: Callable[[int], None] = lambda _users: None,
) -> list[Table]:
    """All tables of a run: test (or validation, or fresh users), and cold items if some were held out.

    Args:
        split: as :meth:`FittedRun.split` gives it.
        systems: as :func:`rankers` gives them.
        fresh: targets of users that training never saw; in place of the test targets.
        on_validation: measure on validation targets, while choosing.
        advance: called with the number of users done.

    Raises:
        EvaluationError: nothing to evaluate, or a score that is not finite.
    """
    if fresh is not None:
        tables = [evaluate_targets("fresh users", systems, fresh, advance=advance)]
    elif on_validation:
        tables = [evaluate_targets("validation", systems, split.parts.validation, advance=advance)]
    else:
        tables = [evaluate_targets("test", systems, split.parts.test, advance=advance)]
    if split.cold.any():
        cold = cold_targets(split.sequences, split.cold)
        if len(cold):
            tables.append(evaluate_targets("cold items", systems, cold, advance=advance))
    return tables


def _per_user(ranking: Ranking) -> dict[str, NDArray[np.float64]]:
    measured = {}
    for k in CUTS:
        measured[f"hr@{k}"] = metrics.hits(ranking.full, k)
        measured[f"ndcg@{k}"] = metrics.gains(ranking.full, k)
    for k in CUTS:
        measured[f"hr@{k}/{NEGATIVES}"] = metrics.hits(ranking.sampled, k)
        measured[f"ndcg@{k}/{NEGATIVES}"] = metrics.gains(ranking.sampled, k)
    return measured


def _ratios(
    per_user: Mapping[str, Mapping[str, NDArray[np.float64]]], seed: int
) -> dict[str, dict[str, metrics.Interval]]:
    """Paired intervals of HR and NDCG at 10, full ranking, against the first system."""
    names = [f"hr@{CUTS[0]}", f"ndcg@{CUTS[0]}"]
    columns = np.stack([measured[name] for measured in per_user.values() for name in names], axis=1)
    drawn = metrics.resampled_means(columns, resamples=RESAMPLES, seed=seed)
    ratios: dict[str, dict[str, metrics.Interval]] = {}
    for number, system in enumerate(per_user):
        ratios[system] = {
            name: metrics.ratio_interval(
                columns[:, number * len(names) + place],
                columns[:, place],
                drawn[:, number * len(names) + place],
                drawn[:, place],
            )
            for place, name in enumerate(names)
        }
    return ratios


def _plain(value: float) -> float | None:
    return value if np.isfinite(value) else None
