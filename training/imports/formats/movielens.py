"""Reads ``movies.dat`` and ``ratings.dat`` of the MovieLens 1M and 10M releases, which separate fields by `::`."""

from collections.abc import Iterator

import polars as pl

from index.items.item_table import ITEM_ID
from training.data.dataset import TEXT, TITLE, USER_ID
from training.errors import DatasetError
from training.imports.delimited import LINE, read_fields, read_lines
from training.imports.import_record import ImportRecord
from training.imports.source_files import Source, is_utf8
from training.imports.source_format import RATING, TIME, Batch

_MOVIE = r"^([^:]+)::(.*)::([^:]*)$"
_SECONDS = r"^(-?\d{1,12})$"
_NO_GENRES = "(no genres listed)"
_LOW_ONES_TOO = (
    "every rating is an interaction, low ones too; an events.toml with rating_threshold makes those with fewer stars "
    "count no more"
)


class MovieLens:
    """MovieLens 1M and 10M."""

    items_suffix = "parquet"
    time_rule = "must be whole seconds since 1970"
    has_interactions = True
    one_file = False

    def items(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """Films: title with year, genres as a list, year as a number."""
        path = source.one("the films", "movies.dat")
        encoding = "utf-8" if is_utf8(path, source) else "latin-1"
        if encoding == "latin-1":
            record.note(f"{path.name} is not UTF-8; its titles were read as Latin-1, as the release has them")
        for lines in read_lines(source, path, encoding):
            parts = lines.with_columns(
                pl.col("text").str.extract(_MOVIE, position).str.strip_chars().alias(name)
                for position, name in enumerate((ITEM_ID, TITLE, "genres"), start=1)
            )
            broken = parts.filter(pl.col(ITEM_ID).is_null())
            if broken.height:
                line = broken[LINE][0]
                raise DatasetError(f"{path}: line {line:,} must be id::title::genres; correct or remove the line")
            yield Batch(path.name, _films(parts))

    def interactions(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """Every rating is an event, with its stars."""
        path = source.one("the ratings", "ratings.dat")
        record.note(_LOW_ONES_TOO)
        for rows in read_fields(source, path, "::", (USER_ID, ITEM_ID, RATING, "seconds")):
            seconds = pl.col("seconds").str.strip_chars().str.extract(_SECONDS).cast(pl.Int64)
            yield Batch(path.name, rows.select(LINE, USER_ID, ITEM_ID, (seconds * 1_000_000).alias(TIME), RATING))


def _films(parts: pl.DataFrame) -> pl.DataFrame:
    genres = pl.when((pl.col("genres") != "") & (pl.col("genres") != _NO_GENRES)).then(pl.col("genres"))
    spelled = pl.format("Genres: {}", genres.str.replace_all("|", ", ", literal=True))
    return parts.select(
        LINE,
        ITEM_ID,
        TITLE,
        pl.concat_str(TITLE, spelled, separator="\n", ignore_nulls=True).alias(TEXT),
        genres.str.split("|").alias("genres"),
        pl.col(TITLE).str.extract(r"\((\d{4})\)$").cast(pl.Int32).alias("year"),
    )
