"""Reads the item ids of a stored history."""

from service.stores.protocols import HistoryReader


async def item_ids(histories: HistoryReader, owner: str) -> list[str]:
    """Item ids, oldest first."""
    return [entry.item_id for entry in await histories.entries(owner)]
