"""Checks a data set and reports all of its defects at once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import polars as pl

from index.items.item_table import ITEM_ID
from training.data.data_place import AnyPlace, DataPlace
from training.data.dataset import IMAGE, INTERACTION_SUFFIXES, INTERACTIONS, ITEM_SUFFIXES, ITEMS, TEXT, load_dataset
from training.data.event_weights import EventRules
from training.data.learnable_pairs import check_learnable
from training.data.sequences import Sequences, leave_one_out
from training.data.tables.table_files import find_table, no_directory
from training.data.training_pairs import TrainingPairs
from training.data_check.images import check_images
from training.data_check.interactions import check_interactions
from training.data_check.items import check_items, read_any_items
from training.data_check.report import DatasetReport, Defect, ImageFacts, InteractionFacts, ItemFacts, Severity
from training.errors import DatasetError
from training.ranking.cold_items import cold_mask, without_items

_ORDER = list(Severity)

Progress = Callable[[str, float], None]
"""Called with the name of the step and the share of it that is done, 0 … 1."""


def check_dataset(
    data: AnyPlace,
    *,
    interactions: Path | None = None,
    modalities: Sequence[str] = (TEXT, IMAGE),
    cold_items: float = 0.0,
    exclude_seen: bool = True,
    now: datetime | None = None,
    progress: Progress = lambda _step, _share: None,
) -> DatasetReport:
    """Check a data set; :func:`training.data.dataset.load_dataset` accepts it if and only if the report is
    ``ok`` or all its errors are of the kinds ``no user to evaluate`` and ``nothing to train on``.

    Args:
        data: its directory, or ``s3://bucket/prefix``.
        interactions: interactions to check in place of the directory's own.
        modalities: what is to be trained, ``text``, ``image`` or both.
        cold_items: share of the items that training will hold out.
        exclude_seen: whether the service will exclude items of the user's history.
        now: the current time, to find events in the future; the clock by default.
        progress: called with the name of a step and the share of it that is done.

    Raises:
        DatasetError: there is no such directory, or its object store does not answer.
    """
    place = DataPlace.open(data)
    if not place.directory.is_dir():
        raise no_directory(place.directory)
    defects: list[Defect] = []
    item_facts, image_facts, item_ids = _check_catalogue(place, defects, progress)
    progress("interactions", 0.0)
    interaction_facts = _check_events(
        place.directory, interactions, item_ids, defects, exclude_seen=exclude_seen, now=now
    )
    if all(defect.severity is not Severity.ERROR for defect in defects):
        defects += _check_training(place, interactions, modalities, cold_items)
    progress("interactions", 1.0)
    defects.sort(key=lambda defect: _ORDER.index(defect.severity))
    defects = [replace(defect, message=place.named(defect.message)) for defect in defects]
    return DatasetReport(place.name, item_facts, image_facts, interaction_facts, defects)


def _check_catalogue(
    place: DataPlace, defects: list[Defect], progress: Progress
) -> tuple[ItemFacts | None, ImageFacts | None, pl.Series | None]:
    try:
        path = find_table(place.directory, ITEMS, ITEM_SUFFIXES)
        progress("items", 0.0)
        items = read_any_items(path)
    except DatasetError as error:
        defects.append(Defect("unusable items file", Severity.ERROR, 1, str(error)))
        return None, None, None
    facts, found = check_items(path, items)
    defects.extend(found)
    progress("items", 1.0)
    images, found = check_images(place, items, path.name, progress=lambda share: progress("images", share))
    defects.extend(found)
    return facts, images, items[ITEM_ID]


def _check_events(
    directory: Path,
    path: Path | None,
    item_ids: pl.Series | None,
    defects: list[Defect],
    *,
    exclude_seen: bool,
    now: datetime | None,
) -> InteractionFacts | None:
    try:
        path = path or find_table(directory, INTERACTIONS, INTERACTION_SUFFIXES)
        rules = EventRules.read(directory)
        facts, found = check_interactions(path, item_ids, rules=rules, exclude_seen=exclude_seen, now=now)
    except DatasetError as error:
        defects.append(Defect("unusable interactions file", Severity.ERROR, 1, str(error)))
        return None
    defects.extend(found)
    return facts


def _check_training(
    place: DataPlace, interactions: Path | None, modalities: Sequence[str], cold_items: float
) -> list[Defect]:
    """Defects that training would find after it has read and split the data set."""
    try:
        dataset = load_dataset(place, interactions=interactions)
        ids = dataset.items[ITEM_ID]  # a list of them would take 70 bytes an item
        sequences = Sequences.from_interactions(dataset.interactions, ids)
        train = leave_one_out(without_items(sequences, cold_mask(ids, cold_items))).train
        TrainingPairs.of(train)
        check_learnable(dataset, train, modalities)
    except DatasetError as error:
        return [Defect("nothing to train on", Severity.ERROR, 1, str(error))]
    return []
