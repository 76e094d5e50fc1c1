"""Evaluates a fitted run by the protocol of docs/method.md ("Evaluation protocol")."""

# Every row is measured on the same users: full ranking as in serving, and the 100-negatives protocol beside it. The
# encoder rows use the exported ONNX model and float32 scores of the stored vectors, as serving does.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.items.slots import BEHAVIOUR, SlotLayout
from index.lists.item_lists import ItemLists, ListWeights
from training.data.sequences import Sequences, Targets, evenly_spaced, last_item
from training.encoder.job import Split
from training.errors import EvaluationError
from training.evaluation.fitted_run import FittedRun
from training.lists.list_ranker import ListRanker
from training.ranking.baselines import CoOccurrence, ItemMean, Popularity, Ranker, unit_slots
from training.ranking.cold_items import cold_targets, without_items
from training.ranking.natural_mix import natural_mix
from training.ranking.ranking import rank_targets, sample_negatives
from training.ranking.saved_ranks import RankedTable
from training.ranking.slot_ranker import SlotRanker
from training.ranking.table import (
    AMONG_COLD,
    CO_OCCURRENCE,
    COLD_ITEMS,
    FRESH_USERS,
    ITEM_MEAN,
    ITEM_MEAN_UNIT,
    NEGATIVES,
    POPULARITY,
    TEST,
    TFIDF,
    VALIDATION,
    Table,
)
from training.ranking.tfidf_neighbours import TfidfNeighbours

SERVED = "served encoder"
ENCODER_ALONE = "encoder alone"
LISTS_ALONE = "lists alone"
NO_BEHAVIOUR = "behaviour weight 0"
"""What a request with slot weight 0 for behaviour gets: the encoder reads whole items, behaviour adds no score."""
WITHOUT_LISTS = ", without lists"
"""End of the name of a row with some slots only in which their item-to-item lists do not count."""
NO_WEIGHTS = ListWeights(np.ones(1, dtype=np.float32), {})
_SUBSETS = (("text",), ("image",), ("behaviour",), ("text", "image"))
System: TypeAlias = tuple[Ranker, NDArray[np.bool_]]
"""A ranker and the (n,) bool items that it can return at all."""
Systems: TypeAlias = Mapping[str, System]
"""Name → system."""


@dataclass(frozen=True)
class TargetSet:
    """Named held-out events.

    Attributes:
        name: of their table.
        targets: events to measure.
        whole: number of events before some were chosen.
        cold: (n,) bool, items that were held out of training; None where none were.
        among: (n,) bool, the only candidates; None for the whole catalogue.
    """

    name: str
    targets: Targets
    whole: int
    cold: NDArray[np.bool_] | None = None
    among: NDArray[np.bool_] | None = None


def rankers(
    run: FittedRun,
    split: Split,
    texts: Sequence[str | None] | None = None,
    baselines: Systems | None = None,
) -> dict[str, System]:
    """Every system that needs no vision-language model.

    What is served is the encoder with the item-to-item lists; with some slots only, the lists of these slots count.
    Where lists are served there are rows of the encoder alone, without each list, of the lists alone, and of the slots
    without their lists.

    Args:
        run: the fitted run.
        split: of the same data set; only the events that the run was fitted on are used.
        texts: of its items, for the neighbours by TF-IDF; None for no such system.
        baselines: further ones, see :func:`training.evaluation.interaction_baselines.interaction_baselines`.

    Returns:
        Name → ranker and the (n,) bool items that it can return; popularity first.
    """
    layout, vectors = run.table.layout, np.asarray(run.table.vectors, dtype=np.float32)
    items = len(run.table)
    everything = np.ones(items, dtype=np.bool_)
    lists = ItemLists(items, (), NO_WEIGHTS) if run.lists is None else run.lists.used()
    encoder = SlotRanker(vectors, run.encoder.encode, run.encoder.max_history)
    systems: dict[str, System] = {
        POPULARITY: (Popularity(run.table.popularity), everything),
        CO_OCCURRENCE: (CoOccurrence(run.learned_from(split), items), everything),
    }
    if texts is not None:
        alike = TfidfNeighbours(texts, run.encoder.max_history)
        systems[TFIDF] = (alike, alike.findable)
    systems |= baselines or {}
    systems[ITEM_MEAN] = (ItemMean(vectors, run.encoder.max_history), encoder.findable)
    systems[ITEM_MEAN_UNIT] = (
        ItemMean(unit_slots(layout, vectors), run.encoder.max_history),
        encoder.findable,
    )
    systems[SERVED] = (with_lists(encoder, lists), encoder.findable)
    if lists.lists:
        systems[ENCODER_ALONE] = (encoder, encoder.findable)
    for name in lists.names:
        fewer = lists.only([other for other in lists.names if other != name])
        systems[f"without {name}"] = (with_lists(encoder, fewer), encoder.findable)
    if run.lists is not None and run.list_weights_alone is not None:
        alone = run.lists.weighed(run.list_weights_alone).used()
        if alone.lists:
            systems[LISTS_ALONE] = (ListRanker(alone), encoder.findable)
    return systems | _slot_systems(run, encoder.findable, vectors, lists)


