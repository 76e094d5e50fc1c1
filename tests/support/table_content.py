"""Reads a table of given content, and the refusal of one."""

from pathlib import Path

import polars as pl
import pytest

from training.data.tables.table_files import read_table
from training.errors import DatasetError

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
