"""Check a dataset directory, however dirty: all that training would refuse, leave out or should know, at once."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl

from index.item_table import ITEM_ID
from training.dataset import INTERACTION_SUFFIXES, INTERACTIONS, ITEM_SUFFIXES, ITEMS
from training.dataset_report import DatasetReport, Defect, ImageFacts, InteractionFacts, ItemFacts, Severity
from training.errors import DatasetError
from training.image_check import check_images
from training.interaction_check import check_interactions
from training.item_check import check_items, read_any_items
from training.table_files import find_table

_ORDER = list(Severity)

Progress = Callable[[str, float], None]
"""Called with the name of the step and the share of it that is done, 0 … 1."""


def check_dataset(
    directory: Path,
    *,
    interactions: Path | None = None,
    now: datetime | None = None,
    progress: Progress = lambda _step, _share: None,
) -> DatasetReport:
    """Check a dataset directory; :func:`training.dataset.load_dataset` accepts it if and only if the report is ``ok``
    or all its errors are of the kind ``no user to evaluate``.

    Args:
        directory: the dataset directory.
        interactions: interactions to check in place of the directory's own.
        now: the time against which events lie in the future; the clock by default.
        progress: told how far each step is.

    Raises:
        DatasetError: there is no such directory.
    """
    if not directory.is_dir():
        raise DatasetError(f"{directory}: a dataset is a directory, but there is none at this path")
    defects: list[Defect] = []
    item_facts, image_facts, item_ids = _check_catalogue(directory, defects, progress)
    progress("interactions", 0.0)
    interaction_facts = _check_events(directory, interactions, item_ids, now, defects)
    progress("interactions", 1.0)
    defects.sort(key=lambda defect: _ORDER.index(defect.severity))
    return DatasetReport(str(directory), item_facts, image_facts, interaction_facts, defects)


def _check_catalogue(
    directory: Path, defects: list[Defect], progress: Progress
) -> tuple[ItemFacts | None, ImageFacts | None, pl.Series | None]:
    try:
        path = find_table(directory, ITEMS, ITEM_SUFFIXES)
        progress("items", 0.0)
        items = read_any_items(path)
    except DatasetError as error:
        defects.append(Defect("unusable items file", Severity.ERROR, 1, str(error)))
        return None, None, None
    facts, found = check_items(path, items)
    defects.extend(found)
    progress("items", 1.0)
    images, found = check_images(directory, items, path.name, progress=lambda share: progress("images", share))
    defects.extend(found)
    return facts, images, items[ITEM_ID]


def _check_events(
    directory: Path, path: Path | None, item_ids: pl.Series | None, now: datetime | None, defects: list[Defect]
) -> InteractionFacts | None:
    try:
        path = path or find_table(directory, INTERACTIONS, INTERACTION_SUFFIXES)
        facts, found = check_interactions(path, item_ids, now=now)
    except DatasetError as error:
        defects.append(Defect("unusable interactions file", Severity.ERROR, 1, str(error)))
        return None
    defects.extend(found)
    return facts
