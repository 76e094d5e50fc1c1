"""Cached filters: equal to compiling them again, found whatever their order, in bounded memory."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from index.errors import FilterError, SearchError
from index.filters import filter_cache
from index.filters.filter_cache import FilterCache
from index.filters.filters import MetadataFilter, compile_filter

ROWS = 400
TABLE = pa.table(
    {
        "size": pa.array(np.arange(ROWS) % 7, pa.int64()),
        "name": [f"n{row % 5}" for row in range(ROWS)],
        "open": [row % 3 == 0 for row in range(ROWS)],
        "tags": [["a"] * (row % 2) + ["b"] * (row % 4 == 0) for row in range(ROWS)],
    }
)
INDEXED = np.arange(ROWS) != 3


@pytest.fixture
def cache():
    return FilterCache(TABLE, INDEXED)


SAME = [
    ({"must": [{"field": "size", "in": [1, 2]}]}, {"must": ({"field": "size", "in": (2, 1, 2)},)}),
    ({"must": [{"field": "size", "gt": 1, "lt": 5}]}, {"must": [{"field": "size", "lt": 5, "gt": 1, "eq": None}]}),
    (
        {"must": [{"field": "size", "eq": 1}, {"field": "name", "eq": "n1"}], "must_not": []},
        {"must": [{"field": "name", "eq": "n1"}, {"field": "size", "eq": 1}, {"field": "name", "eq": "n1"}]},
    ),
    ({}, None),
    ({"must": None}, {"must_not": []}),
]
DIFFERENT = [
    ({"must": [{"field": "size", "eq": 1}]}, {"must_not": [{"field": "size", "eq": 1}]}),
    ({"must": [{"field": "size", "gt": 1}]}, {"must": [{"field": "size", "gte": 1}]}),
    ({"must": [{"field": "size", "gt": 1, "lt": 5}]}, {"must": [{"field": "size", "gt": 5, "lt": 1}]}),
    ({"must": [{"field": "size", "in": [1, 2]}]}, {"must": [{"field": "size", "in": [12]}]}),
    ({"must": [{"field": "name", "in": ["n1", "n2"]}]}, {"must": [{"field": "name", "in": ["n1n2"]}]}),
    ({"must": [{"field": "name", "in": ["n1", ""]}]}, {"must": [{"field": "name", "in": ["n1"]}]}),
    ({"must": [{"field": "name", "exists": True}]}, {"must": [{"field": "name", "exists": False}]}),
    ({"must": [{"field": "open", "eq": True}]}, {"must": [{"field": "open", "eq": False}]}),
    ({"must": [{"field": "size", "eq": 1}]}, {"must": [{"field": "size", "eq": 1.5}]}),
    ({"must": [{"field": "size", "gt": -1}]}, {"must": [{"field": "size", "gt": 1}]}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_equivalent_filters_share_an_entry(cache, one, other):
    assert cache.allowed(one) is cache.allowed(other)
    assert len(cache) == 1
    np.testing.assert_array_equal(cache.allowed(one).mask, compile_filter(TABLE, one))
    assert cache.allowed(one).count == (compile_filter(TABLE, one) & INDEXED).sum()


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_filters_never_share_an_entry(cache, one, other):
    for condition in (one, other):
        np.testing.assert_array_equal(cache.allowed(condition).mask, compile_filter(TABLE, condition))
    assert len(cache) == 2


def test_equal_numbers_of_different_types_differ(cache):
    """``true`` is not a number: a cached 1 must not let it pass."""
    assert cache.allowed({"must": [{"field": "size", "eq": 1}]}).count == 57
    with pytest.raises(FilterError, match="compares with a number, got True"):
        cache.allowed({"must": [{"field": "size", "eq": True}]})
    with pytest.raises(FilterError, match=r"compares with a number, got '1'"):
        cache.allowed({"must": [{"field": "size", "eq": "1"}]})


def test_the_least_recently_used_goes_first_and_the_bound_holds(cache):
    size = cache.allowed({"must": [{"field": "size", "gte": 1}]}).nbytes + 1024
    cache = FilterCache(TABLE, INDEXED, capacity=3 * size + size // 2)
    conditions = [{"must": [{"field": "size", "gte": bound}]} for bound in (0, 1, 2, 3)]
    first, second, third = (cache.allowed(condition) for condition in conditions[:3])
    assert cache.allowed(conditions[0]) is first  # used again, so the second is the oldest now
    cache.allowed(conditions[3])
    assert len(cache) == 3
    assert cache.nbytes <= 3 * size + size // 2
    assert cache.allowed(conditions[0]) is first
    assert cache.allowed(conditions[2]) is third
    assert cache.allowed(conditions[1]) is not second


def test_a_filter_larger_than_the_cache_is_not_cached():
    cache = FilterCache(TABLE, INDEXED, capacity=1000)
    assert cache.allowed({}).count == ROWS - 1
    assert (len(cache), cache.nbytes) == (0, 0)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (10**5000, "compares with text, got something too large to show of type int"),
        ([[["x"]]], "compares with"),
        ({"a": 1}, "compares with"),
        ("\udc80", "valid Unicode"),
    ],
    ids=["long", "nested", "object", "surrogate"],
)
def test_hostile_values_are_refused_and_never_cached(cache, value, rule):
    with pytest.raises(FilterError, match=rule):
        cache.allowed({"must": [{"field": "name", "eq": value}]})
    deep = []
    for _ in range(5000):
        deep = [deep]
    # Python 3.13 can show as many levels, of which a message has the first.
    with pytest.raises(FilterError, match=r"too large to show|compares with text, got \[{50,200} \(list\)"):
        cache.allowed({"must": [{"field": "name", "eq": deep}]})
    with pytest.raises(FilterError, match="unknown field"):
        cache.allowed({"must": [{"field": "\udc80", "eq": value}]})
    assert len(cache) == 0


def test_a_huge_filter_costs_only_its_parsing(cache):
    long = {"must": [{"field": "name", "in": ["x" * 1_000_000, *map(str, range(20_000))]}]}
    assert cache.allowed(long).count == 0
    assert cache.allowed(long) is cache.allowed(long)
    assert cache.nbytes < 10_000  # a key has 32 bytes, whatever was sent


def test_many_threads_at_once(monkeypatch):
    size = FilterCache(TABLE, INDEXED).allowed({}).nbytes + 1024
    cache = FilterCache(TABLE, INDEXED, capacity=4 * size)
    conditions = [{"must": [{"field": "size", "lt": bound}]} for bound in range(8)]
    right = [compile_filter(TABLE, condition) for condition in conditions]

    def ask(number):
        return np.array_equal(cache.allowed(conditions[number % 8]).mask, right[number % 8])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(800)))
    assert cache.nbytes <= 4 * size
    kept = sum(found.nbytes + filter_cache._ENTRY_BYTES for found in cache._entries.values())
    assert cache.nbytes == kept


def test_filters_are_cached_with_the_available_rows(cache):
    condition = {"must": [{"field": "size", "eq": 1}]}
    available = np.arange(ROWS) % 2 == 0
    plain = cache.allowed(condition)
    shown = cache.allowed(condition, available)
    np.testing.assert_array_equal(shown.mask, plain.mask & available)
    assert cache.allowed(condition, available) is shown
    assert cache.allowed(condition) is plain
    np.testing.assert_array_equal(cache.allowed(None, available).mask, available)
    assert len(cache) == 4  # both conditions, each alone and combined


def test_a_new_availability_mask_drops_the_old_combinations(cache):
    everything, none = np.ones(ROWS, bool), np.zeros(ROWS, bool)
    assert cache.allowed({}, everything).count == ROWS - 1
    before = cache.nbytes
    assert cache.allowed({}, none).count == 0
    assert cache.nbytes <= before
    assert len(cache) == 2
    kept = sum(found.nbytes + filter_cache._ENTRY_BYTES for found in cache._entries.values())
    assert cache.nbytes == kept
    with pytest.raises(SearchError, match="allowed must be bool of shape"):
        cache.allowed({}, np.ones(3, bool))


def test_a_mask_that_becomes_outdated_while_compiling_is_never_cached(cache, monkeypatch):
    """An item is hidden while another thread still combines the filter with the mask from before."""
    before, after = np.ones(ROWS, bool), np.zeros(ROWS, bool)
    real = FilterCache._compile

    def slowly(self, parsed):
        made = real(self, parsed)
        self._set_available(after)
        return made

    monkeypatch.setattr(FilterCache, "_compile", slowly)
    assert cache.allowed({}, before).count == ROWS - 1  # by the mask of its call
    assert cache.allowed({}, after).count == 0


def test_a_lookup_with_another_mask_never_finds_a_combination(cache):
    """A thread that still holds the old mask asks after another one has turned to the new."""
    old, new = np.ones(ROWS, bool), np.zeros(ROWS, bool)
    cache.allowed({}, new)
    key = filter_cache._key(MetadataFilter.parse({}))
    assert cache._get(key, new).count == 0
    assert cache._get(key, old) is None


def test_a_mask_says_which_filter_its_rows_meet(cache):
    condition = {"must": [{"field": "size", "in": [1, 2]}]}
    available = np.arange(ROWS) % 2 == 0
    assert cache.allowed(condition).rule.condition == condition
    assert cache.allowed(condition, available).rule.condition == condition
    assert cache.allowed(condition).without(np.array([1])).rule.condition == condition
    assert cache.allowed(None).rule is None
    assert cache.allowed({"must": []}, available).rule is None


def test_a_large_filter_is_not_kept_with_its_mask(cache):
    small, large = "n" * 1000, "n" * 5000
    kept = cache.allowed({"must": [{"field": "name", "eq": small}]})
    dropped = cache.allowed({"must": [{"field": "name", "eq": large}]})
    assert kept.rule is not None
    assert kept.nbytes >= dropped.nbytes + 4000
    assert dropped.rule is None
    assert cache.allowed({"must": [{"field": "size", "in": list(range(300))}]}).rule is None
    assert cache.allowed({"must": [{"field": "size", "lt": 10**100_000}]}).rule is None
