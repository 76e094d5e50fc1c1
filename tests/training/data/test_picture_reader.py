"""The picture reader: the same pixels for every storage form, and one error class for unreadable files."""

import random
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.data.picture_reader import MAX_PIXELS, MAX_RATIO, open_picture
from training.data.thumbnails import make_thumbnail
from training.embedding.picture_features import read_picture
from training.errors import PictureError

SIDE = 768
"""Of made pictures: three times the 256 pixels to which a picture is shrunk of which 64 × 64 are wanted."""
WANTED = 64 * 64
RAMP = np.tile(np.arange(256, dtype=np.uint8), (40, 1))
Tag = tuple[int, int, int, int]
"""Number, type, count, and value or place of a TIFF's tag."""


def read(path: Path) -> NDArray[np.int64]:
    picture = open_picture(path, WANTED)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(np.int64)


def tiff(
    path: Path, levels: NDArray[np.generic] | bytes, bits: int, *, kind: int = 1, more: Sequence[Tag] = ()
) -> Path:
    """A grey, uncompressed TIFF of 40 rows and 256 columns, little-endian; kind 1 is unsigned, 2 signed, 3 float."""
    content = levels if isinstance(levels, bytes) else levels.tobytes()
    tags: dict[int, Tag] = {
        tag[0]: tag
        for tag in [
            (256, 4, 1, 256), (257, 4, 1, 40), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 1), (278, 4, 1, 40), (279, 4, 1, len(content)), (339, 3, 1, kind), *more,
        ]
    }  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tags[name]) for name in sorted(tags))
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory + bytes(4))
    return path


