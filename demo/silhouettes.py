"""Outlines of the demo items, as polygons in the unit square.

x points right and y down, both 0 … 1; an item stands on y = 0.88. It is a list of parts, painted in order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

FLOOR = 0.88
_WIDEST = 0.78
_TALLEST = 0.76
_CENTRE = 0.5
_STEPS = 40

Polygon = NDArray[np.float64]
"""(corners, 2) float64: x and y of each corner."""


class Role(Enum):
    """Material of a part, which determines its paint."""

    BODY = "the product's colour and pattern"
    TRIM = "a darker shade of the colour"
    INSIDE = "the dark inside of a vessel"
    WOOD = "wood"
    METAL = "brushed metal"
    LEAF = "leaves"
    LIGHT = "glow and flame"
    PAPER = "an off-white face"
    INK = "hands and wick"
    WAX = "candle wax"


@dataclass(frozen=True)
class Part:
    """One painted area.

    Attributes:
        role: its paint.
        outline: its corners.
        turned: shade and pattern wrap around it as around a turned body, rather than lie flat.
        tone: factor on its brightness.
    """

    role: Role
    outline: Polygon
    turned: bool = False
    tone: float = 1.0


@dataclass(frozen=True)
class Form:
    """How a shape bends a turned body.

    Attributes:
        width: factor on the width.
        height: factor on the height.
        profile: half width from top to bottom, each 0 … 1.
        smooth: whether the profile is rounded between its points.
    """

    width: float
    height: float
    profile: tuple[float, ...]
    smooth: bool


FORMS: dict[str, Form] = {
    "round": Form(1.06, 0.92, (0.60, 0.88, 1.0, 0.92, 0.58), smooth=True),
    "angular": Form(1.06, 1.0, (0.62, 1.0, 0.62), smooth=False),
    "slender": Form(0.60, 1.26, (0.94, 1.0, 1.0, 1.0, 0.94), smooth=True),
    "flared": Form(1.10, 0.98, (1.0, 0.50), smooth=False),
}


def parts_of(category: str, shape: str) -> list[Part]:
    """The parts of a product.

    Args:
        category: a value of ``ATTRIBUTES["category"]``.
        shape: a value of ``ATTRIBUTES["shape"]``.

    Returns:
        The parts, centred and scaled so that the product fills the picture in one direction.
    """
    parts = _DRAWINGS[category](FORMS[shape], shape)
    corners = np.concatenate([part.outline for part in parts])
    low, high = corners.min(axis=0), corners.max(axis=0)
    scale = min(_WIDEST / (high[0] - low[0]), _TALLEST / (high[1] - low[1]))
    foot = np.array([(low[0] + high[0]) / 2, high[1]])
    return [replace(part, outline=(part.outline - foot) * scale + [_CENTRE, FLOOR]) for part in parts]


def _profile(form: Form, profile: Sequence[float] | None = None) -> NDArray[np.float64]:
    """(_STEPS,) half widths from top to bottom."""
    points = np.array(form.profile if profile is None else profile)
    at = np.linspace(0.0, 1.0, _STEPS)
    knots = np.linspace(0.0, 1.0, len(points))
    if not form.smooth:
        return np.asarray(np.interp(at, knots, points))
    # A cubic through the points with slopes of their neighbours (Catmull–Rom).
    slopes = np.gradient(points, knots)
    place = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(points) - 2)
    step = knots[1] - knots[0]
    t = (at - knots[place]) / step
    left, right = points[place], points[place + 1]
    rise = (2 * t**3 - 3 * t**2 + 1) * left + (-2 * t**3 + 3 * t**2) * right
    bend = (t**3 - 2 * t**2 + t) * slopes[place] + (t**3 - t**2) * slopes[place + 1]
    return np.asarray(rise + step * bend)


def _ellipse(x: float, y: float, rx: float, ry: float) -> Polygon:
    angle = np.linspace(0.0, 2 * np.pi, 64, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _turned(half: NDArray[np.float64], top: float, bottom: float, *, x: float = _CENTRE, tilt: float = 0.14) -> Polygon:
    """Outline of a turned body with half widths ``half`` from ``top`` to ``bottom``, seen slightly from above."""
    y = np.linspace(top, bottom, len(half))
    right = np.stack([x + half, y], axis=1)
    angle = np.linspace(0.0, np.pi, 24)
    base = np.stack([x + half[-1] * np.cos(angle), bottom + half[-1] * tilt * np.sin(angle)], axis=1)
    lid = np.stack([x - half[0] * np.cos(angle), top - half[0] * tilt * np.sin(angle)], axis=1)
    left = right[::-1] * [-1, 1] + [2 * x, 0]
    return np.concatenate([right, base, left, lid])


def _ring(x: float, y: float, rx: float, ry: float, thick: float, start: float, end: float) -> Polygon:
    """A bent bar: part of an elliptic ring, angles in degrees clockwise from the right."""
    angle = np.radians(np.linspace(start, end, 40))
    outer = np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)
    inner = np.stack([x + (rx - thick) * np.cos(angle), y + (ry - thick) * np.sin(angle)], axis=1)
    return np.concatenate([outer, inner[::-1]])


def _bar(x0: float, y0: float, x1: float, y1: float, w0: float, w1: float | None = None) -> Polygon:
    """A straight bar from one point to another, ``w0`` wide at its start and ``w1`` at its end."""
    end = w0 if w1 is None else w1
    along = np.array([x1 - x0, y1 - y0])
    across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-9) / 2
    start, stop = np.array([x0, y0]), np.array([x1, y1])
    return np.array([start + across * w0, stop + across * end, stop - across * end, start - across * w0])


def _vessel(form: Form, width: float, height: float, *, profile: Sequence[float] | None = None) -> list[Part]:
    """An open turned body on the floor: body, rim and inside."""
    half = _profile(form, profile) * width / 2 * form.width
    tall = height * form.height
    bottom = FLOOR - half[-1] * 0.14
    top = bottom - tall
    rim = float(half[0])
    return [
        Part(Role.BODY, _turned(half, top, bottom), turned=True),
        Part(Role.TRIM, _ellipse(_CENTRE, top, rim, rim * 0.14)),
        Part(Role.INSIDE, _ellipse(_CENTRE, top + rim * 0.012, rim * 0.90, rim * 0.105)),
    ]


def _extent(parts: list[Part]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the first part."""
    outline = parts[0].outline
    low, high = outline.min(axis=0), outline.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _mug(form: Form, _shape: str) -> list[Part]:
    parts = _vessel(form, 0.42, 0.44)
    _, top, right, bottom = _extent(parts)
    handle = _handle(parts[0], right + 0.10, top + (bottom - top) * 0.5, (bottom - top) * 0.28)
    return [handle, *parts]


