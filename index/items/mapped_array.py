"""Maps npy files of one strict form, without numpy's own reader.

Numpy's reader evaluates the header as Python and allocates the size that it names. This one accepts only the header
that ``np.save`` writes for a C-contiguous array of numbers, and rejects a damaged header without evaluating it.
"""

import math
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.errors import BundleInvalid, ItemTableError, lacks_resources

_FORM = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)\{'descr': '(?P<descr>[<|][a-z][0-9])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9]{1,15},|[0-9]{1,15}(?:, [0-9]{1,15}){1,3})\), \} *\n",
    re.DOTALL,
)


def view_array(content: Any) -> NDArray[Any]:  # noqa: ANN401 - bytes or mmap
    """View the content of an npy file as an array, without a copy.

    Args:
        content: all bytes of the file, or its mapping; the array is read-only if this is.

    Raises:
        ItemTableError: the content is no npy file of version 1.0 with a C-contiguous array of numbers, or is cut short.
    """
    header = _FORM.match(content)
    if header is None or int.from_bytes(header["length"], "little") != header.end() - header.start("length") - 2:
        raise ItemTableError("not an npy file of version 1.0 with numbers in C order")
    try:
        dtype = np.dtype(header["descr"].decode())
    except TypeError as error:
        raise ItemTableError(f"an npy file of an unknown type ({error})") from error
    shape = tuple(int(size) for size in header["shape"].rstrip(b",").split(b","))
    size = header.end() + dtype.itemsize * math.prod(shape)
    if len(content) != size:
        raise ItemTableError(f"{dtype} {shape} takes {size} bytes, the file has {len(content)}")
    return np.ndarray(shape, dtype, content, header.end())


def _remedy(error: Exception) -> str:
    if lacks_resources(error):
        return "the file is whole; raise the limit on open files (ulimit -n) or on memory"
    return "build the bundle again"


def map_array(path: Path, dtype: str, shape: tuple[int, ...], *, ahead: bool = True) -> NDArray[Any]:
    """Map an npy file read-only.

    Args:
        path: the file, written by ``np.save`` from a C-contiguous array.
        dtype: name of the expected dtype.
        shape: the expected shape.
        ahead: let the system read pages around one that is not in memory; False: for rows that are read at random.

    Raises:
        BundleInvalid: the file cannot be read, or has another dtype or shape.
    """
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if not ahead:
                mapping.madvise(mmap.MADV_RANDOM)
            array = view_array(mapping)
    except (OSError, ValueError, ItemTableError) as error:
        raise BundleInvalid(f"{path}: not a readable array ({error}); {_remedy(error)}") from error
    if array.dtype != dtype or array.shape != shape:
        raise BundleInvalid(
            f"{path}: holds {array.dtype} {array.shape}, the manifest says {dtype} {shape}; build the bundle again"
        )
    return array
