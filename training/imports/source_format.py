"""Defines the protocol of an import format and the batches that it yields."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import polars as pl

from training.imports.import_record import ImportRecord
from training.imports.source_files import Source

IMAGE_URL = "image_url"
"""Column of picture addresses that `vlm2rec data fetch-images` fetches."""
SOURCE_IMAGE = "#source image"
"""Column of a batch: path of the item's picture relative to the source; the picture is copied into the data set."""
TIME = "#microseconds"
"""Column of a batch: int64 microseconds since 1970 UTC; null where the source's time breaks the rule."""
RATING = "rating"
"""Column of a batch of events: the stars that a user gave; ``events.toml`` may say from how many on an event counts."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a source file.

    Attributes:
        file: name of the file.
        rows: with ``LINE``. Items have ``item_id`` and any of ``title``, ``text``, ``image_url`` and ``SOURCE_IMAGE``
            (strings), and metadata columns; interactions have ``user_id``, ``item_id`` (strings) and ``TIME``, and may
            have ``type``, ``weight`` and ``rating``. All batches of a format have the same columns and types.
    """

    file: str
    rows: pl.DataFrame


class SourceFormat(Protocol):
    """A format: reads the catalogue and the interactions of a source.

    Both generators raise :class:`DatasetError` if a file is missing or a line breaks the format, and count skipped rows
    and emptied values in the record. :mod:`training.imports.dataset_writer` checks ids, repeated items, times and
    unknown items.

    Attributes:
        items_suffix: ``parquet``, or ``csv`` if the column types must be inferred from the values.
        time_rule: the rule for the time of an event, for messages.
        has_interactions: whether the format has events at all.
        one_file: whether a source may be a file instead of a directory.
    """

    items_suffix: str
    time_rule: str
    has_interactions: bool
    one_file: bool

    def items(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """The catalogue, in file order."""
        ...

    def interactions(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """The events, in file order; empty if the format has no events."""
        ...
