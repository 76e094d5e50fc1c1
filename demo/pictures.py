"""Draws the pictures of the demo items: a silhouette in a colour and a pattern, lit from the left.

A picture is drawn at twice the size and reduced, so edges are smooth. Only category, colour, shape and pattern carry
information; the tint of the background, the phase of the pattern and a slight shift are random.
"""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from demo.silhouettes import FLOOR, Part, Role, parts_of

SIDE = 160
"""Width and height of a picture in pixels."""

_SCALE = 2
_CANVAS = SIDE * _SCALE
_QUALITY = 88

Rgb = tuple[int, int, int]
Plane = NDArray[np.float32]

# Each colour with the tone of its patterns.
PALETTE: dict[str, tuple[Rgb, Rgb]] = {
    "terracotta": ((199, 91, 57), (244, 205, 178)),
    "mustard": ((222, 168, 40), (255, 240, 196)),
    "sage": ((139, 162, 116), (232, 238, 217)),
    "teal": ((22, 128, 128), (180, 228, 220)),
    "navy": ((40, 62, 120), (196, 208, 238)),
    "plum": ((122, 52, 104), (232, 196, 222)),
    "blush": ((236, 160, 164), (255, 233, 229)),
    "charcoal": ((66, 68, 74), (196, 198, 202)),
    "ivory": ((241, 231, 208), (176, 152, 116)),
    "sky": ((116, 180, 222), (230, 244, 252)),
}
_BACKGROUNDS: tuple[tuple[Rgb, Rgb], ...] = (
    ((238, 234, 228), (222, 215, 206)),
    ((232, 235, 236), (212, 217, 219)),
    ((240, 236, 238), (224, 217, 220)),
    ((235, 236, 229), (216, 218, 208)),
)
_PAINTS: dict[Role, Rgb] = {
    Role.WOOD: (176, 128, 84),
    Role.METAL: (172, 160, 140),
    Role.LEAF: (92, 138, 88),
    Role.LIGHT: (255, 226, 150),
    Role.PAPER: (250, 248, 242),
    Role.INK: (58, 56, 58),
    Role.WAX: (250, 244, 228),
}


def draw_picture(category: str, colour: str, shape: str, pattern: str, rng: np.random.Generator) -> Image.Image:
    """Draw one product.

    Args:
        category: of the item.
        colour: a key of :data:`PALETTE`.
        shape: its silhouette.
        pattern: plain, stripes, dots, checks, waves or dipped.
        rng: for the random details.

    Returns:
        A 160 × 160 RGB picture.
    """
    canvas = _background(rng)
    parts = parts_of(category, shape)
    shift = np.array([rng.uniform(-0.015, 0.015), 0.0])
    parts = [replace(part, outline=part.outline + shift) for part in parts]
    _shadow(canvas, parts, hanging=category == "clock")
    phase = float(rng.uniform(0.0, 0.2))
    for part in parts:
        mask, box = _mask(part.outline)
        if mask is not None:
            paint = _paint(part, mask, box, colour, pattern, phase)
            left, top, right, bottom = box
            area = canvas[top:bottom, left:right]
            area += mask[..., None] * (paint - area)
    pixels = np.clip(canvas, 0, 255).round().astype(np.uint8)
    return Image.fromarray(pixels).reduce(_SCALE)


