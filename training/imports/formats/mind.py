"""Reads MIND news: ``news.tsv`` and ``behaviors.tsv``, no header."""

from collections.abc import Iterator

import polars as pl

from index.items.item_table import ITEM_ID
from training.data.dataset import TEXT, TITLE, USER_ID
from training.imports.delimited import LINE, read_fields
from training.imports.import_record import ImportRecord
from training.imports.source_files import Source
from training.imports.source_format import TIME, Batch

_NEWS = (ITEM_ID, "category", "subcategory", TITLE, "abstract", "url", "title_entities", "abstract_entities")
_BEHAVIORS = ("impression", USER_ID, "time", "history", "impressions")


class Mind:
    """MIND news.

    Args:
        with_history: also import the clicks before the log begins. They have an order but no times and get the time of
            the user's first row in the log.
    """

    items_suffix = "parquet"
    time_rule = "must be as 11/15/2019 10:22:32 AM"
    has_interactions = True
    one_file = False

    def __init__(self, *, with_history: bool = False) -> None:
        self._with_history = with_history

    def items(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """News: title and abstract, with category and address as metadata; entities are ignored."""
        del record
        path = source.one("the news", "news.tsv")
        for rows in read_fields(source, path, "\t", _NEWS):
            filled = {name: pl.when(pl.col(name) != "").then(pl.col(name)) for name in _NEWS}
            yield Batch(
                path.name,
                rows.select(
                    LINE,
                    ITEM_ID,
                    filled[TITLE].alias(TITLE),
                    pl.concat_str([filled[TITLE], filled["abstract"]], separator="\n", ignore_nulls=True).alias(TEXT),
                    *(filled[name].alias(name) for name in ("category", "subcategory", "url")),
                ),
            )

    def interactions(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """Clicks of the log (``N1-1``; not impressions without one), preceded by the histories if enabled."""
        path = source.one("the log of clicks", "behaviors.tsv")
        record.note("times of MIND name no zone; they were taken as UTC")
        if self._with_history:
            yield from self._histories(source)
            record.note("clicks of the history have no times; they got that of the user's first row in the log")
        else:
            record.note("clicks of the history have no times and were left out; --with-history takes them")
        for rows in read_fields(source, path, "\t", _BEHAVIORS):
            shown = rows.select(LINE, USER_ID, _time(), pl.col("impressions").str.split(" ").alias(ITEM_ID))
            clicks = shown.explode(ITEM_ID).filter(pl.col(ITEM_ID).str.ends_with("-1"))
            yield Batch(path.name, clicks.select(LINE, USER_ID, pl.col(ITEM_ID).str.head(-2), TIME))

    def _histories(self, source: Source) -> Iterator[Batch]:
        """The history of each user, from the user's earliest row.

        A user's history is the same in every row of the log.
        """
        path = source.one("the log of clicks", "behaviors.tsv")
        rows = [
            batch.select(LINE, USER_ID, _time(), "history") for batch in read_fields(source, path, "\t", _BEHAVIORS)
        ]
        if not rows:
            return
        timed = pl.concat(rows).filter(pl.col(TIME).is_not_null())
        first = timed.sort(TIME, maintain_order=True).unique(USER_ID, keep="first", maintain_order=True)
        items = pl.col("history").str.split(" ").alias(ITEM_ID)
        clicks = first.select(LINE, USER_ID, items, TIME).explode(ITEM_ID).filter(pl.col(ITEM_ID) != "")
        yield Batch(path.name, clicks)


def _time() -> pl.Expr:
    moment = pl.col("time").str.strip_chars().str.to_datetime("%m/%d/%Y %I:%M:%S %p", strict=False, time_unit="us")
    return moment.cast(pl.Int64).alias(TIME)
