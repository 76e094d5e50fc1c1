"""Refuses data sets without a trainable pair: a history and a next item that share a modality."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from training.data.dataset import IMAGE, TEXT, Dataset
from training.data.picture_reader import open_picture
from training.data.sequences import Sequences
from training.errors import DatasetError, PictureError

_PIXELS = 16**2
_NAMES = {TEXT: "text", IMAGE: "readable picture"}


def check_learnable(dataset: Dataset, train: Sequences, modalities: Sequence[str]) -> None:
    """Refuse a data set on which every batch would have a loss of zero.

    Pictures are opened only until two of one user are readable, and not at all if the texts suffice.

    Args:
        dataset: the catalogue.
        train: training histories.
        modalities: what is trained, ``text``, ``image`` or both.

    Raises:
        DatasetError: no user has two training events with items that have a text, or a readable picture.
    """
    texts = dataset.texts()

    @cache
    def has_picture(row: int) -> bool:
        return _is_readable(dataset, row)

    has: dict[str, Callable[[int], bool]] = {TEXT: lambda row: texts[row] is not None, IMAGE: has_picture}
    for modality in sorted(modalities, reverse=True):  # text first: checking it is free
        if any(_has_two(train.of(user), has[modality]) for user in range(len(train))):
            return
    names = " or a ".join(_NAMES[modality] for modality in modalities)
    raise DatasetError(
        f"nothing to train on: no user has two training events with items that have a {names}; fill the columns "
        f"{_columns(modalities)}, or train on something else with train.modalities"
    )


def _has_two(rows: NDArray[np.int64], has: Callable[[int], bool]) -> bool:
    found = 0
    for row in rows.tolist():
        found += has(row)
        if found == 2:
            return True
    return False


def _is_readable(dataset: Dataset, row: int) -> bool:
    path = dataset.image_path(row)
    if path is None:
        return False
    try:
        open_picture(path, _PIXELS)
    except PictureError:
        return False
    return True


def _columns(modalities: Sequence[str]) -> str:
    columns = {TEXT: "'text' or 'title'", IMAGE: "'image'"}
    return " and ".join(columns[modality] for modality in modalities)
