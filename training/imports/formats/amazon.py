"""Reads Amazon Reviews 2023: ``meta_<category>.jsonl`` (items) and ``<category>.jsonl`` (reviews), also gzipped."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from index.items.item_table import ITEM_ID
from training.data.dataset import TEXT, TITLE, USER_ID
from training.data.tables.json_lines import line_fault
from training.errors import DatasetError
from training.imports.delimited import LINE
from training.imports.import_record import ImportRecord
from training.imports.source_files import Source
from training.imports.source_format import IMAGE_URL, RATING, TIME, Batch
from training.imports.values import joined, number_of, text_of, texts_of

_META = ("meta_*.jsonl", "meta_*.json")
_REVIEWS = ("*.jsonl", "*.json")
_ITEMS: dict[str, type[pl.DataType] | pl.DataType] = {
    LINE: pl.Int64,
    ITEM_ID: pl.String,
    TITLE: pl.String,
    TEXT: pl.String,
    IMAGE_URL: pl.String,
    "price": pl.Float64,
    "store": pl.String,
    "main_category": pl.String,
    "categories": pl.List(pl.String),
    "average_rating": pl.Float64,
    "rating_number": pl.Int64,
}
_EVENTS = {LINE: pl.Int64, USER_ID: pl.String, ITEM_ID: pl.String, TIME: pl.Int64, RATING: pl.String}
_LOW_ONES_TOO = (
    "every review is an interaction, low stars too; an events.toml with rating_threshold makes those with fewer stars "
    "count no more; the texts of reviews are not kept"
)
_NO_PRICE = "price is no number (such as 'from 12.99'); left empty"
_LARGEST = ("hi_res", "large", "thumb")
_LATEST_MS = 1 << 53


class Amazon2023:
    """Amazon Reviews 2023."""

    items_suffix = "parquet"
    time_rule = "must be milliseconds since 1970 (timestamp)"
    has_interactions = True
    one_file = False

    def items(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """Products by ``parent_asin``, with the address of the first picture in its largest size."""
        files = [path for path in source.find(*_META) if _is_meta(path)]
        if not files:
            raise DatasetError(
                f"{source.root}: no file with the items, looked for meta_*.jsonl(.gz); see docs/recipes.md"
            )
        for path in files:
            for lines, objects in _objects(source, path):
                rows = []
                unpriced = []
                for line, value in zip(lines, objects, strict=True):
                    row, parsed = _item(line, value)
                    rows.append(row)
                    if not parsed:
                        unpriced.append(line)
                record.leave_empty(path.name, _NO_PRICE, unpriced)
                yield Batch(path.name, pl.DataFrame(rows, schema=_ITEMS, orient="row"))

    def interactions(self, source: Source, record: ImportRecord) -> Iterator[Batch]:
        """Every review is an event of its ``parent_asin``, with its stars."""
        files = [path for path in source.find(*_REVIEWS) if not _is_meta(path)]
        if not files:
            raise DatasetError(f"{source.root}: no file with the reviews, looked for *.jsonl(.gz); see docs/recipes.md")
        record.note(_LOW_ONES_TOO)
        for path in files:
            for lines, objects in _objects(source, path):
                rows = [
                    (
                        line,
                        text_of(value.get("user_id")),
                        text_of(value.get("parent_asin")),
                        _time(value.get("timestamp")),
                        text_of(value.get("rating")),
                    )
                    for line, value in zip(lines, objects, strict=True)
                ]
                yield Batch(path.name, pl.DataFrame(rows, schema=_EVENTS, orient="row"))


def _is_meta(path: Path) -> bool:
    return path.name.startswith("meta_")


def _objects(source: Source, path: Path) -> Iterator[tuple[list[int], list[dict[str, Any]]]]:
    """Line numbers and objects of a JSON lines file, block by block."""
    for block in source.blocks(path):
        lines: list[int] = []
        objects: list[dict[str, Any]] = []
        for number, line in enumerate(io.BytesIO(block.content), start=block.first_line):
            if not line.strip():
                continue
            value = None
            with contextlib.suppress(orjson.JSONDecodeError):
                value = orjson.loads(line)
            if not isinstance(value, dict):
                fault = line_fault(line, number) or f"line {number} is no JSON object; correct or remove it"
                raise DatasetError(f"{path}: {fault}")
            lines.append(number)
            objects.append(value)
        yield lines, objects


def _item(line: int, value: dict[str, Any]) -> tuple[tuple[object, ...], bool]:
    """A row of the catalogue, and whether its price was parsed or absent."""
    title = text_of(value.get("title"))
    categories = texts_of(value.get("categories"))
    given = value.get("price")
    price = number_of(given)
    rating_number = value.get("rating_number")
    row = (
        line,
        text_of(value.get("parent_asin")),
        title,
        joined([title, " > ".join(categories), *texts_of(value.get("features")), *texts_of(value.get("description"))]),
        _picture(value.get("images")),
        price,
        text_of(value.get("store")),
        text_of(value.get("main_category")),
        categories,
        number_of(value.get("average_rating")),
        rating_number if type(rating_number) is int and abs(rating_number) < 1 << 63 else None,
    )
    return row, price is not None or text_of(given) in (None, "None")


def _picture(images: object) -> str | None:
    """The address of the picture marked MAIN, else of the first; its largest size.

    The files have a list of objects; the copies made by the `datasets` library have one object of lists.
    """
    if isinstance(images, dict):
        columns = {name: column for name, column in images.items() if isinstance(column, list)}
        count = max(map(len, columns.values()), default=0)
        images = [
            {name: column[position] for name, column in columns.items() if position < len(column)}
            for position in range(count)
        ]
    if not isinstance(images, list):
        return None
    pictures = [picture for picture in images if isinstance(picture, dict)]
    pictures.sort(key=lambda picture: picture.get("variant") != "MAIN")
    addresses = (text_of(picture.get(size)) for picture in pictures for size in _LARGEST)
    return next((address for address in addresses if address is not None), None)


def _time(value: object) -> int | None:
    if type(value) is str and value.isascii() and value.isdigit() and len(value) < 17:
        value = int(value)
    return value * 1_000 if type(value) is int and abs(value) < _LATEST_MS else None
