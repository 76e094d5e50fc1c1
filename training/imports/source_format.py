"""What every format of :mod:`training.imports` provides."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import polars as pl

from training.imports.import_record import ImportRecord
from training.imports.source_files import Source

IMAGE_URL = "image_url"
"""Column of addresses from which `vlm2rec data fetch-images` takes pictures."""
SOURCE_IMAGE = "#source image"
"""Column of a batch: where the item's picture is, relative to the source; it is copied into the data set."""
TIME = "#microseconds"
"""Column of a batch: int64 microseconds since 1970 UTC; null where the source's time breaks the rule."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a source file.

    Attributes:
        file: name of the file.
        rows: with ``LINE``. Items have ``item_id`` and any of ``title``, ``text``, ``image_url`` and ``SOURCE_IMAGE``
            (strings), and metadata columns; interactions have ``user_id``, ``item_id`` (strings) and ``TIME``. All
            batches of a format have the same columns and types.
    """

    file: str
    rows: pl.DataFrame


class SourceFormat(Protocol):
    """A format: reads the catalogue and the interactions of a source.

    Both generators raise :class:`DatasetError` where a file is missing or a line breaks the format, and count in the
    record what they leave out or empty themselves. :mod:`training.imports.dataset_writer` holds ids, repeated items,
    times and unknown items to the rules of a data set.

    Attributes:
        items_suffix: ``parquet``, or ``csv`` where only the values can tell the types of the columns.
        time_rule: what the time of an event must be, for messages.
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
        """The events, in file order; none where the format has none."""
        ...