def _slot_systems(
    run: FittedRun, findable: NDArray[np.bool_], vectors: NDArray[np.float32], lists: ItemLists
) -> dict[str, System]:
    """Rows in which only some slots exist, and the row of requests that give behaviour no weight."""
    layout, systems = run.table.layout, dict[str, System]()
    for subset in _SUBSETS:
        if set(subset) < set(layout.names):
            some = SlotRanker(layout.keep_only(subset, vectors), run.encoder.encode, run.encoder.max_history)
            own = lists.for_layout(SlotLayout(tuple(slot for slot in layout.slots if slot.name in subset)))
            systems[subset_name(subset)] = (with_lists(some, own), some.findable)
            if own.lists:
                systems[subset_name(subset) + WITHOUT_LISTS] = (some, some.findable)
    others = tuple(slot for slot in layout.slots if slot.name != BEHAVIOUR)
    if others and len(others) < len(layout.slots):
        weights = layout.weights({BEHAVIOUR: 0.0})
        scales = layout.weight_scales(layout.present(vectors), {BEHAVIOUR: 0.0})
        weighed = SlotRanker(vectors, run.encoder.encode, run.encoder.max_history, weights, scales)
        systems[NO_BEHAVIOUR] = (with_lists(weighed, lists.for_layout(SlotLayout(others))), findable)
    return systems


def with_lists(ranker: Ranker, lists: ItemLists) -> Ranker:
    """A ranker with what lists add to it; the ranker itself where there are none."""
    return ListRanker(lists, ranker) if lists.lists else ranker


def subset_name(subset: Sequence[str]) -> str:
    """Name of the row in which only these slots exist."""
    return f"{' + '.join(subset)} only"


def fresh_targets(interactions: pl.DataFrame, item_ids: Sequence[str], split: Split) -> Targets:
    """The last event of each of further users, cold items left out as for the test targets.

    Args:
        interactions: of these users, as in `Dataset.interactions`.
        item_ids: the catalogue's ids in row order.
        split: gives the cold items, which have a table of their own.
    """
    return last_item(without_items(Sequences.from_interactions(interactions, item_ids), split.cold))


def target_sets(
    split: Split, *, fresh: Targets | None = None, on_validation: bool = False, most: int | None = None
) -> list[TargetSet]:
    """The target sets of a run: test (or validation, or fresh users), and cold items if some were held out.

    Cold items are ranked over the whole catalogue and once more among cold items.

    Args:
        split: as :meth:`FittedRun.split` gives it.
        fresh: of :func:`fresh_targets`; in place of the test targets.
        on_validation: measure on validation targets, while choosing.
        most: evenly spaced targets of each set where there are more; None for all.
    """
    if fresh is not None:
        found = {FRESH_USERS: fresh}
    elif on_validation:
        found = {VALIDATION: split.parts.validation}
    else:
        found = {TEST: split.parts.test}
    cold = split.cold if split.cold.any() else None
    sets = [TargetSet(name, evenly_spaced(targets, most), len(targets), cold) for name, targets in found.items()]
    if cold is not None and len(targets := cold_targets(split.sequences, cold)):
        few = evenly_spaced(targets, most)
        sets += [TargetSet(COLD_ITEMS, few, len(targets), cold), TargetSet(AMONG_COLD, few, len(targets), cold, cold)]
    return sets


