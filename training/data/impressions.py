"""Finds the impressions that a user did not follow, for the next event of the user as extra negatives."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.items.item_table import ITEM_ID
from training.data.dataset import TIMESTAMP, USER_ID, Dataset, in_order, read_any_interactions, row_numbers
from training.data.event_weights import deciding_values
from training.data.timestamps import read_timestamps
from training.errors import DatasetError

_WINDOW_S: Final = 86_400
_TYPE: Final = "type"


def read_impressions(dataset: Dataset) -> pl.DataFrame:
    """The impressions of items of a catalogue.

    Args:
        dataset: whose events are weighed by their type.

    Returns:
        ``user_id``, ``item_id`` and ``timestamp`` (int64 seconds), oldest first, also within a second; rows without one
        of them are left out.

    Raises:
        DatasetError: the types of the events have no meaning.
    """
    types, source = dataset.event_types, dataset.source
    if types is None or source is None:
        raise DatasetError(
            f"{dataset.name()}: encoder.impression_negatives needs events of several types; add events.toml with "
            'weight_by = "type"'
        )
    with dataset.naming():
        frame = read_any_interactions(source, (_TYPE,))
    names = deciding_values(source, frame[_TYPE]).fill_null("")
    is_impression = pl.Series([types.meaning(name or types.default_type) == "impression" for name in names.to_list()])
    found = frame.filter(is_impression).select(USER_ID, ITEM_ID, TIMESTAMP)
    times = read_timestamps(found[TIMESTAMP]).microseconds.cast(pl.Int64)
    known = found.with_columns(times.alias(TIMESTAMP)).drop_nulls().sort(TIMESTAMP, maintain_order=True)
    known = known.with_columns(pl.col(TIMESTAMP) // 1_000_000)
    return known.filter(pl.col(ITEM_ID).is_in(dataset.items[ITEM_ID].implode()))


def shown_before(
    interactions: pl.DataFrame, impressions: pl.DataFrame, item_ids: Sequence[str], most: int
) -> NDArray[np.int64]:
    """The impressions before each event and after the user's event before it, which were not followed.

    An impression was followed if the user has a positive event of the item within 24 hours from it.

    Args:
        interactions: positive events that decide what was followed, and are learned from; see
            :attr:`Dataset.interactions`.
        impressions: result of :func:`read_impressions`.
        item_ids: the catalogue's ids in row order.
        most: of an event; the newest count.

    Returns:
        (events, most) int64 item rows, newest first, −1 for none; events in the order of `in_order`.
    """
    place, shown_at, number = "__place", "__shown_at", "__number"
    events = in_order(interactions).with_row_index(place).select(place, USER_ID, ITEM_ID, TIMESTAMP)
    shown = impressions.with_columns(pl.col(TIMESTAMP).alias(shown_at)).with_row_index(number)
    pairs = shown.join(events.select(USER_ID, ITEM_ID, pl.col(TIMESTAMP).alias("__then")), on=[USER_ID, ITEM_ID])
    followed = pairs.filter((pl.col("__then") - pl.col(shown_at)).is_between(0, _WINDOW_S))
    left = shown.join(followed.select(number).unique(), on=number, how="anti")
    next_event = events.select(place, USER_ID, TIMESTAMP).sort(TIMESTAMP, place)
    joined = left.sort(TIMESTAMP, number).join_asof(
        next_event, on=TIMESTAMP, by=USER_ID, strategy="forward", check_sortedness=False
    )
    joined = joined.drop_nulls(place).sort(place, shown_at, number, descending=[False, True, True])
    joined = joined.with_columns(pl.int_range(pl.len()).over(place).alias(number)).filter(pl.col(number) < most)
    found = np.full((events.height, most), -1, dtype=np.int64)
    found[joined[place].to_numpy(), joined[number].to_numpy()] = row_numbers(item_ids, joined[ITEM_ID]).to_numpy()
    return found