def _handle(body: Part, right: float, y: float, half: float) -> Part:
    """A bent handle behind a body: from ``y − half`` to ``y + half``, as far as ``right``."""
    near = body.outline[np.abs(body.outline[:, 1] - (y + half * 0.9)).argsort()[:8]]
    x = float(near[:, 0].max()) - 0.02
    return Part(Role.TRIM, _ring(x, y, right - x, half, 0.038, -92, 92))


def _teapot(form: Form, _shape: str) -> list[Part]:
    parts = _vessel(form, 0.46, 0.34)[:2]
    left, top, right, bottom = _extent(parts)
    tall, rim = bottom - top, float(np.ptp(parts[1].outline[:, 0])) / 2
    y = float(parts[1].outline[:, 1].mean())
    spout = np.array(
        [[left + 0.07, top + tall * 0.78], [left - 0.03, top + tall * 0.48], [left - 0.13, top + tall * 0.14],
         [left - 0.085, top + tall * 0.12], [left + 0.02, top + tall * 0.36], [left + 0.08, top + tall * 0.45]]
    )  # fmt: skip
    handle = _handle(parts[0], right + 0.11, top + tall * 0.52, tall * 0.32)
    lid = _turned(np.array([0.25, 0.62, 0.82, 0.92]) * rim, y - 0.05, y, tilt=0.1)
    knob = _ellipse(_CENTRE, y - 0.085, 0.034, 0.034)
    return [Part(Role.TRIM, spout), handle, *parts, Part(Role.TRIM, knob), Part(Role.BODY, lid, True)]


def _bowl(form: Form, shape: str) -> list[Part]:
    profile = {
        "round": (1.0, 0.98, 0.88, 0.68, 0.40),
        "angular": (1.0, 0.92, 0.45),
        "slender": (0.98, 0.99, 0.96, 0.86, 0.55),
        "flared": (1.0, 0.30),
    }[shape]
    width, height = (0.60, 0.24) if shape != "slender" else (0.80, 0.30)
    return _vessel(form, width, height, profile=profile)


