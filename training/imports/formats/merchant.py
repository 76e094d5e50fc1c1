"""Reads Google Merchant feeds: XML (RSS 2.0 or Atom), or a table with a header and tabs or commas."""

import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from index.items.item_table import ITEM_ID
from training.data.dataset import TEXT, TITLE
from training.imports.delimited import LINE, CsvFile
from training.imports.formats.merchant_xml import MerchantXml
from training.imports.import_record import ImportRecord
from training.imports.source_files import Source, require_columns
from training.imports.source_format import IMAGE_URL, Batch
from training.imports.values import joined, plain_text, price_of, text_of

_METADATA = (
    "link", "availability", "condition", "brand", "gtin", "mpn", "color", "size", "gender", "age_group", "material",
    "pattern", "item_group_id", "product_type", "google_product_category",
)  # fmt: skip
_TAKEN = ("id", "title", "description", "image_link", "price", "sale_price", *_METADATA)
_SCHEMA = {
    LINE: pl.Int64,
    ITEM_ID: pl.String,
    TITLE: pl.String,
    TEXT: pl.String,
    IMAGE_URL: pl.String,
    "price": pl.Float64,
    "sale_price": pl.Float64,
    "currency": pl.String,
    **dict.fromkeys(_METADATA, pl.String),
}
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


class GoogleMerchant:
    """Google Merchant feeds."""

    items_suffix = "parquet"
    time_rule = ""
    has_interactions = False
    one_file = True

    def items(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """Products by id; the record names the attributes that are not imported."""
        path = source.one("the feed", "*.xml", "*.tsv", "*.txt", "*.csv")
        unknown: set[str] = set()
        for products in _products(source, path):
            rows = [_row(line, fields) for line, fields in products]
            for name in ("price", "sale_price"):
                bad = [line for line, fields in products if fields.get(name) and price_of(fields[name])[0] is None]
                record.leave_empty(path.name, f"{name} must be as '19.99 EUR'; left empty", bad)
            unknown.update(*(fields for _, fields in products))
            yield Batch(path.name, pl.DataFrame(rows, schema=_SCHEMA, orient="row"))
        left = sorted(unknown.difference(_TAKEN))
        if left:
            record.note(f"attributes of the feed that are not imported: {', '.join(name[:40] for name in left[:30])}")

    def interactions(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """No events: a feed has none."""
        del source, record
        yield from ()


def _products(source: Source, path: Path) -> Iterator[list[tuple[int, dict[str, str]]]]:
    start = next(iter(source.chunks(path)), b"").lstrip()[:1]
    if start == b"<":
        yield from MerchantXml(path).products(source.chunks(path))
        return
    comma = path.name.lower().removesuffix(".gz").endswith(".csv")
    for rows in CsvFile(source, path, "," if comma else "\t").batches():
        names = [name.strip().lower().replace(" ", "_").removeprefix("g:") for name in rows.columns]
        require_columns(path, names[1:], ["id", "title"])
        yield [
            (line, {name: value.strip() for name, value in zip(names[1:], values, strict=True) if value is not None})
            for line, *values in rows.iter_rows()
        ]


def _row(line: int, fields: dict[str, str]) -> tuple[object, ...]:
    title = text_of(fields.get("title"))
    description = fields.get("description")
    if description is not None and _TAG.search(description):
        description = plain_text(description)
    price, currency = price_of(fields.get("price"))
    sale_price, sale_currency = price_of(fields.get("sale_price"))
    return (
        line,
        fields.get("id"),
        title,
        joined([title, fields.get("product_type"), text_of(description)]),
        text_of(fields.get("image_link")),
        price,
        sale_price if sale_currency == currency or currency is None else None,
        currency or sale_currency,
        *(text_of(fields.get(name)) for name in _METADATA),
    )
