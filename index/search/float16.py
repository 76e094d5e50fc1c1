"""Converts float16 to float32 exactly, several times as fast as numpy.

numpy 2.4 converts half precision one value at a time. Shifting the bits and scaling is exact as well and vectorised
(15,000 × 192 values: 0.55 against 3.5 ms, docs/experiments/search.md). Every score from stored vectors uses it.
"""

import numpy as np
from numpy.typing import NDArray

# 0x8FFFE000: the sign, and exponent and fraction moved by 13 bits
_SIGN_AND_REST = np.array(-0x70002000, dtype=np.int32)
_EXPONENT_GAP = np.array(2.0**112, dtype=np.float32)  # float16 biases its exponent by 15, float32 by 127
_SHIFT = np.array(13, dtype=np.int32)


def to_float32(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Convert values to float32.

    Args:
        values: float16 of at least one dimension, finite, or any other float dtype.

    Returns:
        C-contiguous float32 of the same shape; ``values`` itself if it has this form already.
    """
    if values.dtype != np.float16:
        return np.ascontiguousarray(values, dtype=np.float32)
    bits = np.ascontiguousarray(values).view(np.int16).astype(np.int32)
    np.left_shift(bits, _SHIFT, bits)
    np.bitwise_and(bits, _SIGN_AND_REST, bits)
    widened: NDArray[np.float32] = bits.view(np.float32)
    return np.multiply(widened, _EXPONENT_GAP, widened)
