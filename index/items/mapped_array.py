"""Arrays in npy files of one plain form, without the reader of numpy.

That reader evaluates the header as Python and allocates what it says. Here only the text that ``np.save`` writes of a
C-contiguous array of numbers is taken; whatever else a damaged header says is refused unread.
"""

import math
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import BundleInvalid, ItemTableError

_FORM = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '(?P<descr>[<|][a-z][0-9])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9]{1,15},|[0-9]{1,15}(?:, [0-9]{1,15}){1,3})\), \} *\n",
    re.DOTALL,
)


def view_array(content: Any) -> NDArray[Any]:  # noqa: ANN401 - bytes or mmap
    """The array in the content of an npy file, read-only and without a copy.

    Raises:
        ItemTableError: it is no npy file of version 1.0, not C-contiguous, not of numbers, or not whole.
    """
    found = _FORM.match(content)
    if found is None or int.from_bytes(found["length"], "little") != found.end() - found.start("length") - 2:
        raise ItemTableError("no npy file of version 1.0 with numbers in C order")
    try:
        dtype = np.dtype(found["descr"].decode())
    except TypeError as error:
        raise ItemTableError(f"an npy file of an unknown type ({error})") from error
    shape = tuple(int(size) for size in found["shape"].rstrip(b",").split(b","))
    size = found.end() + dtype.itemsize * math.prod(shape)
    if len(content) != size:
        raise ItemTableError(f"{dtype} {shape} takes {size} bytes, the file has {len(content)}")
    return np.ndarray(shape, dtype, content, found.end())


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map an npy file read-only.

    Args:
        path: what ``np.save`` wrote of a C-contiguous array.
        dtype: name of the dtype that it must have.
        shape: the shape that it must have.

    Raises:
        BundleInvalid: the file cannot be read, or it holds anything else.
    """
    try:
        with path.open("rb") as file:
            array = view_array(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError, ItemTableError) as error:
        raise BundleInvalid(f"{path}: not a readable array ({error}); build the bundle again") from error
    if array.dtype != dtype or array.shape != shape:
        raise BundleInvalid(
            f"{path}: holds {array.dtype} {array.shape}, the manifest says {dtype} {shape}; build the bundle again"
        )
    return array