def encode(picture: Image.Image) -> bytes:
    """The picture as a JPEG file."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY, subsampling=0, optimize=True)
    return stream.getvalue()


def _background(rng: np.random.Generator) -> Plane:
    """Wall and table, melting into each other, with a soft light from the upper left."""
    wall, table = _BACKGROUNDS[int(rng.integers(len(_BACKGROUNDS)))]
    y, x = np.mgrid[0:_CANVAS, 0:_CANVAS].astype(np.float32) / _CANVAS
    step = 1.0 / (1.0 + np.exp(-(y - 0.70) * 26.0))
    light = 1.03 - 0.10 * ((x - 0.38) ** 2 + (y - 0.34) ** 2)
    blend = np.array(wall, np.float32) * (1 - step[..., None]) + np.array(table, np.float32) * step[..., None]
    return np.asarray(blend * light[..., None], dtype=np.float32)


def _shadow(canvas: Plane, parts: list[Part], *, hanging: bool) -> None:
    """Darken the table under a standing product, or the wall behind a hanging one."""
    small = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(small)
    corners = np.concatenate([part.outline for part in parts])
    if hanging:
        pen.polygon([(x * SIDE + 5, y * SIDE + 6) for x, y in parts[0].outline], fill=110)
    else:
        low = corners[corners[:, 1] > FLOOR - 0.10]
        left, right = float(low[:, 0].min()), float(low[:, 0].max())
        wide = (right - left) / 2
        pen.ellipse(
            [(left - 0.02) * SIDE, (FLOOR - 0.022) * SIDE, (right + wide * 0.55) * SIDE, (FLOOR + 0.042) * SIDE],
            fill=120,
        )
    blurred = small.filter(ImageFilter.GaussianBlur(5)).resize((_CANVAS, _CANVAS), Image.Resampling.BILINEAR)
    canvas *= 1.0 - 0.75 * np.asarray(blurred, np.float32)[..., None] / 255.0


def _mask(outline: NDArray[np.float64]) -> tuple[Plane | None, tuple[int, int, int, int]]:
    """Coverage (height, width) 0 … 1 of a polygon within its box on the canvas, and the box."""
    low = np.maximum(np.floor(outline.min(axis=0) * _CANVAS).astype(int) - 1, 0)
    high = np.minimum(np.ceil(outline.max(axis=0) * _CANVAS).astype(int) + 1, _CANVAS)
    box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    size = (box[2] - box[0], box[3] - box[1])
    if min(size) < 1:
        return None, box
    drawn = Image.new("L", (size[0] * 2, size[1] * 2))
    points = ((outline * _CANVAS - low) * 2).ravel().tolist()
    ImageDraw.Draw(drawn).polygon(points, fill=255)
    return np.asarray(drawn.reduce(2), np.float32) / 255.0, box


def _paint(
    part: Part, mask: Plane, box: tuple[int, int, int, int], colour: str, pattern: str, phase: float
) -> NDArray[np.float32]:
    """(height, width, 3) paint of a part."""
    base, tone = (np.array(rgb, np.float32) for rgb in PALETTE[colour])
    around, y = _wrapped(mask, box, turned=part.turned)
    if part.role is Role.BODY:
        top, bottom = float(part.outline[:, 1].min()), float(part.outline[:, 1].max())
        cover = PATTERNS[pattern](around, y, phase, (y - top) / max(bottom - top, 1e-6))[..., None]
        flat = base * (1 - cover) + tone * cover
    elif part.role in (Role.TRIM, Role.INSIDE):
        flat = np.broadcast_to(base * (0.80 if part.role is Role.TRIM else 0.45), (*mask.shape, 3))
    else:
        flat = np.broadcast_to(np.array(_PAINTS[part.role], np.float32) * part.tone, (*mask.shape, 3))
    if part.role in (Role.LIGHT, Role.PAPER, Role.INK):
        return np.asarray(flat, np.float32)
    return np.asarray(flat * _light(part, around, y)[..., None] + _gloss(part, around)[..., None], np.float32)


def _wrapped(mask: Plane, box: tuple[int, int, int, int], *, turned: bool) -> tuple[Plane, Plane]:
    """Pattern coordinates of each pixel: the way around or across (in units of the canvas) and the height y.

    On a turned body the way around is the angle at which the line of sight meets it times its radius.
    """
    height, width = mask.shape
    rows = (box[1] + np.arange(height, dtype=np.float32)[:, None]) / _CANVAS
    y: Plane = np.asarray(np.broadcast_to(rows, mask.shape), np.float32)
    x = (box[0] + np.arange(width, dtype=np.float32)[None, :]) / _CANVAS
    inside = mask > 0.5
    first = inside.argmax(axis=1)
    last = width - 1 - inside[:, ::-1].argmax(axis=1)
    middle = (box[0] + (first + last)[:, None] / 2) / _CANVAS
    if not turned:
        return np.asarray(np.broadcast_to(x - 0.5, mask.shape), np.float32), y
    radius = np.maximum((last - first)[:, None] / 2 / _CANVAS, 1e-3)
    angle = np.arcsin(np.clip((x - middle) / radius, -1.0, 1.0))
    widest = float(radius.max())
    bent = y - 0.10 * widest * np.cos(angle)
    return np.asarray(angle * widest * 0.8, np.float32), np.asarray(bent, np.float32)


def _light(part: Part, around: Plane, y: Plane) -> Plane:
    if part.turned:
        across = around / max(float(np.abs(around).max()), 1e-6)
        return np.asarray(1.05 - 0.34 * np.clip(across + 0.25, 0, None) ** 2 - 0.30 * np.clip(-across - 0.45, 0, None))
    return np.asarray(1.04 - 0.16 * (around + 0.3) - 0.10 * (y - 0.3))


def _gloss(part: Part, around: Plane) -> Plane:
    if not part.turned:
        return np.zeros_like(around)
    across = around / max(float(np.abs(around).max()), 1e-6)
    return np.asarray(26.0 * np.exp(-(((across + 0.42) / 0.13) ** 2)), np.float32)


def _soft(signed: Plane) -> Plane:
    """Coverage of the area where ``signed`` (in units of the canvas) is positive, with an edge one pixel wide."""
    return np.asarray(np.clip(signed * _CANVAS * 0.7 + 0.5, 0.0, 1.0), np.float32)


def _plain(around: Plane, _y: Plane, _phase: float, _height: Plane) -> Plane:
    return np.zeros_like(around)


def _stripes(_around: Plane, y: Plane, phase: float, _height: Plane) -> Plane:
    period = 0.135
    return _soft(np.abs((y / period + phase) % 1.0 - 0.5) * period - period * 0.27)


def _dots(around: Plane, y: Plane, phase: float, _height: Plane) -> Plane:
    pitch = 0.150
    row = np.floor(y / pitch + phase)
    dx = ((around / pitch + phase + 0.5 * (row % 2)) % 1.0 - 0.5) * pitch
    dy = ((y / pitch + phase) % 1.0 - 0.5) * pitch
    return _soft(pitch * 0.33 - np.hypot(dx, dy))


def _checks(around: Plane, y: Plane, phase: float, _height: Plane) -> Plane:
    cell = 0.110
    product = np.sin(np.pi * (around / cell + phase)) * np.sin(np.pi * (y / cell + phase))
    return _soft(product * cell)


def _waves(around: Plane, y: Plane, phase: float, _height: Plane) -> Plane:
    period, swing = 0.17, 0.050
    bent = y + swing * np.sin(2 * np.pi * (around / 0.20 + phase))
    return _soft(np.abs((bent / period + phase) % 1.0 - 0.5) * period - period * 0.30)


def _dipped(_around: Plane, y: Plane, _phase: float, height: Plane) -> Plane:
    return _soft((height - 0.5) * (float(np.ptp(y)) or 1.0))


PATTERNS: dict[str, Callable[[Plane, Plane, float, Plane], Plane]] = {
    "plain": _plain,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "waves": _waves,
    "dipped": _dipped,
}
