"""Reads a Shopify product export, where a product is several rows of one handle for its variants and pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from index.items.item_table import ITEM_ID
from training.data.dataset import TEXT, TITLE
from training.errors import DatasetError
from training.imports.delimited import LINE, CsvFile
from training.imports.import_record import ImportRecord
from training.imports.source_files import Source
from training.imports.source_format import IMAGE_URL, Batch
from training.imports.values import joined, number_of, plain_text, text_of

# Our name → lower-case names in the export's older and newer layout.
_COLUMNS = {
    "handle": ("handle", "url handle"),
    "title": ("title",),
    "body": ("body (html)", "description"),
    "vendor": ("vendor",),
    "type": ("type",),
    "category": ("product category",),
    "tags": ("tags",),
    "published": ("published", "published on online store"),
    "status": ("status",),
    "sku": ("variant sku", "sku"),
    "price": ("variant price", "price"),
    "image": ("image src", "product image url"),
    "position": ("image position",),
    "variant image": ("variant image", "variant image url"),
}
_SCHEMA: dict[str, type[pl.DataType] | pl.DataType] = {
    LINE: pl.Int64,
    ITEM_ID: pl.String,
    TITLE: pl.String,
    TEXT: pl.String,
    IMAGE_URL: pl.String,
    "price": pl.Float64,
    "price_highest": pl.Float64,
    "vendor": pl.String,
    "product_type": pl.String,
    "category": pl.String,
    "tags": pl.List(pl.String),
    "skus": pl.List(pl.String),
    "status": pl.String,
    "published": pl.Boolean,
}
_PUBLISHED = {"true": True, "false": False}
_LAST = float("inf")


@dataclass
class _Product:
    line: int
    values: dict[str, str] = field(default_factory=dict)
    prices: list[float] = field(default_factory=list)
    skus: list[str] = field(default_factory=list)
    images: list[tuple[float, str]] = field(default_factory=list)
    variant_images: list[str] = field(default_factory=list)

    def add(self, row: dict[str, str]) -> None:
        """Add one row: the first value of each column, and every price, SKU and picture."""
        for name, value in row.items():
            self.values.setdefault(name, value)
        price = number_of(row.get("price"))
        if price is not None:
            self.prices.append(price)
        if "sku" in row and row["sku"] not in self.skus:
            self.skus.append(row["sku"])
        if "image" in row:
            position = number_of(row.get("position"))
            self.images.append((_LAST if position is None else position, row["image"]))
        if "variant image" in row:
            self.variant_images.append(row["variant image"])

    def row(self, handle: str) -> tuple[object, ...]:
        """The row of the catalogue."""
        images = [address for _, address in sorted(self.images, key=lambda one: one[0])] + self.variant_images
        title = self.values.get("title")
        return (
            self.line,
            handle,
            title,
            joined([title, self.values.get("type"), plain_text(self.values.get("body"))]),
            images[0] if images else None,
            min(self.prices, default=None),
            max(self.prices, default=None),
            self.values.get("vendor"),
            self.values.get("type"),
            self.values.get("category"),
            [tag for one in self.values.get("tags", "").split(",") if (tag := one.strip())],
            self.skus,
            self.values.get("status"),
            _PUBLISHED.get(self.values.get("published", "").lower()),
        )


class Shopify:
    """Shopify product exports."""

    items_suffix = "parquet"
    time_rule = ""
    has_interactions = False
    one_file = True

    def items(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """Products by handle, of any status; filter by ``status`` and ``published``."""
        path = source.one("the products", "products*.csv", "*.csv")
        products: dict[str, _Product] = {}
        for rows in CsvFile(source, path).batches():
            places = _places(path, rows.columns)
            for values in rows.iter_rows():
                row = {name: text for name, at in places.items() if (text := text_of(values[at])) is not None}
                handle = row.get("handle")
                if handle is None:
                    record.leave_out(path.name, "Handle is empty, so the row belongs to no product", [values[0]])
                    continue
                if "price" in row and number_of(row["price"]) is None:
                    record.leave_empty(path.name, "the price of a variant must be a number; not counted", [values[0]])
                products.setdefault(handle, _Product(values[0])).add(row)
        untitled = [product.line for product in products.values() if "title" not in product.values]
        record.leave_empty(path.name, "a product has no Title in any of its rows; left empty", untitled)
        record.note("an item is a product, so events must name handles; the column skus says which variants it has")
        rows_of_items = [product.row(handle) for handle, product in products.items()]
        yield Batch(path.name, pl.DataFrame(rows_of_items, schema=_SCHEMA, orient="row"))

    def interactions(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """No events: an export of products has none."""
        del source, record
        yield from ()


def _places(path: Path, columns: Sequence[str]) -> dict[str, int]:
    """Our names → positions of the file's columns."""
    found = {name.lower(): position for position, name in enumerate(columns)}
    places = {ours: found[theirs] for ours, names in _COLUMNS.items() for theirs in names if theirs in found}
    missing = next((name for name in ("handle", "title") if name not in places), None)
    if missing is not None:
        spelled = " or ".join(repr(name) for name in _COLUMNS[missing])
        raise DatasetError(
            f"{path}: line 1: a column {spelled} is missing; export the products from the shop's administration as CSV"
        )
    return places
