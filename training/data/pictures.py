"""Preprocesses pictures into patches for the vision tower and caches them within a memory limit."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.picture_reader import open_picture
from training.data.stored.stored_pictures import PictureFile
from training.errors import PictureError

PREPROCESSING_VERSION = 1
"""Incremented when the preprocessing of pictures or texts changes, so that everything is embedded again."""
_SAMPLE_SIDE = 16
_REASON_CHARACTERS = 200


class ImageProcessor(Protocol):
    """The used part of an image processor of the Qwen-VL family in transformers."""

    merge_size: int
    size: Mapping[str, int]

    def __call__(self, *, images: list[Image.Image], return_tensors: str) -> Mapping[str, Any]:
        """``pixel_values`` (patches, values) and ``image_grid_thw`` (pictures, 3)."""
        ...


@dataclass(frozen=True)
class Picture:
    """One preprocessed picture.

    Attributes:
        patches: (p, channels · frames · side²) float32.
        grid: (3,) int64, frames × rows × columns of patches; their product is p.
    """

    patches: NDArray[np.float32]
    grid: NDArray[np.int64]


class PictureStore:
    """Preprocessed pictures of a catalogue by item row; an unreadable picture is absent, never an error.

    Thread-safe; at worst two threads read the same picture.

    Attributes:
        unreadable: row → reason, for requested pictures whose file exists but cannot be used.
    """

    def __init__(
        self,
        image_path: Callable[[int], PictureFile | None],
        image_processor: ImageProcessor,
        *,
        memory_bytes: int,
    ) -> None:
        self._image_path = image_path
        self._processor = image_processor
        self._left = memory_bytes
        self._kept: dict[int, Picture | None] = {}
        self._lock = threading.Lock()
        self.merge = int(image_processor.merge_size) ** 2
        self.unreadable: dict[int, str] = {}

    def get(self, row: int) -> Picture | None:
        """The picture of an item.

        Args:
            row: item row.

        Returns:
            Patches, cached if possible; None if the item has no readable picture.
        """
        if row in self._kept:
            return self._kept[row]
        picture = self._read(row)
        size = 0 if picture is None else picture.patches.nbytes
        with self._lock:
            if size <= self._left and row not in self._kept:
                self._left -= size
                self._kept[row] = picture
        return picture

    def tokens(self, picture: Picture) -> int:
        """Visual tokens that a picture becomes in a prompt."""
        return int(picture.grid.prod()) // self.merge

    def _read(self, row: int) -> Picture | None:
        path = self._image_path(row)
        if path is None:
            return None
        try:
            opened = open_picture(path, self._processor.size["longest_edge"])
            made = self._processor(images=[opened], return_tensors="np")
        except PictureError as error:
            self.unreadable[row] = str(error)
            return None
        except ValueError as error:  # no known image processor refuses what the reader accepts
            self.unreadable[row] = f"the image processor refuses it: {error}"[:_REASON_CHARACTERS]
            return None
        return Picture(
            np.ascontiguousarray(made["pixel_values"], dtype=np.float32),
            np.asarray(made["image_grid_thw"][0], dtype=np.int64),
        )


def colour_statistics(
    image_path: Callable[[int], PictureFile | None], rows: int, *, most: int = 1_000, seed: int = 0
) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of red, green and blue over a catalogue.

    Args:
        image_path: picture file of an item row.
        rows: number of items.
        most: size of the random sample of rows.
        seed: of the sample.

    Returns:
        Three means and three deviations (at least 0.01) in 0 … 1; None if none of the sampled pictures is readable.
    """
    sample = np.random.default_rng(seed).permutation(rows)[:most]
    pixels = []
    for row in sorted(sample.tolist()):
        path = image_path(row)
        if path is None:
            continue
        try:
            small = open_picture(path, _SAMPLE_SIDE**2).resize((_SAMPLE_SIDE, _SAMPLE_SIDE))
        except PictureError:
            continue
        pixels.append(np.asarray(small, dtype=np.float64).reshape(-1, 3) / 255)
    if not pixels:
        return None
    joined = np.concatenate(pixels)
    return joined.mean(axis=0).round(4).tolist(), np.maximum(joined.std(axis=0), 0.01).round(4).tolist()
