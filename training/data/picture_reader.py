"""Opens pictures as 8-bit RGB; every other module reads pictures through this one.

The steps: decode the first frame; scale to 8 bits; rotate by the EXIF orientation, if it is valid; convert to RGB, or
RGBA if there is transparency; shrink; compose over white.
"""

import functools
import math
import re
import warnings
from typing import BinaryIO

from PIL import ExifTags, Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from training.data.deep_pictures import eight_bit_grey, is_deep
from training.data.stored.stored_pictures import PictureFile
from training.errors import DatasetError, PictureError

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before decoding."""
MAX_RATIO = 200
"""Longer or narrower pictures are refused, because image processors of the Qwen-VL family refuse them."""

MAX_SCANS = 100
"""A JPEG of more scans is refused before decoding, as libtiff does: the shortest takes the time of all pixels."""

_LEAST_SIDE = 64
_REASON_CHARACTERS = 200
_PILLOW = r"PIL\."
# EPS and WMF are decoded by Ghostscript or by Windows, which runs what a file says; IPTC records may hold either.
_OTHER_PROGRAMS = {"EPS", "WMF", "IPTC"}
_JPEG, _TEXTURE = {"JPEG", "MPO"}, "BLP"
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_SCAN, _END, _BARE = 0xDA, 0xD9, {0x01, 0xD8, *range(0xD0, 0xD8)}  # markers; the bare ones have no length
_TRANSPARENT = "transparency"
_ALWAYS_READ_ALIKE = {"RGB", "RGBA", "L", "LA"}
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # of 255, between one level and the next
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(path: PictureFile, pixels: int) -> Image.Image:
    """A picture as upright RGB over white, shrunk if it is much larger than needed.

    Args:
        path: any format that Pillow decodes without other programs; the first frame of an animation.
        pixels: most pixels that the caller needs; a picture of more than 16 times as many is shrunk.

    Raises:
        PictureError: the file cannot be decoded, has more than 100 megapixels or scans, or one side is more than 200
            times as long as the other.
        DatasetError: the object store with the picture does not answer.
    """
    _silence_pillow()
    try:
        # Given a file name, Pillow memory-maps some formats and gives rotated ones a wrong shape.
        with path.open("rb") as file, Image.open(file, formats=_formats()) as opened:
            _check_size(opened)
            _check_scans(opened, file)
            side = longest_side(pixels)
            picture = _shrunk(_in_colour(_upright(opened, side)), side)
        if picture.mode == "RGB":
            return picture
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    except (PictureError, DatasetError):
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"{UnidentifiedImageError.__name__}: cannot identify image file {str(path)!r}") from error
    except Exception as error:  # decoders raise any error on a damaged file: struct.error, RuntimeError, …
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PictureError(reason[:_REASON_CHARACTERS]) from error


def longest_side(pixels: int) -> int:
    """The side in pixels to which the longer side of a larger picture is shrunk.

    Args:
        pixels: most pixels that the caller needs.
    """
    return max(_LEAST_SIDE, round(4 * math.sqrt(pixels)))


def decoding_has_changed(file: BinaryIO) -> bool:
    """Whether an earlier version of the reader decoded a picture differently or refused it.

    Args:
        file: of the picture; only the header is read.
    """
    _silence_pillow()
    try:
        with Image.open(file, formats=_formats()) as opened:
            plain = opened.mode in _ALWAYS_READ_ALIKE and _TRANSPARENT not in opened.info
            return not plain or opened.format == "TIFF"
    except Exception:  # noqa: BLE001 - the earlier version could not open it either
        return False


@functools.cache
def _formats() -> tuple[str, ...]:
    """Permitted formats, the most frequent first."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _OTHER_PROGRAMS)


def _check_size(picture: Image.Image) -> None:
    short, long = sorted(picture.size)
    size = f"got {picture.width} × {picture.height}"
    if short * long > MAX_PIXELS:
        raise PictureError(f"a picture may have at most {MAX_PIXELS:,} pixels, {size}; make it smaller")
    if short < 1 or long > MAX_RATIO * short:
        raise PictureError(f"one side of a picture may be at most {MAX_RATIO} times the other, {size}; crop it")


def _check_scans(picture: Image.Image, file: BinaryIO) -> None:
    """Refuse a JPEG that takes minutes: a scan of ten bytes makes the decoder pass over all pixels once more."""
    if picture.format not in {*_JPEG, _TEXTURE}:
        return
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    # A texture has its JPEG in two pieces; pixels never have the bytes of a marker.
    scans = _scans(content) if picture.format in _JPEG else content.count(bytes([0xFF, _SCAN]))
    if scans > MAX_SCANS:
        raise PictureError(f"a JPEG may have at most {MAX_SCANS} scans; save it anew")


def _scans(content: bytes) -> int:
    """Number of scans of a JPEG up to its end; what metadata hold and what follows the end does not count."""
    scans, place = 0, 0
    while (found := _MARKER.search(content, place)) is not None:
        marker, place = found[1][0], found.end()
        if marker == _END:
            break
        scans += marker == _SCAN
        if marker not in _BARE:
            place += int.from_bytes(content[place : place + 2], "big")
    return scans


def _upright(opened: ImageFile.ImageFile, side: int) -> Image.Image:
    """Decode a picture to 8 bits and rotate it by its EXIF orientation; invalid EXIF is ignored.

    Args:
        opened: not decoded yet.
        side: a JPEG may be decoded at a reduced size of at least this many pixels a side.
    """
    opened.draft("RGB", (side, side))
    if isinstance(opened, PngImagePlugin.PngImageFile):
        _scale_transparent_colour(opened)
    if isinstance(opened, TiffImagePlugin.TiffImageFile):
        # After decoding a TIFF, Pillow reads all of its EXIF and fails if any of it is invalid.
        turned = _orientation(opened)
        opened.load_end = lambda: None  # type: ignore[method-assign]  # of this picture only
        opened.load()
    else:
        opened.load()
        turned = _orientation(opened)
    picture = eight_bit_grey(opened) if is_deep(opened) else opened
    picture = picture.copy() if turned is None else picture.transpose(turned)
    _check_size(picture)  # a few formats know their size only after decoding
    return picture


def _orientation(opened: ImageFile.ImageFile) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - invalid EXIF raises any error
        return None


def _scale_transparent_colour(opened: PngImagePlugin.PngImageFile) -> None:
    """Scale the transparent colour of a PNG from the bit depth of the file to 8 bits."""
    colour, stored = opened.info.get(_TRANSPARENT), opened.tile[0].args if opened.tile else None
    if isinstance(colour, tuple) and stored == "RGB;16B":
        opened.info[_TRANSPARENT] = tuple(part >> 8 for part in colour)
    elif isinstance(colour, int) and stored in _GREY_STEPS:
        opened.info[_TRANSPARENT] = colour * _GREY_STEPS[stored]


def _in_colour(picture: Image.Image) -> Image.Image:
    """Convert to RGB, or RGBA if there may be transparency: Pillow averages these when shrinking, other modes not."""
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    picture.thumbnail((side, side), Image.Resampling.BOX)
    least = -(-max(picture.size) // MAX_RATIO)  # rounding must not break the rule on the ratio
    if min(picture.size) < least:
        return picture.resize((max(picture.width, least), max(picture.height, least)), Image.Resampling.BOX)
    return picture


def _silence_pillow() -> None:
    """Ignore warnings about odd but readable files for good: removing the filter is not thread-safe."""
    if ("ignore", None, Warning, re.compile(_PILLOW), 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW)
