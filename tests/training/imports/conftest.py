"""Small sources that are written, imported and read back in the same way as by training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from training.data.dataset import Dataset, load_dataset
from training.imports.format_names import FormatName
from training.imports.import_record import ImportRecord
from training.imports.run_import import run_import


@dataclass(frozen=True)
class Imported:
    """A finished import."""

    directory: Path
    record: ImportRecord

    def items(self) -> dict[str, dict[str, Any]]:
        """Rows of the items file by id, as training reads them."""
        rows = self.dataset().items.to_dicts()
        return {row["item_id"]: row for row in rows}

    def dataset(self) -> Dataset:
        return load_dataset(self.directory)

    def events(self) -> list[tuple[str, str, int]]:
        """Events as training reads them: by user, oldest first."""
        return self.dataset().interactions.rows()

    def raw_items(self) -> pl.DataFrame:
        return pl.read_parquet(self.directory / "items.parquet")

    def raw_events(self) -> pl.DataFrame:
        return pl.read_parquet(self.directory / "interactions.parquet")

    def left_out(self) -> dict[str, tuple[int, list[int]]]:
        """Reason → count and first lines."""
        return {entry.reason: (entry.count, entry.lines) for entry in self.record.rows_left_out}

    def left_empty(self) -> dict[str, tuple[int, list[int]]]:
        return {entry.reason: (entry.count, entry.lines) for entry in self.record.values_left_empty}


@pytest.fixture
def write_source(tmp_path: Path) -> Callable[[Mapping[str, str | bytes]], Path]:
    """Write files into the directory ``source``."""

    def write(files: Mapping[str, str | bytes]) -> Path:
        source = tmp_path / "source"
        for name, content in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return source

    return write


@pytest.fixture
def imported(tmp_path: Path, write_source: Callable[..., Path]) -> Callable[..., Imported]:
    """Write a source, and import it into the directory ``shop``."""

    def run(name: str, files: Mapping[str, str | bytes], **options: Any) -> Imported:
        record = run_import(FormatName(name), write_source(files), tmp_path / "shop", **options)
        return Imported(tmp_path / "shop", record)

    return run
