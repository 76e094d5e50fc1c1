"""Imports a source in one of the formats as a data set directory."""

from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from training.data.dataset import TIMESTAMP, read_any_interactions
from training.data.event_weights import DECIDING_COLUMNS
from training.data.tables.table_files import ROW
from training.data.timestamps import TIME_RULE, read_timestamps
from training.errors import DatasetError
from training.imports.dataset_writer import write_interactions, write_items
from training.imports.delimited import LINE
from training.imports.format_names import FormatName
from training.imports.formats.amazon import Amazon2023
from training.imports.formats.hm import HM
from training.imports.formats.merchant import GoogleMerchant
from training.imports.formats.mind import Mind
from training.imports.formats.movielens import MovieLens
from training.imports.formats.postgres import Postgres
from training.imports.formats.shopify import Shopify
from training.imports.import_directory import new_directory, write_record
from training.imports.import_record import ImportRecord
from training.imports.item_pictures import ItemPictures
from training.imports.source_files import Progress, Source
from training.imports.source_format import TIME, Batch, SourceFormat

_FORMATS: Mapping[FormatName, Callable[[], SourceFormat]] = {
    FormatName.GOOGLE_MERCHANT: GoogleMerchant,
    FormatName.AMAZON_2023: Amazon2023,
    FormatName.MOVIELENS: MovieLens,
    FormatName.HM: HM,
    FormatName.SHOPIFY: Shopify,
    FormatName.MIND: Mind,
    FormatName.POSTGRES: Postgres,
}


def run_import(
    name: FormatName,
    source: Path,
    directory: Path,
    *,
    interactions: Path | None = None,
    with_history: bool = False,
    force: bool = False,
    progress: Progress = lambda _step, _share: None,
) -> ImportRecord:
    """Import a source.

    Args:
        name: of the format.
        source: directory with the files that the recipe names, or a single file.
        directory: of the data set; see :func:`training.imports.import_directory.new_directory`.
        interactions: a ``.csv`` or ``.parquet`` file with events in the form of a data set; replaces the source's.
        with_history: MIND only: also import the clicks without a time.
        force: replace an earlier import in ``directory``.
        progress: called with the name of a file and the share of it that was read.

    Returns:
        Counts of imported rows, and of skipped rows by reason.

    Raises:
        DatasetError: the source breaks its format, no usable row is left, or the directory is in use or cannot be
            written.
        RunBusy: another import into the same directory is running.
    """
    if with_history and name is not FormatName.MIND:
        raise DatasetError(f"--with-history is for {FormatName.MIND.value}, the format is {name.value}; leave it out")
    files = Source(source, progress)
    files.check()
    reader = Mind(with_history=True) if with_history else _FORMATS[name]()
    if source.is_file() and not reader.one_file:
        raise DatasetError(f"{source}: {name.value} has several files; give the directory that holds them")
    record = ImportRecord()
    with new_directory(directory, source, force=force) as partial:
        pictures = ItemPictures(source, partial, record)
        ids = write_items(reader.items(files, record), partial, reader.items_suffix, pictures, record)
        if interactions is not None:
            write_interactions(_given(interactions), partial, ids, TIME_RULE, record)
        elif reader.has_interactions:
            write_interactions(reader.interactions(files, record), partial, ids, reader.time_rule, record)
        else:
            record.note("this format has no events; import again with --interactions FILE before training")
        write_record(partial, {"format": name.value, **record.to_json()})
    return record


def _given(path: Path) -> list[Batch]:
    """Events of a file in the form of a data set; row n of a CSV file is in line n + 1."""
    rows = read_any_interactions(path, DECIDING_COLUMNS)
    times = read_timestamps(rows[TIMESTAMP]).microseconds.alias(TIME)
    header = int(path.suffix.lower() == ".csv")
    line = (pl.col(ROW).cast(pl.Int64) + header).alias(LINE)
    return [Batch(path.name, rows.with_columns(line, times).drop(ROW, TIMESTAMP))]
