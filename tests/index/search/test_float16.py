"""Conversion against numpy's, value by value."""

import numpy as np

from index.search.float16 import to_float32


def test_every_finite_half_is_converted_exactly():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    assert finite.shape[0] == 63_488  # all but the 2 × 1,024 of infinities and NaN
    widened = to_float32(finite.reshape(-1, 64))
    assert widened.dtype == np.float32
    assert widened.shape == (992, 64)
    np.testing.assert_array_equal(widened.ravel().view(np.uint32), finite.astype(np.float32).view(np.uint32))


def test_the_input_is_unchanged_for_any_memory_layout():
    values = np.arange(12, dtype=np.float16).reshape(3, 4)
    for view in (values, values.T, values[:, ::2], values[1:1]):
        before = view.copy()
        widened = to_float32(view)
        widened += 1
        np.testing.assert_array_equal(view, before)
        assert widened.flags.c_contiguous
        np.testing.assert_array_equal(widened, before.astype(np.float32) + 1)


def test_other_dtypes_pass():
    values = np.array([[1.5, 2.0]], np.float32)
    assert to_float32(values) is values
    assert to_float32(values.astype(np.float64)).dtype == np.float32