def _vase(form: Form, shape: str) -> list[Part]:
    profile = {
        "round": (0.34, 0.30, 0.62, 0.98, 1.0, 0.72, 0.44),
        "angular": (0.40, 0.32, 1.0, 0.42),
        "slender": (0.72, 0.62, 0.80, 1.0, 0.96, 0.80),
        "flared": (1.0, 0.26, 0.56),
    }[shape]
    return _vessel(form, 0.44, 0.56 if shape != "slender" else 0.50, profile=profile)


def _planter(form: Form, _shape: str) -> list[Part]:
    parts = _vessel(form, 0.46, 0.30 if form.height <= 1 else 0.28)
    y = float(parts[1].outline[:, 1].mean())
    rim = float(np.ptp(parts[1].outline[:, 0])) / 2
    leaves = []
    fan = ((-0.62, 0.19, 0.80), (0.62, 0.19, 0.76), (-0.34, 0.23, 0.95), (0.34, 0.24, 0.90), (0.0, 0.26, 1.08))
    for lean, reach, tone in fan:
        tip = (_CENTRE + lean * 0.34, y - reach * (1 - 0.25 * abs(lean)))
        leaves.append(Part(Role.LEAF, _leaf((_CENTRE + lean * rim * 0.4, y + 0.01), tip, 0.055), tone=tone))
    return [*parts, *leaves]


def _leaf(root: tuple[float, float], tip: tuple[float, float], half: float) -> Polygon:
    t = np.linspace(0.0, 1.0, 20)
    width = half * np.sin(np.pi * t**0.8)
    line = np.array(root) + t[:, None] * (np.array(tip) - np.array(root))
    along = np.array(tip) - np.array(root)
    across = np.array([-along[1], along[0]]) / np.hypot(*along)
    return np.concatenate([line + across * width[:, None], (line - across * width[:, None])[::-1]])


def _lamp(form: Form, shape: str) -> list[Part]:
    profile = {"flared": (0.45, 1.0), "slender": (0.9, 1.0)}.get(shape, form.profile)
    half = _profile(form, profile) * 0.25 * (form.width if shape != "slender" else 0.66)
    top, tall = 0.16 if shape == "slender" else 0.19, 0.33 * min(form.height, 1.15)
    glow = Part(Role.LIGHT, _ellipse(_CENTRE, top + tall, float(half[-1]) * 0.93, float(half[-1]) * 0.13))
    return [
        Part(Role.METAL, _bar(_CENTRE, top + tall, _CENTRE, FLOOR - 0.02, 0.026)),
        Part(Role.METAL, _turned(np.array([0.05, 0.12, 0.13]), FLOOR - 0.045, FLOOR - 0.018), turned=True),
        Part(Role.BODY, _turned(half, top, top + tall), turned=True),
        glow,
    ]


def _clock(_form: Form, shape: str) -> list[Part]:
    y = 0.52
    angle = np.radians(np.arange(8) * 45 + 22.5)
    outline = {
        "round": _ellipse(_CENTRE, y, 0.31, 0.31),
        "angular": np.stack([_CENTRE + 0.33 * np.cos(angle), y + 0.33 * np.sin(angle)], axis=1),
        "slender": _ellipse(_CENTRE, y, 0.20, 0.34),
        "flared": np.array([[0.17, 0.24], [0.83, 0.24], [0.68, 0.82], [0.32, 0.82]]),
    }[shape]
    face = 0.125 if shape == "slender" else 0.165
    return [
        Part(Role.BODY, outline),
        Part(Role.TRIM, _ellipse(_CENTRE, y, face + 0.014, face + 0.014)),
        Part(Role.PAPER, _ellipse(_CENTRE, y, face, face)),
        Part(Role.INK, _bar(_CENTRE, y, _CENTRE + face * 0.1, y - face * 0.80, 0.016, 0.010)),
        Part(Role.INK, _bar(_CENTRE, y, _CENTRE + face * 0.55, y + face * 0.16, 0.020, 0.014)),
        Part(Role.INK, _ellipse(_CENTRE, y, 0.018, 0.018)),
    ]


