"""Stores the item table: the items, vectors and metadata that training hands over to the index build.

A table is a directory with ``table.json`` (layout, model, counts), ``items.parquet`` (item_id, popularity, metadata
columns) and ``vectors.npy`` (stored vectors, memory-mapped on load). It also has ``missing.npy`` if the reasons for
missing slots are known, and ``thumbnails.npy`` if the catalogue has pictures.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.errors import ItemTableError
from index.items.item_ids import ItemIds
from index.items.modality_status import check_missing, check_missing_fits, derive_missing
from index.items.slots import Slot, SlotLayout
from index.items.thumbnails import THUMBNAILS_FILE, Thumbnails

TABLE_FILE = "table.json"
ITEMS_FILE = "items.parquet"
VECTORS_FILE = "vectors.npy"
MISSING_FILE = "missing.npy"
ITEM_ID = "item_id"
POPULARITY = "popularity"
_FORMAT_VERSION = 1
_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class ItemTable:
    """Items with their stored vectors, popularity and metadata.

    Attributes:
        layout: the slots of the vectors.
        ids: item id per row.
        vectors: (n, Σd) float16 or float32 stored vectors (see :meth:`SlotLayout.stack`); zero rows are not indexed.
        popularity: (n,) int64 events per item that the encoder was fitted on.
        metadata: n rows: every column of the catalogue, such as ``title``, ``text`` and ``image`` (path relative to the
            data set, null if missing), except ``item_id`` and ``popularity``.
        model: provenance of the vectors, JSON-able: model id, prompt and preprocessing hashes, training run.
        missing: (n, slots) uint8 codes of :class:`index.items.modality_status.ModalityStatus`, columns in the order of
            the layout: why a slot is zero. None if only the vectors are known; see :meth:`missing_record`.
        thumbnails: the small pictures, one row per item; None if none were made.

    Raises:
        ItemTableError: the parts have different row counts, or a value breaks a rule.
    """

    layout: SlotLayout
    ids: ItemIds
    vectors: NDArray[np.floating]
    popularity: NDArray[np.int64]
    metadata: pa.Table
    model: dict[str, Any] = field(default_factory=dict)
    missing: NDArray[np.uint8] | None = None
    thumbnails: Thumbnails | None = None

    def __post_init__(self) -> None:
        rows = len(self.ids)
        if self.vectors.shape != (rows, self.layout.dim):
            raise ItemTableError(f"vectors must be ({rows}, {self.layout.dim}), got {self.vectors.shape}")
        if self.vectors.dtype not in (np.float16, np.float32):
            raise ItemTableError(f"vectors must be float16 or float32, got {self.vectors.dtype}")
        if self.popularity.shape != (rows,) or self.metadata.num_rows != rows:
            raise ItemTableError(
                f"popularity and metadata need {rows} rows, got {self.popularity.shape} and {self.metadata.num_rows}"
            )
        if int(self.popularity.min(initial=0)) < 0:
            raise ItemTableError("popularity counts events and cannot be negative")
        names = self.metadata.column_names
        if len(set(names)) != len(names):
            raise ItemTableError(f"metadata columns must have different names, got {names}")
        reserved = {ITEM_ID, POPULARITY} & set(names)
        if reserved:
            raise ItemTableError(
                f"metadata columns must not be called {sorted(reserved)}; rename them in the catalogue"
            )
        if self.missing is not None:
            check_missing(self.missing, self.layout, rows)
            check_missing_fits(self.missing, self.layout, self.vectors)
        if self.thumbnails is not None and len(self.thumbnails) != rows:
            raise ItemTableError(f"thumbnails must have {rows} rows, got {len(self.thumbnails)}; make them again")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def indexed(self) -> NDArray[np.bool_]:
        """(n,) bool: the rows with at least one slot, which a query can find."""
        return np.asarray(self.layout.present(self.vectors).any(axis=1))

    def missing_record(self) -> NDArray[np.uint8]:
        """The missing-modality record: ``missing``, or one derived from the vectors.

        Returns:
            (n, slots) uint8 codes of :class:`index.items.modality_status.ModalityStatus`.
        """
        return derive_missing(self.layout, self.vectors) if self.missing is None else self.missing

    def save(self, directory: Path) -> None:
        """Write the table; an earlier table in the directory is replaced file by file, ``table.json`` last.

        Raises:
            ItemTableError: a vector is not finite.
        """
        import pyarrow.parquet as pq  # 9 MiB of memory that a service does not need

        starts = range(0, len(self), _BLOCK_ROWS)
        if not all(np.isfinite(self.vectors[start : start + _BLOCK_ROWS]).all() for start in starts):
            raise ItemTableError("vectors must be finite; check the training run for diverged losses")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / TABLE_FILE).unlink(missing_ok=True)
        np.save(directory / VECTORS_FILE, self.vectors)
        if self.missing is None:
            (directory / MISSING_FILE).unlink(missing_ok=True)
        else:
            np.save(directory / MISSING_FILE, self.missing)
        if self.thumbnails is None:
            (directory / THUMBNAILS_FILE).unlink(missing_ok=True)
        else:
            self.thumbnails.copy_to(directory / THUMBNAILS_FILE)
        columns = {ITEM_ID: self.ids.array}
        columns[POPULARITY] = pa.array(self.popularity, pa.int64())
        columns |= {name: self.metadata.column(name) for name in self.metadata.column_names}
        pq.write_table(pa.table(columns), directory / ITEMS_FILE, compression="zstd")
        description = {
            "format": _FORMAT_VERSION,
            "slots": [[slot.name, slot.dim] for slot in self.layout.slots],
            "items": len(self),
            "model": self.model,
            "missing": self.missing is not None,
            "thumbnails": self.thumbnails is not None,
        }
        partial = directory / f"{TABLE_FILE}.part"
        partial.write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        partial.replace(directory / TABLE_FILE)

    @classmethod
    def load(cls, directory: Path, *, mmap: bool = True) -> "ItemTable":
        """Read a table.

        Args:
            directory: where :meth:`save` wrote it.
            mmap: memory-map the vectors instead of reading them.

        Raises:
            ItemTableError: a file is missing, unreadable or of another format version, or the files disagree.
            MemoryError: there is not enough memory.
        """
        import pyarrow.parquet as pq

        try:
            description = json.loads((directory / TABLE_FILE).read_text())
            if description["format"] != _FORMAT_VERSION:
                raise ItemTableError(
                    f"{directory}: item table format {description['format']!r}, this version reads {_FORMAT_VERSION}"
                )
            layout = SlotLayout(tuple(Slot(str(name), int(dim)) for name, dim in description["slots"]))
            # Arrow waits without end for a thread that could not be started for want of memory.
            with pq.ParquetFile(directory / ITEMS_FILE, pre_buffer=False) as file:
                items = file.read(use_threads=False)
            vectors = np.load(directory / VECTORS_FILE, mmap_mode="r" if mmap else None, allow_pickle=False)
            # Tables of earlier versions do not have these two keys.
            has_missing, has_thumbnails = description.get("missing", False), description.get("thumbnails", False)
            return cls(
                layout=layout,
                ids=ItemIds(pa.concat_arrays(items.column(ITEM_ID).cast(pa.large_string()).chunks)),
                vectors=vectors,
                popularity=items.column(POPULARITY).to_numpy().astype(np.int64),
                metadata=items.drop_columns([ITEM_ID, POPULARITY]),
                model=description["model"],
                missing=np.load(directory / MISSING_FILE, allow_pickle=False) if has_missing else None,
                thumbnails=Thumbnails.load(directory / THUMBNAILS_FILE, len(items)) if has_thumbnails else None,
            )
        except pa.ArrowMemoryError:
            raise  # says nothing about the files
        except (OSError, KeyError, TypeError, ValueError, EOFError, pa.ArrowException) as error:
            raise ItemTableError(
                f"{directory}: not a readable item table ({error}); embed the catalogue again"
            ) from error
