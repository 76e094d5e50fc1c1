"""Row masks and their counts, against plain numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.errors import SearchError
from index.search.row_mask import RowMask


def check(allowed, mask, indexed):
    findable = mask & indexed
    np.testing.assert_array_equal(allowed.mask, mask)
    np.testing.assert_array_equal(allowed.findable, findable)
    assert allowed.count == findable.sum()
    np.testing.assert_array_equal(allowed.rows, np.flatnonzero(findable))
    assert allowed.rows.dtype == np.int64
    bits = np.unpackbits(allowed.bitmap, count=len(mask), bitorder="little").astype(bool)
    np.testing.assert_array_equal(bits, findable)
    assert len(allowed) == len(mask)
    arrays = [allowed.mask, allowed.bitmap]
    arrays += [] if allowed.findable is allowed.mask else [allowed.findable]
    arrays += [] if allowed.row_list is None else [allowed.row_list]
    assert len(mask) // 8 <= allowed.nbytes <= sum(part.nbytes for part in arrays) <= allowed.nbytes + 1
    for part in arrays:
        assert not part.flags.writeable


@given(data=st.data())
def test_equals_plain_masks(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    rows = data.draw(st.sampled_from([1, 7, 8, 9, 200]))
    shares = st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0])
    indexed = rng.random(rows) < data.draw(shares)
    mask = rng.random(rows) < data.draw(shares)
    allowed = RowMask.of(mask, indexed)
    check(allowed, mask, indexed)
    assert allowed.removed == 0
    excluded = rng.integers(0, rows, data.draw(st.integers(0, 12)))
    less = allowed.without(excluded)
    rest = mask.copy()
    rest[excluded] = False
    check(less, rest, indexed)
    assert less.removed == allowed.count - less.count
    assert less.without(excluded).removed == less.removed  # a row is excluded once only
    other = rng.random(rows) < data.draw(shares)
    check(less & other, rest & other, indexed)
    check(allowed, mask, indexed)  # none of it changed the first


def test_the_callers_mask_stays_writeable():
    mask = np.ones(4, bool)
    allowed = RowMask.of(mask, np.ones(4, bool))
    mask[0] = True
    with pytest.raises(ValueError, match="read-only"):
        allowed.mask[0] = False


def test_refuses():
    allowed = RowMask.of(np.ones(4, bool), np.ones(4, bool))
    for wrong in (np.ones(5, bool), np.ones(4, np.int8), np.ones((2, 4), bool)):
        with pytest.raises(SearchError, match="allowed must be bool of shape"):
            RowMask.of(wrong, np.ones(4, bool))
        with pytest.raises(SearchError, match="allowed must be bool of shape"):
            allowed & wrong
    for wrong in ([4], [-1], [0, 9]):
        with pytest.raises(SearchError, match=r"rows must lie in 0 … 3"):
            allowed.without(np.array(wrong))
    assert allowed.without(np.array([], dtype=np.int64)).count == 4
