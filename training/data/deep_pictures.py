"""Scales grey pictures of more than 8 bits to 8 bits by the range of their format."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

_BLOCK_PIXELS = 1 << 20
_TRANSPARENT = "transparency"
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2
_BRIGHTEST_UNIT = 8.0  # floats up to here count as 0 … 1; values above 1 are clipped


def is_deep(picture: Image.Image) -> bool:
    """Whether a decoded picture is grey with integers of 16 or 32 bits, or with floats."""
    return picture.mode.startswith("I") or picture.mode == "F"


def eight_bit_grey(picture: ImageFile.ImageFile) -> Image.Image:
    """Scale a deep picture to 8 bits.

    Integers of 16 bits (12 in some TIFFs) reach from black at 0 to white at their largest value. For integers of 32
    bits and floats, files do not say which value is white. It is the first of 255, 65,535 and the largest value of the
    type that no pixel exceeds; for floats it is 1, unless a pixel is above 8. Values outside black … white are clipped;
    NaN is black.

    Args:
        picture: decoded, and deep as :func:`is_deep` says.

    Returns:
        Mode L, or LA if the file makes one level transparent.
    """
    levels = np.asarray(picture)
    bits, signed, white_is_zero = _stored_as(picture)
    if picture.mode == "I" and bits == 32 and not signed:
        levels = levels.view(np.uint32)
    white = _white(picture.mode, levels, bits, signed=signed)
    grey = np.empty(levels.shape, dtype=np.uint8)
    rows = max(1, _BLOCK_PIXELS // picture.width)
    for start in range(0, len(levels), rows):
        with np.errstate(invalid="ignore"):  # converting NaN may warn
            block = np.nan_to_num(levels[start : start + rows].astype(np.float64), nan=0.0) / white
        grey[start : start + rows] = np.rint(np.clip(1 - block if white_is_zero else block, 0, 1) * 255)
    scaled = Image.fromarray(grey)
    key = picture.info.get(_TRANSPARENT)
    if isinstance(key, int):
        scaled.putalpha(Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8)))
    return scaled


def _stored_as(picture: ImageFile.ImageFile) -> tuple[int, bool, bool]:
    """Bits of a pixel, whether they have a sign, and whether 0 is white."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        # Pillow scales a PGM of up to 16 bits to all of 16, and keeps it in 32.
        sixteen = picture.mode != "I" or picture.format == "PPM"
        return (16, False, False) if sixteen else (32, True, False)
    tags = picture.tag_v2
    signed = _first(tags.get(_SAMPLE_FORMAT)) == _SIGNED
    return int(_first(tags.get(_BITS)) or 16), signed, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _first(value: Any) -> Any:  # noqa: ANN401 - of a tag
    return value[0] if isinstance(value, tuple) else value


def _white(mode: str, levels: NDArray[Any], bits: int, *, signed: bool) -> float:
    """The level that is white."""
    if mode.startswith("I;") or (mode == "I" and bits < 32):
        return float(2 ** (bits - signed) - 1)
    brightest = float(np.max(levels, where=np.isfinite(levels), initial=0))
    if mode == "F" and brightest <= _BRIGHTEST_UNIT:
        return 1.0
    largest = brightest if mode == "F" else float(2 ** (32 - signed) - 1)
    return next(step for step in (255.0, 65_535.0, largest) if brightest <= step)
