"""Measures warm and cold targets together, each kind as often as it occurs."""

import numpy as np

from training.ranking import metrics
from training.ranking.saved_ranks import RankedTable
from training.ranking.table import COLD_SHARE, NATURAL_MIX, PAIRED, PairedUsers, SystemRow, Table, per_user


def natural_mix(warm: RankedTable, cold: RankedTable, share: float, *, seed: int = 0) -> Table:
    """The table of the mix: ``(1 − share) ·`` the warm metrics ``+ share ·`` the cold metrics.

    Intervals come from resampling the warm and the cold targets apart, paired between systems.

    Args:
        warm: targets of items that training knew.
        cold: targets of cold items, with the cold items.
        share: share of the events that are of cold items, 0 … 1.
        seed: of the bootstrap.
    """
    names = [name for name in warm.rankings if name in cold.rankings]
    sizes = [len(warm.targets), len(cold.targets)]
    scales = [sum(sizes) * (1 - share) / sizes[0], sum(sizes) * share / sizes[1]]
    measured, values = {}, {}
    for name in names:
        parts = [per_user(part.rankings[name]) for part in (warm, cold)]
        scaled = {
            metric: np.concatenate([part[metric] * scale for part, scale in zip(parts, scales, strict=True)])
            for metric in parts[0]
        }
        lists = [part.rankings[name].lists for part in (warm, cold)]
        measured[name] = scaled
        values[name] = {metric: float(column.mean()) for metric, column in scaled.items()}
        values[name]["coverage@10"] = metrics.coverage(lists, warm.items)
        if cold.cold is not None:
            of_each = [metrics.share_in_lists([rows], cold.cold) for rows in lists]
            values[name][COLD_SHARE] = (1 - share) * of_each[0] + share * of_each[1]
    paired = PairedUsers(measured, seed, sizes)
    rows = [
        SystemRow(name, values[name], {metric: paired.ratio(name, names[0], metric) for metric in PAIRED})
        for name in names
    ]
    return Table(
        NATURAL_MIX,
        sum(sizes),
        warm.items,
        rows,
        paired,
        warm.whole + cold.whole,
        exclude_seen=warm.exclude_seen,
        added=tuple(name for name in warm.added if name in names),
    )
