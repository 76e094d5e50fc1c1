"""Arrays of a bundle, mapped from npy files whose form is known beforehand.

The reader of numpy evaluates the header and allocates what it says. Here dtype and shape come from the manifest: a
header that says anything else is refused, so no byte of a damaged one is ever acted on.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import BundleInvalid

_VERSION_1_0 = np.lib.format.magic(1, 0)
_LENGTH = struct.Struct("<H")


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map an npy file read-only.

    Args:
        path: what ``np.save`` wrote of a C-contiguous array.
        dtype: name of the dtype that it must have.
        shape: the shape that it must have, of at least one element.

    Raises:
        BundleInvalid: the file cannot be read, is not an npy file of version 1.0, or holds another dtype, shape or
            number of bytes.
    """
    wanted = np.dtype(dtype)
    try:
        with path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BundleInvalid(f"{path}: not a readable array ({error}); build the bundle again") from error
    text = len(_VERSION_1_0) + _LENGTH.size
    if len(pages) < text or pages[: len(_VERSION_1_0)] != _VERSION_1_0:
        raise BundleInvalid(f"{path}: not a readable array (no npy file of version 1.0); build the bundle again")
    start = text + _LENGTH.unpack_from(pages, len(_VERSION_1_0))[0]
    header = pages[text:start].decode("latin-1").rstrip()
    form = f"{{'descr': {wanted.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    if header != form:
        raise BundleInvalid(f"{path}: holds {header[:200]!r}, the manifest says {form!r}; build the bundle again")
    size = start + wanted.itemsize * math.prod(shape)
    if len(pages) != size:
        raise BundleInvalid(f"{path}: has {len(pages)} bytes, {form} takes {size}; build the bundle again")
    return np.ndarray(shape, wanted, pages, start)