def rank_sets(
    sets: Sequence[TargetSet],
    systems: Systems,
    *,
    exclude_seen: bool = True,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _users: None,
) -> list[RankedTable]:
    """Let every system rank the catalogue for the same targets.

    Args:
        sets: held-out events.
        systems: name → ranker and the items it can return; ``SystemRow.ratios`` are to the first.
        exclude_seen: exclude the items of the history, as the service does.
        seed: of the negatives.
        advance: called with the number of users done, once per system and block.

    Raises:
        EvaluationError: no targets, or a score that is not finite.
    """
    items, tables = len(next(iter(systems.values()))[1]), []
    for part in sets:
        if not part.whole:
            raise EvaluationError(f"{part.name}: nothing to evaluate, no user has a held-out event")
        negatives = _negatives(part, items, seed)
        rankings = {
            name: rank_targets(
                ranker,
                part.targets,
                findable if part.among is None else findable & part.among,
                negatives=negatives,
                exclude_seen=exclude_seen,
                advance=advance,
            )
            for name, (ranker, findable) in systems.items()
        }
        among = None if part.among is None else int(part.among.sum())
        tables.append(RankedTable(part.name, part.targets, items, rankings, part.whole, exclude_seen, part.cold, among))
    return tables


def _negatives(part: TargetSet, items: int, seed: int) -> NDArray[np.int64]:
    """Negatives of the sampled protocol, drawn among the candidates."""
    if part.among is None:
        return sample_negatives(part.targets, items, NEGATIVES, seed=seed)
    rows = np.flatnonzero(part.among)
    places = np.cumsum(part.among) - 1
    histories = [places[history[part.among[history]]] for history in part.targets.histories]
    targets = Targets(histories, places[part.targets.targets], part.targets.users)
    drawn = sample_negatives(targets, len(rows), NEGATIVES, seed=seed)
    return np.where(drawn >= 0, rows[drawn], -1)


def measured_tables(ranked: Sequence[RankedTable], split: Split) -> list[Table]:
    """Every table with its metrics, and the natural mix of warm and cold targets where there are cold items.

    Args:
        ranked: as :func:`rank_sets` gives them, rows of other runs possibly added.
        split: gives the share of cold events.
    """
    tables = [table.measured() for part in ranked for table in (part, *part.without_repeats())]
    named = {part.name: part for part in ranked}
    if COLD_ITEMS in named:
        share = float(split.cold[split.sequences.rows].mean())
        tables.append(natural_mix(ranked[0], named[COLD_ITEMS], share))
    return tables


def evaluate_targets(
    name: str,
    systems: Systems,
    targets: Targets,
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _users: None,
) -> Table:
    """Measure systems on one set of targets, see :func:`rank_sets`.

    Args:
        name: of the table.
        systems: name → ranker and the items it can return.
        targets: held-out events.
        seed: of the negatives and the bootstrap.
        advance: called with the number of users done.

    Raises:
        EvaluationError: no targets, or a score that is not finite.
    """
    (ranked,) = rank_sets([TargetSet(name, targets, len(targets))], systems, seed=seed, advance=advance)
    return ranked.measured(seed=seed)


def evaluate_run(
    split: Split,
    systems: Systems,
    *,
    fresh: Targets | None = None,
    on_validation: bool = False,
    exclude_seen: bool = True,
    advance: Callable[[int], None] = lambda _users: None,
) -> list[Table]:
    """All tables of a run, see :func:`target_sets`.

    Args:
        split: as :meth:`FittedRun.split` gives it.
        systems: as :func:`rankers` gives them.
        fresh: targets of users that training never saw; in place of the test targets.
        on_validation: measure on validation targets, while choosing.
        exclude_seen: exclude the items of the history, as the service does.
        advance: called with the number of users done.

    Raises:
        EvaluationError: nothing to evaluate, or a score that is not finite.
    """
    sets = target_sets(split, fresh=fresh, on_validation=on_validation)
    ranked = rank_sets(sets, systems, exclude_seen=exclude_seen, advance=advance)
    return measured_tables(ranked, split)
