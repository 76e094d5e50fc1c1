"""Embeddings: modality vectors of a whole catalogue, before any projection.

What a vision-language model (or the baseline without one) makes of each item, and what the sequence encoder is trained
on. A directory with ``embeddings.json`` (slots, counts, provenance; written last), ``item_ids.parquet`` and one
``<slot>.npy`` per slot.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from training.errors import EmbeddingsError

EMBEDDINGS_FILE = "embeddings.json"
IDS_FILE = "item_ids.parquet"
_FORMAT_VERSION = 1
_SLOT_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_NORM_TOLERANCE = 1e-3
_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Embeddings:
    """Modality vectors, one row per item.

    Attributes:
        item_ids: item id per row, unique.
        vectors: slot name (``text``, ``image``) → (n, D) float32 with rows of length 1; a row of zeros means that the
            item lacks this modality or that it could not be read.
        model: JSON-able provenance: kind (``vlm`` or ``no-vlm``), model id, hashes of prompt and preprocessing.

    Raises:
        EmbeddingsError: repeated ids, no slot, a wrong shape or dtype, a value that is not finite, or a row whose
            length is neither 0 nor 1.
    """

    item_ids: list[str]
    vectors: dict[str, NDArray[np.float32]]
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.item_ids)) != len(self.item_ids):
            raise EmbeddingsError("item ids of embeddings must be unique; check the catalogue for repeated ids")
        if not self.vectors:
            raise EmbeddingsError("embeddings need at least one slot (text or image), got none")
        for name, block in self.vectors.items():
            _check_block(name, block, len(self.item_ids))

    def __len__(self) -> int:
        return len(self.item_ids)

    def dims(self) -> dict[str, int]:
        """Vector length D per slot."""
        return {name: int(block.shape[1]) for name, block in self.vectors.items()}

    def save(self, directory: Path) -> None:
        """Write the embeddings, ``embeddings.json`` last; an earlier set in the same directory is replaced.

        Args:
            directory: made if it does not exist.
        """
        directory.mkdir(parents=True, exist_ok=True)
        (directory / EMBEDDINGS_FILE).unlink(missing_ok=True)
        for name, block in self.vectors.items():
            partial = directory / f"{name}.npy.part"
            with partial.open("wb") as file:
                np.save(file, block, allow_pickle=False)
            partial.replace(directory / f"{name}.npy")
        partial = directory / f"{IDS_FILE}.part"
        pq.write_table(pa.table({"item_id": pa.array(self.item_ids, pa.string())}), partial, compression="zstd")
        partial.replace(directory / IDS_FILE)
        description = {"format": _FORMAT_VERSION, "items": len(self), "slots": self.dims(), "model": self.model}
        partial = directory / f"{EMBEDDINGS_FILE}.part"
        partial.write_text(json.dumps(description, indent=2) + "\n")
        partial.replace(directory / EMBEDDINGS_FILE)

    @classmethod
    def load(cls, directory: Path) -> "Embeddings":
        """Read embeddings; the vectors are memory-mapped.

        Args:
            directory: where :meth:`save` wrote them.

        Raises:
            EmbeddingsError: there are none, or a file is unreadable, of another format version, or breaks a rule.
        """
        path = directory / EMBEDDINGS_FILE
        if not path.is_file():
            raise EmbeddingsError(f"{directory}: no embeddings here; make them with `vlm2rec embed`")
        try:
            description = json.loads(path.read_text())
            if description["format"] != _FORMAT_VERSION:
                raise EmbeddingsError(
                    f"{path}: embeddings format {description['format']!r}, this version reads {_FORMAT_VERSION}; "
                    "embed the catalogue again"
                )
            ids = [str(item_id) for item_id in pq.read_table(directory / IDS_FILE).column("item_id").to_pylist()]
            vectors = {name: _load_block(directory, name) for name in description["slots"]}
            _check_description(description, ids, vectors)
            return cls(ids, vectors, dict(description["model"]))
        except (OSError, KeyError, TypeError, ValueError, EOFError, pa.ArrowException) as error:
            raise EmbeddingsError(
                f"{directory}: embeddings cannot be read ({error}); embed the catalogue again"
            ) from error


def _load_block(directory: Path, name: str) -> NDArray[np.float32]:
    if not _SLOT_NAME.fullmatch(name):
        raise EmbeddingsError(f"slot names are lower-case words of at most 32 letters, got {name!r}")
    block: NDArray[np.float32] = np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return block


def _check_description(
    description: Mapping[str, Any], ids: list[str], vectors: Mapping[str, NDArray[np.float32]]
) -> None:
    shapes = {name: int(block.shape[-1]) for name, block in vectors.items()}
    if description["items"] != len(ids) or description["slots"] != shapes:
        raise EmbeddingsError(
            f"embeddings should hold {description['items']} items with slots {description['slots']}, the files hold "
            f"{len(ids)} with {shapes}; embed the catalogue again"
        )


def _check_block(name: str, block: NDArray[np.float32], rows: int) -> None:
    if not _SLOT_NAME.fullmatch(name):
        raise EmbeddingsError(f"slot names are lower-case words of at most 32 letters, got {name!r}")
    if block.dtype != np.float32 or block.ndim != 2 or block.shape[0] != rows or block.shape[1] < 1:
        raise EmbeddingsError(f"slot {name!r} must be float32 ({rows}, D), got {block.dtype} {block.shape}")
    for start in range(0, rows, _BLOCK_ROWS):
        norms = np.linalg.norm(block[start : start + _BLOCK_ROWS].astype(np.float64), axis=1)
        wrong = ~((norms == 0) | (np.abs(norms - 1) <= _NORM_TOLERANCE))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise EmbeddingsError(
                f"slot {name!r}: rows must have length 1, or 0 when the modality is absent; row {start + row} has "
                f"length {norms[row]}"
            )
