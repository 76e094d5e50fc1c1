"""Computes picture features without a neural model: colours, their layout, and the direction of edges.

Every feature is computed on a small copy of the picture in CIELAB, a colour space in which equal distances look
roughly equally different (CIE 15:2004). The three parts are classics of content-based image retrieval: colour
histograms (Swain and Ballard, "Color Indexing", IJCV 1991), a coarse colour layout (as in MPEG-7), and histograms of
oriented gradients (Dalal and Triggs, CVPR 2005); the bin counts are ours.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.picture_reader import open_picture
from training.data.stored.stored_pictures import PictureFile

SIDE = 64
"""Pixels of the square copy on which the features are computed."""
COLOUR_BINS = (5, 6, 6)
LAYOUT_CELLS = 6
EDGE_CELLS = 4
EDGE_ORIENTATIONS = 8

_LIGHT_RANGE = (0.0, 100.0)
_CHROMA_RANGE = (-70.0, 70.0)
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE_D65 = np.array([0.95047, 1.0, 1.08883])


def read_picture(path: PictureFile) -> NDArray[np.uint8]:
    """A picture as a small square of sRGB pixels, opened by :func:`training.data.picture_reader.open_picture`.

    Args:
        path: any format that it reads.

    Returns:
        (64, 64, 3) uint8.

    Raises:
        PictureError: the file is missing or no usable picture.
    """
    opened = open_picture(path, SIDE * SIDE)
    return np.asarray(opened.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.uint8)


def to_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Convert sRGB (IEC 61966-2-1, D65) to CIELAB.

    Args:
        pixels: (…, 3) uint8.

    Returns:
        (…, 3) float64: lightness 0 … 100, a* (green to red) and b* (blue to yellow).
    """
    encoded = pixels.astype(np.float64) / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _TO_XYZ.T / _WHITE_D65
    knee = (6 / 29) ** 3
    curved = np.where(ratio > knee, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = curved[..., 0], curved[..., 1], curved[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def colour_histogram(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the picture per colour, each pixel spread over its neighbouring bins.

    Args:
        lab: (h, w, 3) CIELAB.

    Returns:
        (180,) float64, at least 0, sum 1.
    """
    flat = lab.reshape(-1, 3)
    lower: list[NDArray[np.int64]] = []
    upper_share: list[NDArray[np.float64]] = []
    for channel, (bins, (low, high)) in enumerate(
        zip(COLOUR_BINS, (_LIGHT_RANGE, _CHROMA_RANGE, _CHROMA_RANGE), strict=True)
    ):
        place = np.clip((flat[:, channel] - low) / (high - low), 0, 1) * (bins - 1)
        cell = np.minimum(place.astype(np.int64), bins - 2)
        lower.append(cell)
        upper_share.append(place - cell)
    histogram = np.zeros(int(np.prod(COLOUR_BINS)))
    for corner in np.ndindex(2, 2, 2):
        weight = np.ones(flat.shape[0])
        for share, up in zip(upper_share, corner, strict=True):
            weight *= share if up else 1 - share
        cells = np.ravel_multi_index([cell + up for cell, up in zip(lower, corner, strict=True)], COLOUR_BINS)
        histogram += np.bincount(cells, weights=weight, minlength=histogram.size)
    return np.asarray(histogram / flat.shape[0])


def colour_layout(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean colour of each cell of a coarse grid.

    Args:
        lab: (h, w, 3) CIELAB with sides that the grid divides into parts of at least one pixel.

    Returns:
        (108,) float64 in CIELAB units, rows of the grid from top to bottom.
    """
    rows = np.array_split(lab, LAYOUT_CELLS, axis=0)
    return np.concatenate(
        [cell.mean(axis=(0, 1)) for row in rows for cell in np.array_split(row, LAYOUT_CELLS, axis=1)]
    )


def edge_histogram(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Strength of lightness edges per cell and direction.

    Args:
        lab: (h, w, 3) CIELAB.

    Returns:
        (128,) float64, at least 0: per cell of a 4 × 4 grid the mean gradient in each of 8 undirected orientations,
        each gradient shared between its two nearest orientations.
    """
    down, right = np.gradient(lab[..., 0])
    strength = np.hypot(down, right)
    place = np.mod(np.arctan2(down, right), np.pi) / np.pi * EDGE_ORIENTATIONS
    first = place.astype(np.int64) % EDGE_ORIENTATIONS
    share = place - np.floor(place)
    per_direction = np.zeros((*strength.shape, EDGE_ORIENTATIONS))
    grid = np.indices(strength.shape)
    per_direction[grid[0], grid[1], first] = strength * (1 - share)
    per_direction[grid[0], grid[1], (first + 1) % EDGE_ORIENTATIONS] += strength * share
    rows = np.array_split(per_direction, EDGE_CELLS, axis=0)
    return np.concatenate([cell.mean(axis=(0, 1)) for row in rows for cell in np.array_split(row, EDGE_CELLS, axis=1)])


def picture_features(pixels: NDArray[np.uint8]) -> list[NDArray[np.float64]]:
    """All features of one picture.

    Args:
        pixels: (64, 64, 3) uint8 sRGB, the result of :func:`read_picture`.

    Returns:
        Three vectors, (180,) colours, (108,) layout, (128,) edges; histograms as square roots, so that a product of two
        compares them by their Hellinger affinity.
    """
    lab = to_lab(pixels)
    return [np.sqrt(colour_histogram(lab)), colour_layout(lab), np.sqrt(edge_histogram(lab))]
