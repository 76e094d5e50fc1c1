"""Compares recipes on events after a cut-off: what each would have shown, fitted on what was known before."""

import math
from collections.abc import Mapping

import numpy as np
import polars as pl

from index.items.item_table import ITEM_ID
from index.lists.item_lists import ItemLists
from training.data.dataset import TIMESTAMP, USER_ID
from training.data.sequences import Sequences, Targets
from training.data.timestamps import EARLIEST_S
from training.errors import EvaluationError
from training.evaluation.evaluate import NO_WEIGHTS, System, TargetSet, rank_sets, with_lists
from training.evaluation.fitted_run import FittedRun
from training.ranking.baselines import Popularity
from training.ranking.slot_ranker import SlotRanker
from training.ranking.table import POPULARITY, Table

AFTER_CUTOFF = "after the cut-off"
MOST_TARGETS = 20_000
_DAY_S = 86_400


def cutoff_of(interactions: pl.DataFrame, days: float) -> int:
    """The cut-off that leaves the last days to measure, in whole seconds since 1970 UTC.

    Args:
        interactions: at least one, as in `Dataset.interactions`.
        days: before the newest of them; any number, also one before every timestamp.
    """
    newest = float(interactions[TIMESTAMP].max())  # type: ignore[arg-type]  # a number
    return math.floor(max(newest - days * _DAY_S, EARLIEST_S))


def events_before(interactions: pl.DataFrame, cutoff: int) -> pl.DataFrame:
    """The interactions before a cut-off.

    Raises:
        EvaluationError: there is none.
    """
    before = interactions.filter(pl.col(TIMESTAMP) < cutoff)
    if before.is_empty():
        raise EvaluationError(
            f"all {interactions.height:,} interactions are held out, so none is left to learn from before them; give "
            "fewer --measure-days"
        )
    return before


def targets_after(interactions: pl.DataFrame, item_ids: list[str], cutoff: int) -> Targets:
    """The first event of each user at or after the cut-off, with everything before the cut-off as history.

    One event a user, so that intervals over users hold. A user without an earlier event gets popular items from every
    recipe, and is left out.

    Args:
        interactions: as in `Dataset.interactions`.
        item_ids: the catalogue's ids in row order.
        cutoff: seconds since 1970 UTC.
    """
    known = interactions.filter(pl.col(TIMESTAMP) < cutoff)
    first = interactions.filter(pl.col(TIMESTAMP) >= cutoff).unique(USER_ID, keep="first", maintain_order=True)
    first = first.filter(pl.col(USER_ID).is_in(known[USER_ID].unique().implode()))
    if first.is_empty():
        return Targets([], np.zeros(0, dtype=np.int64), [])
    histories = Sequences.from_interactions(known, item_ids)
    places = {user: place for place, user in enumerate(histories.user_ids)}
    rows = {item_id: row for row, item_id in enumerate(item_ids)}
    users = first[USER_ID].to_list()
    targets = np.array([rows[item_id] for item_id in first[ITEM_ID].to_list()], dtype=np.int64)
    return Targets([histories.of(places[user]) for user in users], targets, users)


def compare_recipes(runs: Mapping[str, FittedRun], targets: Targets, whole: int) -> Table:
    """Rank the same targets by recipes, each as it would serve; popularity before the cut-off is the first row.

    Args:
        runs: recipe → its run, fitted on what lies before the cut-off and loaded with ``served``; seen items are
            excluded as the first one does.
        targets: of :func:`targets_after`, in the catalogue of the runs.
        whole: their number before some were chosen.

    Raises:
        EvaluationError: there is no target, or a score is not finite.
    """
    if not whole:
        raise EvaluationError(
            "no user with an event before the cut-off has one after it, so nothing measures the recipes; give more "
            "--measure-days"
        )
    first = next(iter(runs.values()))
    everything = np.ones(len(first.table), dtype=np.bool_)
    systems: dict[str, System] = {POPULARITY: (Popularity(first.table.popularity), everything)}
    for name, run in runs.items():
        vectors = np.asarray(run.table.vectors, dtype=np.float32)
        encoder = SlotRanker(vectors, run.encoder.encode, run.encoder.max_history)
        lists = ItemLists(len(run.table), (), NO_WEIGHTS) if run.lists is None else run.lists.used()
        systems[name] = (with_lists(encoder, lists), encoder.findable)
    (ranked,) = rank_sets([TargetSet(AFTER_CUTOFF, targets, whole)], systems, exclude_seen=first.exclude_seen)
    return ranked.measured()
