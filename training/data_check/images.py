"""Checks that the pictures of a catalogue exist, lie inside the directory, are readable and differ between items."""

import hashlib
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import polars as pl

from index.machine.cores import available_cores
from training.data.data_place import DataPlace
from training.data.dataset import IMAGE, TEXT, TITLE
from training.data.item_texts import HAS_WORD
from training.data.picture_reader import open_picture
from training.data.tables.table_files import ROW
from training.data_check.report import Defect, ImageFacts, Severity, defect_of
from training.errors import PictureError

_AHEAD = 256
_HASH_BYTES = 16
_ADDRESS = re.compile(r"\s*https?://", re.IGNORECASE)
_IMAGE_URL = "image_url"
_PIXELS = 64 * 64  # the size does not affect whether a picture is readable


class _PictureState(Enum):
    MISSING = "missing"
    ADDRESS = "address"
    OUTSIDE = "outside"
    UNREADABLE = "unreadable"
    READABLE = "readable"


@dataclass(frozen=True)
class _PictureCheck:
    state: _PictureState
    digest: bytes | None = None
    reason: str | None = None


def check_images(
    place: DataPlace, items: pl.DataFrame, file: str, *, progress: Callable[[float], None]
) -> tuple[ImageFacts, list[Defect]]:
    """Open every picture of the catalogue in the same way as training and embedding.

    Args:
        place: of the data set.
        items: the catalogue with :data:`ROW` and ``image``.
        file: name of the items file, for messages.
        progress: called with the share of the pictures that is done, 0 … 1.
    """
    named = items.filter(pl.col(IMAGE).str.strip_chars().fill_null("") != "").select(ROW, IMAGE)
    looked = list(_with_progress(_check_all(place, named[IMAGE].to_list()), named.height, progress))
    states = named.with_columns(
        pl.Series("state", [one.state.value for one in looked], dtype=pl.String),
        pl.Series("digest", [one.digest for one in looked], dtype=pl.Binary),
    )
    by_state = {state: states.filter(pl.col("state") == state.value) for state in _PictureState}
    readable = by_state[_PictureState.READABLE]
    reason = next((one.reason for one in looked if one.reason is not None), None)
    again = readable.filter(~pl.col("digest").is_first_distinct())
    facts = ImageFacts(
        named=named.height,
        readable=readable.height,
        missing=sum(
            by_state[state].height for state in (_PictureState.MISSING, _PictureState.ADDRESS, _PictureState.OUTSIDE)
        ),
        unreadable=by_state[_PictureState.UNREADABLE].height,
        duplicates=again.height,
    )
    return facts, [
        *defect_of(
            "images outside the dataset", Severity.WARNING, by_state[_PictureState.OUTSIDE],
            f"{file}: image leads out of the dataset directory",
            "copy the pictures into it; these items count as without a picture", example=IMAGE,
        ),
        *defect_of(
            "addresses as images", Severity.WARNING, by_state[_PictureState.ADDRESS],
            f"{file}: image is an address, and no job fetches it",
            "rename the column to image_url and run `vlm2rec data fetch-images`; until then these items count as "
            "without a picture", example=IMAGE,
        ),
        *defect_of(
            "missing images", Severity.WARNING, by_state[_PictureState.MISSING], f"{file}: image file does not exist",
            "add the files or empty the cells; these items count as without a picture", example=IMAGE,
        ),
        *defect_of(
            "unreadable images", Severity.WARNING, by_state[_PictureState.UNREADABLE], f"{file}: image cannot be read",
            f"of the first: {reason}; replace the files; these items count as without a picture", example=IMAGE,
        ),
        *defect_of(
            "duplicate images", Severity.WARNING, again, f"{file}: image has the content of an earlier item's",
            "fine for variants of one product, else likely a placeholder", example=IMAGE,
        ),
        *_without_image(items, named.height, file),
    ]  # fmt: skip


def _without_image(items: pl.DataFrame, named: int, file: str) -> list[Defect]:
    if not named:
        texts = pl.any_horizontal(pl.col(name).str.contains(HAS_WORD).fill_null(value=False) for name in (TITLE, TEXT))
        message = f"{file}: no item names a picture"
        if items.select(texts.any()).item():
            message += "; only texts can be trained on"
        if _IMAGE_URL in items.columns:
            message += f"; `vlm2rec data fetch-images` fetches those that {_IMAGE_URL} names"
        return [Defect("items without image", Severity.NOTE, items.height, message)]
    without = items.filter(pl.col(IMAGE).str.strip_chars().fill_null("") == "")
    remedy = "they are recommended by their text"
    return defect_of("items without image", Severity.NOTE, without, f"{file}: no image named", remedy)


def _check_all(place: DataPlace, names: list[str]) -> Iterable[_PictureCheck]:
    """Decode in a few threads, in order, with a bounded number of pending results."""
    with ThreadPoolExecutor(max_workers=min(4, available_cores())) as pool:
        for start in range(0, len(names), _AHEAD):
            yield from pool.map(lambda name: _check_picture(place, name), names[start : start + _AHEAD])


def _with_progress(
    looked: Iterable[_PictureCheck], total: int, progress: Callable[[float], None]
) -> Iterable[_PictureCheck]:
    for done, one in enumerate(looked, start=1):
        progress(done / total)
        yield one


def _check_picture(place: DataPlace, name: str) -> _PictureCheck:
    path = place.picture(name)
    if path is None and _ADDRESS.match(name):
        return _PictureCheck(_PictureState.ADDRESS)
    if path is None:
        return _PictureCheck(_PictureState.OUTSIDE if _leads_out(place.directory, name) else _PictureState.MISSING)
    try:
        open_picture(path, _PIXELS)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_HASH_BYTES)).digest()
    except (PictureError, OSError) as error:
        return _PictureCheck(_PictureState.UNREADABLE, reason=str(error))
    return _PictureCheck(_PictureState.READABLE, digest)


def _leads_out(directory: Path, name: str) -> bool:
    try:
        root = directory.resolve()
        return not (root / name).resolve().is_relative_to(root)
    except (OSError, ValueError, RuntimeError):
        return False
