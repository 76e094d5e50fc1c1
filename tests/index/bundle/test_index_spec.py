"""The choice of index kind and codes by rows, memory and target recall, by hand."""

import pytest

from index.bundle.index_spec import IndexSpec
from index.errors import IndexSpecError

DIM = 192


@pytest.mark.parametrize(
    ("rows", "spec", "kind", "codes", "why"),
    [
        (1, {}, "flat", "fp16", "up to 20000 are scanned"),
        (20_000, {}, "flat", "fp16", "up to 20000 are scanned"),
        (20_001, {}, "hnsw", "sq8", "the graph finds more"),
        (1_200_000, {}, "hnsw", "sq8", "up to 1200000"),
        (1_200_001, {}, "ivf", "sq8", "takes too long to build"),
        # a recall near 1: flat as long as it can be afforded, fp16 beyond
        (300_000, {"target_recall": 0.999}, "flat", "fp16", "target recall 0.999, and"),
        (300_001, {"target_recall": 0.999}, "hnsw", "fp16", "up to 1200000"),
        (300_000, {"target_recall": 0.998}, "hnsw", "sq8", "up to 1200000"),
        # memory: a graph of 100,000 × (192 + 192 + 4 + 12) bytes, lists of 100,000 × 200 + 1,264 × 768
        (100_000, {"memory_bytes": 40_000_000}, "hnsw", "sq8", "up to 1200000"),
        (100_000, {"memory_bytes": 39_999_999}, "ivf", "sq8", "hnsw sq8 (40000000 bytes) would not fit 39999999"),
        (100_000, {"memory_bytes": 20_970_752}, "ivf", "sq8", "lists take less memory than a graph"),
        (
            100_000,
            {"memory_bytes": 20_970_751},
            "flat",
            "fp16",
            "hnsw sq8 (40000000 bytes) and ivf sq8 (20970752 bytes)",
        ),
        (2_000_000, {"memory_bytes": 1}, "flat", "fp16", "takes no memory of its own"),
        # by name
        (1_000_000, {"kind": "hnsw"}, "hnsw", "sq8", "requested by name"),
        (1_000_000, {"kind": "flat"}, "flat", "fp16", "requested by name"),
        (1_000_000, {"kind": "flat", "codes": "fp32"}, "flat", "fp32", "requested by name"),
        (100, {"codes": "sq8"}, "flat", "sq8", "up to 20000"),
        (100_000, {"codes": "fp32"}, "hnsw", "fp32", "up to 1200000"),
    ],
)
def test_choices_and_their_reasons(rows, spec, kind, codes, why):
    choice = IndexSpec(**spec).choose(rows, DIM)
    assert (choice.kind, choice.codes) == (kind, codes)
    assert why in choice.reason
    if "kind" not in spec:
        assert str(rows) in choice.reason or "recall" in choice.reason


def test_a_flat_index_of_stored_vectors_takes_no_memory():
    assert IndexSpec().choose(100, DIM, "fp32").codes == "fp32"
    assert IndexSpec(kind="flat").choose(100, DIM, "fp16").bytes == 0
    assert IndexSpec(kind="flat", codes="sq8").choose(100, DIM, "fp16").bytes == 100 * DIM
    assert IndexSpec(kind="flat", codes="fp16").choose(100, DIM, "fp32").bytes == 200 * DIM


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        IndexSpecError, match="memory_bytes 1000 is too small for 50000 rows of 192 components, the sma"
    ):
        IndexSpec(kind="hnsw", memory_bytes=1000).choose(50_000, DIM)
    with pytest.raises(IndexSpecError, match="allowed index takes 10000000;"):
        IndexSpec(kind="flat", codes="sq8", memory_bytes=1000).choose(100_000, 100)


def test_list_count():
    assert IndexSpec().list_count(1_000_000) == 4000
    assert IndexSpec().list_count(3900) == 100  # 39 rows a list, not 249 lists
    assert IndexSpec(lists=7).list_count(1_000_000) == 7
    assert IndexSpec(lists=7).list_count(10) == 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"kind": "pq"}, "kind must be one of auto, flat, hnsw, ivf, got 'pq'"),
        ({"codes": "pq"}, "codes must be one of auto, fp32, fp16, sq8, got 'pq'"),
        ({"memory_bytes": 0}, "memory_bytes must be at least 1, got 0"),
        ({"recall_k": 0}, r"recall_k must be 1 … 1000, got 0"),
        ({"links": 3}, "links must be 4"),
        ({"construction": 8}, "construction must be 24"),
        ({"threads": 0}, "threads must be 1"),
        ({"evaluation_queries": 0}, "evaluation_queries must be 1"),
        ({"lists": 0}, "lists must be 1"),
        ({"target_recall": float("nan")}, "target_recall must be 0 … 1, got nan"),
    ],
)
def test_refuses_specs(change, rule):
    with pytest.raises(IndexSpecError, match=rule):
        IndexSpec(**change)
