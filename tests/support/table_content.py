"""Reads a table of given content, and the refusal of one; changes rows of an items file."""

import csv
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from training.data.tables.table_files import read_table
from training.errors import DatasetError

Rows = list[dict[str, str]]

TEXT = ("item_id", "title", "text")


def table(path: Path, content: str | bytes) -> pl.DataFrame:
    """What is read of a file with this content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, text=TEXT, required=["item_id"])


def refusal(path: Path, content: str | bytes) -> str:
    """The message with which a file of this content is refused: one line that names the file."""
    with pytest.raises(DatasetError) as caught:
        table(path, content)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


def edit_items(data: Path, change: Callable[[Rows], Rows]) -> None:
    """Change the rows of ``items.csv``.

    Args:
        data: directory of the data set.
        change: gets all rows and returns those to write, at least one.
    """
    with (data / "items.csv").open(newline="", encoding="utf-8") as file:
        rows = change(list(csv.DictReader(file)))
    with (data / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def set_item(data: Path, row: int, **values: str) -> None:
    """Change cells of one row of ``items.csv``."""
    edit_items(data, lambda rows: [{**one, **values} if number == row else one for number, one in enumerate(rows)])
