"""Stores the text and picture vectors of a whole catalogue, before any projection.

The vectors come from a vision-language model or the baseline without one, and the sequence encoder is trained on them.
A directory holds ``embeddings.json`` (slots, counts, provenance and file names), one file of items and one file of
vectors per slot. Each set of files has its own number. A new set is written beside the old one and takes effect when
``embeddings.json`` is replaced, so a killed job leaves either the old set or the new one.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from index.bundle.integrity import sync_directory, sync_file, write_durably
from index.items.item_table import ITEM_ID
from index.machine.disk import new_array_file
from training.backbones.identity import LICENCES
from training.embedding.content_hashes import ContentHashes
from training.embedding.unused_vectors import PLACE, SLOT, UnusedVectors
from training.errors import EmbeddingsError

EMBEDDINGS_FILE = "embeddings.json"
UNREADABLE_FILE = "unreadable.json"
_UNREADABLE = "unreadable"
_UNUSED = "unused"
_FORMAT_VERSION = 2
_INCOMPLETE = ".*.part"  # incomplete files of a killed job
_OWN_FILE = re.compile(r"[a-z][a-z0-9_]{0,31}-\d{6}\.(npy|parquet)(\.part)?")
_SLOT_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_NORM_TOLERANCE = 1e-3
_BLOCK_ROWS = 8_192
_Ids = Sequence[str] | pl.Series


@dataclass(frozen=True)
class Embeddings:
    """Modality vectors, one row per item.

    Attributes:
        item_ids: item id per row, unique.
        vectors: slot name (``text``, ``image``) → (n, D) float32 with rows of length 1; a row of zeros means that the
            item lacks this modality or that it could not be read.
        model: JSON-able provenance: kind (``vlm`` or ``no-vlm``), model id, hashes of prompt and preprocessing.
        unreadable: item id → reason, for existing pictures that could not be used.
        contents: hashes of each item, rows as in ``item_ids``; None if unknown.
        check: check every vector, not only the shapes.

    Raises:
        EmbeddingsError: repeated ids, no slot, a wrong shape or dtype, a value that is not finite, a row whose length
            is neither 0 nor 1, or contents of other items.
    """

    item_ids: list[str]
    vectors: dict[str, NDArray[np.float32]]
    model: dict[str, Any] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    contents: ContentHashes | None = None
    check: InitVar[bool] = True

    def __post_init__(self, check: bool) -> None:
        _check_ids(self.item_ids, self.contents)
        _check_shapes(self.vectors, len(self.item_ids))
        if check:
            for name, block in self.vectors.items():
                _check_lengths(name, block)

    def __len__(self) -> int:
        return len(self.item_ids)

    def dims(self) -> dict[str, int]:
        """Vector length D per slot."""
        return {name: int(block.shape[1]) for name, block in self.vectors.items()}

    def save(self, directory: Path) -> None:
        """Write the embeddings durably; an earlier set in the same directory is replaced in one step.

        Args:
            directory: made if it does not exist.
        """
        with EmbeddingsDraft.open(directory, len(self), self.dims()) as draft:
            for name, block in self.vectors.items():
                draft.vectors[name][:] = block
            draft.commit(self.item_ids, self.model, self.unreadable, self.contents)

    @classmethod
    def load(cls, directory: Path, *, check: bool = True, contents: ContentHashes | None = None) -> "Embeddings":
        """Read embeddings; the vectors are memory-mapped.

        Args:
            directory: where :meth:`save` wrote them.
            check: check every vector, not only the shapes.
            contents: the hashes that were written, taken in place of those in the file; None reads these.

        Raises:
            EmbeddingsError: there are none, or a file is unreadable, of another format version, or breaks a rule.
        """
        description = _read_description(directory)
        try:
            files, slots = dict(description["files"]), dict(description["slots"])
            vectors = {name: _load_block(directory / _own_file(files[_slot_name(name)])) for name in slots}
            items = directory / _own_file(files["items"])
            ids, unreadable, contents = _load_items(items, contents, read=bool(description["contents"]))
            _check_description(description, ids, vectors)
            return cls(ids, vectors, dict(description["model"]), unreadable, contents, check=check)
        except (OSError, KeyError, TypeError, ValueError, EOFError, pl.exceptions.PolarsError) as error:
            raise EmbeddingsError(
                f"{directory}: embeddings cannot be read ({error}); embed the catalogue again"
            ) from error


@dataclass
class EmbeddingsDraft:
    """A new set of embeddings that is being written beside the current set.

    Attributes:
        directory: of the embeddings.
        number: of the new set.
        vectors: slot name → (n, D) float32, mapped from the new files, initially zero.
        unused: files of unused vectors, by their key in the description.
    """

    directory: Path
    number: int
    vectors: dict[str, NDArray[np.float32]]
    unused: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextlib.contextmanager
    def open(cls, directory: Path, items: int, dims: Mapping[str, int]) -> Iterator["EmbeddingsDraft"]:
        """Begin a new set; without :meth:`commit` nothing changes.

        Args:
            directory: made if it does not exist.
            items: number of rows n.
            dims: vector length D per slot.
        """
        directory.mkdir(parents=True, exist_ok=True)
        number = _current_number(directory) + 1
        draft = cls(directory, number, {})
        try:
            for name, dim in dims.items():
                part = directory / f"{_file_of(name, number)}.part"
                draft.vectors[name] = new_array_file(part, np.float32, (items, dim))
            yield draft
        finally:
            draft.vectors.clear()
            remove_old_files(directory)

    def keep_unused(self, frame: pl.DataFrame, take: Callable[[str, NDArray[np.int64]], NDArray[np.float32]]) -> None:
        """Keep unused vectors beside the new set.

        Args:
            frame: the result of :func:`training.embedding.unused_vectors.next_unused`.
            take: slot and places → (m, D) float32.
        """
        if frame.is_empty():
            return
        for slot in frame[SLOT].unique(maintain_order=True):
            places = frame.filter(pl.col(SLOT) == slot)[PLACE].to_numpy()
            name = _file_of(f"{_UNUSED}_{slot}", self.number)
            part = self.directory / f"{name}.part"
            made = new_array_file(part, np.float32, (len(places), int(self.vectors[slot].shape[1])))
            for start in range(0, len(places), _BLOCK_ROWS):
                made[start : start + _BLOCK_ROWS] = take(slot, places[start : start + _BLOCK_ROWS])
            made.flush()
            self.unused[f"{_UNUSED}_{slot}"] = name
        name = f"{_UNUSED}-{self.number:06d}.parquet"
        frame.drop(PLACE).write_parquet(self.directory / f"{name}.part")
        self.unused[_UNUSED] = name

    def commit(
        self,
        item_ids: _Ids,
        model: Mapping[str, Any],
        unreadable: Mapping[str, str],
        contents: ContentHashes | None,
    ) -> None:
        """Make the new set current, durably and in one step.

        Raises:
            EmbeddingsError: the parts break a rule of :class:`Embeddings`.
        """
        _check_ids(item_ids, contents)
        _check_shapes(self.vectors, len(item_ids))
        try:
            for name, block in self.vectors.items():
                _check_lengths(name, block)
        except EmbeddingsError as error:  # the sources of the set are damaged
            raise EmbeddingsError(f"{error}. Delete {self.directory} and embed the catalogue again") from error
        files = {}
        for name, block in self.vectors.items():
            files[name] = _file_of(name, self.number)
            if isinstance(block, np.memmap):
                block.flush()
            _put_in_place(self.directory / f"{files[name]}.part")
        for name in self.unused.values():
            _put_in_place(self.directory / f"{name}.part")
        files |= self.unused
        slots = {name: int(block.shape[1]) for name, block in self.vectors.items()}
        files["items"] = _write_items(self.directory, self.number, item_ids, unreadable, contents)
        _write_description(self.directory, files, slots, len(item_ids), model, contents)


def load_unused(directory: Path) -> UnusedVectors:
    """Unused vectors beside the current embeddings; empty if there are none or a file is damaged.

    Args:
        directory: of the embeddings.
    """
    try:
        description = _read_description(directory)
        files = dict(description["files"])
        if _UNUSED not in files:
            return UnusedVectors()
        frame = pl.read_parquet(directory / _own_file(files[_UNUSED]), glob=False)
        names = {key.removeprefix(f"{_UNUSED}_"): name for key, name in files.items() if key.startswith(f"{_UNUSED}_")}
        vectors = {slot: _load_block(directory / _own_file(name)) for slot, name in names.items()}
        found = UnusedVectors(frame, vectors)
        return found if found.fits(dict(description["slots"])) else UnusedVectors()
    except (EmbeddingsError, OSError, KeyError, TypeError, ValueError, EOFError, pl.exceptions.PolarsError):
        return UnusedVectors()


def replace_items(
    directory: Path, embeddings: Embeddings, contents: ContentHashes, *, licences: Sequence[str] | None
) -> None:
    """Replace the content hashes of the same items in the same order, and the licences; the vectors stay.

    Args:
        directory: of the current embeddings.
        embeddings: as loaded from there.
        contents: of the same items.
        licences: of the pretrained models; None without any.
    """
    description = _read_description(directory)
    number = _current_number(directory) + 1
    files = dict(description["files"])
    files["items"] = _write_items(directory, number, embeddings.item_ids, embeddings.unreadable, contents)
    model = {name: part for name, part in embeddings.model.items() if name != LICENCES}
    model |= {} if licences is None else {LICENCES: list(licences)}
    _write_description(directory, files, embeddings.dims(), len(embeddings), model, contents)
    remove_old_files(directory)


def remove_old_files(directory: Path) -> None:
    """Remove the files of all sets except the current one; a process that has a file open can still read it."""
    try:
        kept: set[str] | None = set(_read_description(directory)["files"].values())
    except (EmbeddingsError, KeyError, AttributeError):
        kept = None  # the current set is unknown, so only incomplete files are removed
    for path in directory.iterdir():
        own = _OWN_FILE.fullmatch(path.name)
        if own and (path.suffix == ".part" or (kept is not None and path.name not in kept)):
            path.unlink(missing_ok=True)
    for path in directory.glob(_INCOMPLETE):
        path.unlink(missing_ok=True)


def _file_of(name: str, number: int) -> str:
    return f"{_slot_name(name)}-{number:06d}.npy"


def _slot_name(name: str) -> str:
    if not _SLOT_NAME.fullmatch(name):
        raise EmbeddingsError(f"slot names are lower-case words of at most 32 letters, got {name!r}")
    return name


def _own_file(name: str) -> str:
    if not _OWN_FILE.fullmatch(name):
        raise EmbeddingsError(f"{name!r} is no file of embeddings; embed the catalogue again")
    return name


def _read_description(directory: Path) -> dict[str, Any]:
    path = directory / EMBEDDINGS_FILE
    if not path.is_file():
        raise EmbeddingsError(f"{directory}: no embeddings here; make them with `vlm2rec embed`")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        found = description["format"]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise EmbeddingsError(f"{path}: cannot be read ({error}); embed the catalogue again") from error
    if found != _FORMAT_VERSION:
        raise EmbeddingsError(
            f"{path}: embeddings format {found!r}, this version reads {_FORMAT_VERSION}; embed the catalogue again"
        )
    return dict(description)


def _current_number(directory: Path) -> int:
    """Highest number of the current files; 0 if there are none."""
    try:
        files = _read_description(directory)["files"].values()
        return max(int(_own_file(name).partition("-")[2][:6]) for name in files)
    except (EmbeddingsError, KeyError, AttributeError, TypeError, ValueError):
        return 0


def _put_in_place(part: Path) -> None:
    sync_file(part)
    part.replace(part.with_suffix(""))


def _write_items(
    directory: Path, number: int, ids: _Ids, unreadable: Mapping[str, str], contents: ContentHashes | None
) -> str:
    frame = pl.DataFrame({ITEM_ID: ids}, schema={ITEM_ID: pl.String()}) if contents is None else contents.frame
    reasons = pl.Series(_UNREADABLE, [unreadable.get(item_id) for item_id in ids], dtype=pl.String)
    name = f"items-{number:06d}.parquet"
    frame.with_columns(reasons).write_parquet(directory / f"{name}.part")
    _put_in_place(directory / f"{name}.part")
    return name


def _write_description(
    directory: Path,
    files: Mapping[str, str],
    slots: Mapping[str, int],
    items: int,
    model: Mapping[str, Any],
    contents: ContentHashes | None,
) -> None:
    sync_directory(directory)
    description = {
        "format": _FORMAT_VERSION,
        "items": items,
        "slots": dict(slots),
        "contents": contents is not None,
        "files": dict(files),
        "model": dict(model),
    }
    write_durably(directory / EMBEDDINGS_FILE, json.dumps(description, indent=2).encode() + b"\n")


def _load_items(
    path: Path, known: ContentHashes | None, *, read: bool
) -> tuple[list[str], dict[str, str], ContentHashes | None]:
    frame = pl.read_parquet(path, glob=False, columns=[ITEM_ID, _UNREADABLE])
    named = frame.drop_nulls(_UNREADABLE)
    unreadable = dict(zip(named[ITEM_ID].to_list(), named[_UNREADABLE].to_list(), strict=True))
    contents = ContentHashes.load(path) if read and known is None else known
    return frame[ITEM_ID].cast(pl.String).to_list(), unreadable, contents


def _load_block(path: Path) -> NDArray[np.float32]:
    block: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
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


def _check_ids(ids: _Ids, contents: ContentHashes | None) -> None:
    if contents is not None and contents.are_of(ids):
        return  # contents name every item once
    if not pl.Series(ITEM_ID, ids, dtype=pl.String).is_unique().all():
        raise EmbeddingsError("item ids of embeddings must be unique; check the catalogue for repeated ids")
    if contents is not None:
        raise EmbeddingsError("the contents are of other items than the vectors; embed the catalogue again")


def _check_shapes(vectors: Mapping[str, NDArray[np.float32]], rows: int) -> None:
    if not vectors:
        raise EmbeddingsError("embeddings need at least one slot (text or image), got none")
    for name, block in vectors.items():
        _slot_name(name)
        if block.dtype != np.float32 or block.ndim != 2 or block.shape[0] != rows or block.shape[1] < 1:
            raise EmbeddingsError(f"slot {name!r} must be float32 ({rows}, D), got {block.dtype} {block.shape}")


def _check_lengths(name: str, block: NDArray[np.float32]) -> None:
    for start in range(0, len(block), _BLOCK_ROWS):
        norms = np.linalg.norm(block[start : start + _BLOCK_ROWS].astype(np.float64), axis=1)
        wrong = ~((norms == 0) | (np.abs(norms - 1) <= _NORM_TOLERANCE))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise EmbeddingsError(
                f"slot {name!r}: rows must have length 1, or 0 when the modality is absent; row {start + row} has "
                f"length {norms[row]}"
            )