def png(path: Path, rows: Sequence[bytes], width: int, bits: int, colours: int, transparent: bytes) -> Path:
    """A PNG of any depth, grey (colours 0) or RGB (2), with one transparent colour."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colours, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", content), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts))
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def stripes(dark: tuple[int, int, int], light: tuple[int, int, int]) -> Image.Image:
    """Stripes of one pixel: if pixels are left out to shrink it, one of the colours is gone."""
    pixels = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:, 0::2], pixels[:, 1::2] = dark, light
    return Image.fromarray(pixels)


@pytest.mark.parametrize("extension", ["png", "gif", "bmp", "tif"])
def test_a_palette_changes_nothing(tmp_path: Path, extension: str) -> None:
    picture, flat, indexed = stripes((200, 30, 10), (20, 60, 250)), tmp_path / "rgb.png", tmp_path / f"p.{extension}"
    picture.save(flat)
    picture.quantize(2).save(indexed)
    assert set(read(flat)[..., 0].ravel().tolist()) == {80, 140}  # two of three pixels are of one colour
    np.testing.assert_array_equal(read(indexed), read(flat))
    np.testing.assert_array_equal(read_picture(indexed), read_picture(flat))
    assert make_thumbnail(indexed, 64) == make_thumbnail(flat, 64)


@pytest.mark.parametrize("extension", ["png", "tif", "bmp", "pbm"])
def test_one_bit_changes_nothing(tmp_path: Path, extension: str) -> None:
    picture = stripes((0, 0, 0), (255, 255, 255))
    picture.save(tmp_path / "rgb.png")
    picture.convert("1", dither=Image.Dither.NONE).save(tmp_path / f"one.{extension}")
    np.testing.assert_array_equal(read(tmp_path / f"one.{extension}"), read(tmp_path / "rgb.png"))


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "c.tif"), ("YCbCr", "y.tif"), ("LAB", "l.tif")])
def test_other_colours_are_converted_before_they_are_shrunk(tmp_path: Path, mode: str, name: str) -> None:
    """Stripes of two colours become the mean of their RGB, not the colour of their mean."""
    colours = {"CMYK": [(255, 0, 0, 0), (0, 255, 255, 0)], "YCbCr": [(76, 85, 255), (150, 44, 21)]}
    dark, light = colours.get(mode, [(120, 200, 20), (220, 60, 230)])
    picture = Image.new(mode, (SIDE, SIDE), dark)
    for column in range(0, SIDE, 2):
        picture.paste(light, (column, 0, column + 1, SIDE))
    picture.save(tmp_path / name)
    picture.convert("RGB").save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read(tmp_path / name), read(tmp_path / "rgb.png"))


def test_the_cmyk_of_a_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    assert np.abs(read(tmp_path / "c.jpg") - (255, 0, 0)).max() <= 3


GREY = np.full((SIDE, SIDE), 40, dtype=np.uint8)
CLEAR = np.arange(SIDE) < SIDE // 2
"""Columns that are transparent, and black if one looks past that."""


def halves(mode: str) -> Image.Image:
    alpha = np.where(CLEAR, 0, 255).astype(np.uint8)[None, :].repeat(SIDE, axis=0)
    grey = np.where(CLEAR, 0, GREY).astype(np.uint8)
    return Image.fromarray(np.dstack([grey, grey, grey, alpha])).convert(mode)


def save_palette(path: Path) -> None:
    picture = Image.fromarray(np.where(CLEAR, 0, 1).astype(np.uint8)[None, :].repeat(SIDE, axis=0), "P")
    picture.putpalette([0, 0, 0, 40, 40, 40])
    picture.save(path, transparency=0)


def save_deep_key(path: Path) -> None:
    clear = struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)
    row = b"".join(clear if column else struct.pack(">H", 40 * 257) * 3 for column in CLEAR)
    png(path, [row] * SIDE, SIDE, 16, 2, clear)


def save_deep_grey_key(path: Path) -> None:
    row = b"".join(struct.pack(">H", 77 if column else 40 * 257) for column in CLEAR)
    png(path, [row] * SIDE, SIDE, 16, 0, struct.pack(">H", 77))


def save_four_bits(path: Path) -> None:
    """Levels 5 (85, transparent) and 2 (34)."""
    png(path, [b"\x55" * (SIDE // 4) + b"\x22" * (SIDE // 4)] * SIDE, SIDE, 4, 0, struct.pack(">H", 5))


TRANSPARENT: dict[str, Callable[[Path], object]] = {
    "rgba.png": lambda path: halves("RGBA").save(path),
    "rgba.webp": lambda path: halves("RGBA").save(path, lossless=True),
    "rgba.tif": lambda path: halves("RGBA").save(path),
    "la.png": lambda path: halves("LA").save(path),
    "palette.png": save_palette,
    "palette.gif": save_palette,
    "colour.png": lambda path: halves("RGBA").convert("RGB").save(path, transparency=(0, 0, 0)),
    "grey.png": lambda path: halves("RGBA").convert("L").save(path, transparency=0),
    "four-bits.png": save_four_bits,
    "sixteen-bits.png": save_deep_key,
    "sixteen-bit-grey.png": save_deep_grey_key,
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparency_becomes_white_in_every_storage_form(tmp_path: Path, name: str) -> None:
    TRANSPARENT[name](tmp_path / name)
    found = read(tmp_path / name)
    assert (found[:, :127] == 255).all()
    assert np.abs(found[:, 129:] - 40).max() <= (6 if name == "four-bits.png" else 0)


DEEP: dict[str, Callable[[Path], object]] = {
    "grey16.png": lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path),
    "grey16.tif": lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path),
    "grey16-big-endian.tif": lambda path: Image.fromarray((RAMP.astype(np.uint16) * 257).astype(">u2")).save(path),
    "grey16-packed.tif": lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path, compression="tiff_lzw"),
    "grey16.jp2": lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path),
    "grey16.pgm": lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path),
    "grey12.pgm": lambda path: path.write_bytes(
        b"P5 256 40 4095\n" + np.rint(RAMP * (4_095 / 255)).astype(">u2").tobytes()
    ),
    "white-is-zero.tif": lambda path: tiff(path, (255 - RAMP).astype("<u2") * 257, 16, more=[(262, 3, 1, 0)]),
    "signed16.tif": lambda path: tiff(path, np.rint(RAMP * (32_767 / 255)).astype("<i2"), 16, kind=2),
    "whole32.tif": lambda path: tiff(path, RAMP.astype("<u4") * 0x01010101, 32),
    "signed32.tif": lambda path: tiff(path, np.rint(RAMP * ((2**31 - 1) / 255)).astype("<i4"), 32, kind=2),
    "sixteen-in-32.tif": lambda path: Image.fromarray(RAMP.astype(np.int32) * 257).save(path),
    "eight-in-32.tif": lambda path: Image.fromarray(RAMP.astype(np.int32)).save(path),
    "float1.tif": lambda path: Image.fromarray(RAMP.astype(np.float32) / 255).save(path),
    "float255.tif": lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path),
    "float65535.tif": lambda path: Image.fromarray(RAMP.astype(np.float32) * 257).save(path),
    "float.pfm": lambda path: Image.fromarray(RAMP.astype(np.float32) / 255).save(path),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_scaled_by_their_range(tmp_path: Path, name: str) -> None:
    DEEP[name](tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name), np.repeat(RAMP[..., None], 3, axis=2))


def test_twelve_bits_of_a_tiff_reach_to_white(tmp_path: Path) -> None:
    """Two pixels in three bytes: black, then white."""
    found = read(tiff(tmp_path / "p.tif", b"\x00\x0f\xff" * (128 * 40), 12))
    assert (found[:, 0::2] == 0).all()
    assert (found[:, 1::2] == 255).all()


def test_a_dark_picture_of_sixteen_bits_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 256), 200, dtype=np.uint16)).save(tmp_path / "dark.png")
    Image.fromarray(np.full((40, 256), 200, dtype=np.uint16)).save(tmp_path / "dark.pgm")
    assert read(tmp_path / "dark.png").max() == read(tmp_path / "dark.pgm").max() == 1


def test_values_above_white_and_nan_are_clipped(tmp_path: Path) -> None:
    levels = np.full((40, 256), 0.5, dtype=np.float32)
    levels[:, 0], levels[:, 1], levels[:, 2], levels[:, 3], levels[:, 4] = 1.5, -1, np.nan, np.inf, -np.inf
    Image.fromarray(levels).save(tmp_path / "p.tif")
    assert read(tmp_path / "p.tif")[0, :6, 0].tolist() == [255, 0, 0, 255, 0, 128]


def test_a_large_deep_picture_is_shrunk_as_its_eight_bits_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "8.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "16.png")
    np.testing.assert_array_equal(read(tmp_path / "16.png"), read(tmp_path / "8.png"))
    assert make_thumbnail(tmp_path / "16.png") == make_thumbnail(tmp_path / "8.png")


def test_a_large_picture_is_shrunk_before_it_is_prepared(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (1_000, 500)).save(path)
    assert open_picture(path, 28 * 28).size == (112, 56)


def odd_exif(tag: int, kind: int, count: int, value: int) -> bytes:
    """EXIF that says a quarter turn, and something that no writer should say."""
    entries = sorted([(274, 3, 1, 6), (tag, kind, count, value)])
    directory = struct.pack("<H", 2) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + bytes(range(64))


ODD = {
    "a unit that is a fraction": (296, 5, 1, 38),
    "a size that is a fraction": (256, 5, 1, 38),
    "a maker that is a number": (271, 4, 1, 7),
    "a count that is far too large": (271, 2, 0xFFFFFFFF, 38),
    "a pointer past the end": (0x8769, 4, 1, 0xFFFFFFF0),
    "a type that does not exist": (296, 99, 1, 38),
}


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_exif_is_ignored(tmp_path: Path, odd: str, extension: str) -> None:
    path = tmp_path / f"p.{extension}"
    Image.new("RGB", (40, 20), "teal").save(path, exif=odd_exif(*ODD[odd]))
    assert open_picture(path, WANTED).size == (20, 40)
    assert make_thumbnail(path) is not None


@pytest.mark.parametrize(
    "odd", [(34_665, 6, 1, 0xFFFFFFFF), (34_665, 4, 1, 0xFFFFFFF0), (700, 3, 2, 0), (296, 5, 1, 8), (34_853, 16, 1, 8)]
)
def test_odd_exif_of_a_tiff_is_ignored(tmp_path: Path, odd: Tag) -> None:
    path = tiff(tmp_path / "p.tif", RAMP, 8, more=[(274, 3, 1, 6), odd])
    assert open_picture(path, WANTED).size == (40, 256)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_tiff_is_turned_once(tmp_path: Path, turn: int, compression: str | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = Image.fromarray(np.repeat(np.repeat([[0, 80], [160, 240]], 20, axis=0), 32, axis=1).astype(np.uint8))
    picture.save(tmp_path / "p.tif", exif=exif, compression=compression)
    found = read(tmp_path / "p.tif")[..., 0]
    shown = np.rint([[found[2, 2], found[2, -3]], [found[-3, 2], found[-3, -3]]]).astype(int) // 40 * 40
    corners = {
        1: [[0, 80], [160, 240]], 2: [[80, 0], [240, 160]], 3: [[240, 160], [80, 0]], 4: [[160, 240], [0, 80]],
        5: [[0, 160], [80, 240]], 6: [[160, 0], [240, 80]], 7: [[240, 80], [160, 0]], 8: [[80, 240], [0, 160]],
    }  # fmt: skip
    assert found.shape == ((40, 64) if turn < 5 else (64, 40))
    assert shown.tolist() == corners[turn]


@pytest.mark.parametrize("size", [(20_000, 50), (50, 20_000), (201, 1)])
def test_pictures_too_long_for_the_image_processors_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("1", size).save(tmp_path / "long.png")
    with pytest.raises(PictureError, match=f"at most 200 times the other, got {size[0]} × {size[1]}; crop it"):
        open_picture(tmp_path / "long.png", 1 << 20)


@pytest.mark.parametrize("size", [(250 * 190, 250), (19_900, 100), (200, 1)])
@pytest.mark.parametrize("pixels", [28 * 28, 62 * 62, 1 << 20])
def test_shrinking_makes_no_side_longer_than_the_rule_allows(
    tmp_path: Path, size: tuple[int, int], pixels: int
) -> None:
    Image.new("1", size).save(tmp_path / "long.png")
    width, height = open_picture(tmp_path / "long.png", pixels).size
    assert width <= MAX_RATIO * height


def test_more_than_a_hundred_megapixels_are_refused_undecoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 11_000, 10_000, 8, 2, 0, 0, 0)
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"no pixels"))
    with pytest.raises(PictureError, match=f"at most {MAX_PIXELS:,} pixels, got 11000 × 10000"):
        open_picture(path, WANTED)


def boxed(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I", 8 + len(content)) + kind + content


BROKEN = {
    "nothing": b"",
    "text": b"no picture",
    "a gif without pixels": b"GIF89a",
    "an avif without an item": boxed(b"ftyp", b"avif\0\0\0\0avifmif1"),
    "a dds of an unknown kind": b"DDS " + struct.pack("<IIII", 124, 0x1007, 8, 8) + bytes(56)
    + struct.pack("<II", 32, 4) + b"XXXX" + bytes(40),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_a_file_that_is_no_picture_raises_one_error_class(tmp_path: Path, broken: str) -> None:
    (tmp_path / "p").write_bytes(BROKEN[broken])
    with pytest.raises(PictureError) as caught:
        open_picture(tmp_path / "p", WANTED)
    assert 0 < len(str(caught.value)) <= 200
    assert make_thumbnail(tmp_path / "p") is None


@pytest.mark.parametrize(
    "error", [struct.error, TypeError, RuntimeError, NotImplementedError, RecursionError, MemoryError, SystemError]
)
def test_every_decoder_error_becomes_that_error_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    path = tmp_path / "p.png"
    Image.new("RGB", (8, 8)).save(path)

    def fail(_picture: object) -> None:
        raise error("of\nthe decoder")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(PictureError, match=f"^{error.__name__}: of the decoder$"):
        open_picture(path, WANTED)


def seeds(directory: Path) -> list[bytes]:
    """Small files of every format and mode that Pillow writes here, most with EXIF."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    modes = ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr", "F"]
    pictures = [Image.fromarray(noise).convert(mode) for mode in modes]
    pictures.append(Image.fromarray(noise[..., 0].astype(np.uint16) * 257))
    exif, made = Image.Exif(), []
    exif[0x0112], exif[0x010F] = 6, "a maker"
    Image.init()
    for kind in sorted(Image.SAVE):
        for picture in pictures:
            for options in ({"exif": exif}, {}):
                path = directory / "seed"
                try:
                    picture.save(path, kind, **options)
                except Exception:  # noqa: BLE001 - this format has no such mode, or needs what is not here
                    continue
                made.append(path.read_bytes())
                break
    return [content for content in made if content]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Cut short, or with other bytes, most of them where headers are."""
    if rng.randrange(3) == 0:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        changed[rng.randrange(min(len(content), rng.choice((64, 256, 1 << 20))))] = rng.choice(
            (0, 127, 128, 255, rng.randrange(256))
        )
    return bytes(changed)


@pytest.mark.slow
def test_any_damage_gives_a_picture_or_the_one_error(tmp_path: Path) -> None:
    rng, path, read_anyway = random.Random(15), tmp_path / "p", 0
    made = seeds(tmp_path)
    assert len(made) > 80
    for content in made:
        for _ in range(40):
            path.write_bytes(damaged(content, rng))
            try:
                assert open_picture(path, WANTED).mode == "RGB"
                read_anyway += 1
            except PictureError:
                pass
    assert 0.1 < read_anyway / (40 * len(made)) < 0.9