def _chair(_form: Form, shape: str) -> list[Part]:
    seat_y, width = 0.56, {"slender": 0.17, "flared": 0.23}.get(shape, 0.22)
    back = {
        "round": _ellipse(_CENTRE, 0.345, 0.24, 0.20),
        "angular": np.array(
            [[0.34, 0.14], [0.66, 0.14], [0.74, 0.26], [0.74, 0.50], [0.26, 0.50], [0.26, 0.26]], dtype=float
        ),
        "slender": _turned(np.full(20, 0.135), 0.10, 0.52, tilt=0.5),
        "flared": np.array([[0.20, 0.14], [0.80, 0.14], [0.66, 0.50], [0.34, 0.50]]),
    }[shape]
    seat = np.array(
        [[_CENTRE - width, seat_y - 0.05], [_CENTRE + width, seat_y - 0.05], [_CENTRE + width + 0.05, seat_y + 0.055],
         [_CENTRE - width - 0.05, seat_y + 0.055]]
    )  # fmt: skip
    legs = [
        Part(
            Role.WOOD,
            _bar(_CENTRE + side * (width - inset), seat_y, _CENTRE + side * (width + lean), foot, 0.034, 0.022),
        )
        for side in (-1, 1)
        for inset, lean, foot in ((0.05, -0.02, FLOOR - 0.05), (-0.01, 0.06, FLOOR))
    ]
    posts = [Part(Role.WOOD, _bar(_CENTRE + s * 0.10, 0.44, _CENTRE + s * 0.12, seat_y, 0.028)) for s in (-1, 1)]
    edge = np.array(
        [[_CENTRE - width - 0.05, seat_y + 0.055], [_CENTRE + width + 0.05, seat_y + 0.055],
         [_CENTRE + width + 0.045, seat_y + 0.085], [_CENTRE - width - 0.045, seat_y + 0.085]]
    )  # fmt: skip
    fold = _bar(_CENTRE - width, seat_y - 0.052, _CENTRE + width, seat_y - 0.052, 0.014)
    cushions = [Part(Role.BODY, back), Part(Role.TRIM, fold), Part(Role.BODY, seat), Part(Role.TRIM, edge)]
    return [*legs, *posts, *cushions]


def _bottle(form: Form, shape: str) -> list[Part]:
    profile = {
        "round": (0.26, 0.26, 0.34, 0.86, 1.0, 0.98, 0.72),
        "angular": (0.26, 0.26, 1.0, 1.0, 0.70),
        "slender": (0.44, 0.44, 0.72, 1.0, 1.0, 1.0, 0.96),
        "flared": (0.22, 0.24, 0.62, 1.0),
    }[shape]
    half = _profile(form, profile) * 0.20 * form.width
    bottom = FLOOR - half[-1] * 0.14
    top = bottom - 0.54 * min(form.height, 1.1)
    stopper = _turned(np.array([1.15, 1.15, 0.85]) * half[0], top - 0.06, top + 0.005)
    return [Part(Role.WOOD, stopper, turned=True), Part(Role.BODY, _turned(half, top, bottom), turned=True)]


def _candlestick(form: Form, shape: str) -> list[Part]:
    profile = {
        "round": (0.50, 0.34, 0.70, 0.60, 0.30, 0.62, 1.0),
        "angular": (0.52, 0.28, 0.74, 0.28, 1.0),
        "slender": (0.62, 0.56, 0.56, 0.62, 1.0),
        "flared": (0.95, 0.24, 0.30, 1.0),
    }[shape]
    parts = _vessel(form, 0.42, 0.38 if shape != "slender" else 0.40, profile=profile)[:2]
    y = float(parts[1].outline[:, 1].mean())
    candle = _turned(np.full(8, 0.046), y - 0.14, y - 0.004, tilt=0.2)
    flame = _leaf((_CENTRE, y - 0.145), (_CENTRE, y - 0.23), 0.026)
    wick = _bar(_CENTRE, y - 0.17, _CENTRE, y - 0.14, 0.008)
    return [*parts, Part(Role.WAX, candle, turned=True), Part(Role.INK, wick), Part(Role.LIGHT, flame)]


_DRAWINGS: dict[str, Callable[[Form, str], list[Part]]] = {
    "mug": _mug,
    "teapot": _teapot,
    "bowl": _bowl,
    "vase": _vase,
    "planter": _planter,
    "lamp": _lamp,
    "clock": _clock,
    "chair": _chair,
    "bottle": _bottle,
    "candlestick": _candlestick,
}
