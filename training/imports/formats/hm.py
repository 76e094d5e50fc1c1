"""Reads H&M Personalized Fashion: ``articles.csv``, ``transactions_train.csv``, ``images/010/0108775015.jpg``."""

from collections.abc import Iterator

import polars as pl

from index.items.item_table import ITEM_ID
from training.data.dataset import TEXT, TITLE, USER_ID
from training.imports.delimited import LINE, CsvFile
from training.imports.import_record import ImportRecord
from training.imports.source_files import Source, require_columns
from training.imports.source_format import SOURCE_IMAGE, TIME, Batch

_ARTICLE = "article_id"
_DIGITS = 10
_METADATA = {
    "product_code": "product_code",
    "product_type_name": "product_type",
    "product_group_name": "product_group",
    "graphical_appearance_name": "pattern",
    "colour_group_name": "colour",
    "department_name": "department",
    "index_group_name": "index_group",
    "section_name": "section",
    "garment_group_name": "garment_group",
}
_TEXT = ("prod_name", "product_type_name", "colour_group_name", "graphical_appearance_name", "detail_desc")


class HM:
    """H&M Personalized Fashion."""

    items_suffix = "parquet"
    time_rule = "must be a day (t_dat) as 2020-09-22"
    has_interactions = True
    one_file = False

    def items(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """Articles with their categories as metadata and their existing pictures."""
        path = source.one("the articles", "articles.csv")
        pictures = (source.root / "images").is_dir()
        if not pictures:
            record.note("the source has no folder images/, so no item has a picture")
        for rows in CsvFile(source, path).batches():
            require_columns(path, rows.columns[1:], [_ARTICLE, *_TEXT, *_METADATA])
            rows = _ten_digits(rows)  # noqa: PLW2901 - the same rows
            kept = rows.filter(pl.col(ITEM_ID).is_not_null())
            left = rows.filter(pl.col(ITEM_ID).is_null())
            record.leave_out(path.name, f"{_ARTICLE} must be a number of up to 10 digits", left[LINE].to_list())
            picture = pl.format("images/{}/{}.jpg", pl.col(ITEM_ID).str.slice(0, 3), pl.col(ITEM_ID))
            yield Batch(
                path.name,
                kept.select(
                    LINE,
                    ITEM_ID,
                    pl.col("prod_name").alias(TITLE),
                    pl.concat_str(_TEXT, separator="\n", ignore_nulls=True).alias(TEXT),
                    *([picture.alias(SOURCE_IMAGE)] if pictures else []),
                    *(pl.col(name).alias(ours) for name, ours in _METADATA.items()),
                ),
            )

    def interactions(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """Purchases, timed by day; those of one day keep the order of the file."""
        path = source.one("the purchases", "transactions_train.csv")
        record.note("purchases have a day and no time: those of one day keep the order of the file")
        for rows in CsvFile(source, path).batches():
            require_columns(path, rows.columns[1:], ["t_dat", "customer_id", _ARTICLE])
            day = pl.col("t_dat").str.to_datetime("%Y-%m-%d", strict=False, time_unit="us")
            yield Batch(
                path.name,
                _ten_digits(rows).select(
                    LINE, pl.col("customer_id").alias(USER_ID), ITEM_ID, day.cast(pl.Int64).alias(TIME)
                ),
            )


def _ten_digits(rows: pl.DataFrame) -> pl.DataFrame:
    """Pad ``item_id`` to ten digits, null if it is no number: tools that read ids as numbers drop leading zeros."""
    number = pl.col(_ARTICLE).str.extract(rf"^(\d{{1,{_DIGITS}}})$")
    return rows.with_columns(number.str.zfill(_DIGITS).alias(ITEM_ID))
