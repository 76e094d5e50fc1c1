"""The choice of a path, and the skew of queries, by hand."""

import math

import numpy as np
import pytest

from index.items.slots import Slot, SlotLayout
from index.search.query_plan import SCAN, Effort, IndexCapabilities, SearchStep, exact_step, plan, skew_of, slot_shares

LAYOUT = SlotLayout((Slot("text", 2), Slot("image", 1)))
HNSW = IndexCapabilities("hnsw", 1_000_000)
IVF = IndexCapabilities("ivf", 1_000_000, lists=4000)
FLAT = IndexCapabilities("flat", 10_000)
GPU_FLAT = IndexCapabilities("flat", 1_000_000, largest_fetch=2048, speedup=100)
GPU_IVF = IndexCapabilities("ivf", 1_000_000, lists=4000, largest_fetch=2048, speedup=100)


def test_shares_and_skew_by_hand():
    queries = np.array([[3, 0, 4], [0, 0, 2], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(slot_shares(queries, LAYOUT), [[0.36, 0.64], [0, 1], [0.5, 0.5]])
    np.testing.assert_allclose(skew_of(queries, LAYOUT, np.array([0.36, 0.64])), [0, 0.36, 0.14], atol=1e-7)


def test_effort_of_each_band():
    effort = Effort((0.5, 0.5), ((0.2, 10), (0.4, 20), (1.0, 40)), per_k=36)
    angle = np.array([0.5, 0.3, 0.299, 0.1, 0.0])  # share of text; skew 0, .2, .201, .4, .5
    queries = np.stack([np.sqrt(angle), np.zeros(5), np.sqrt(1 - angle)], axis=1).astype(np.float32)
    assert effort.of(queries, LAYOUT)[[0, 2, 4]].tolist() == [10, 20, 40]
    one_band = Effort((0.5, 0.5), ((1.0, SCAN),), per_k=36)
    assert one_band.of(queries, LAYOUT).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("capabilities", "k", "allowed", "effort", "step"),
    [
        # no filter
        (FLAT, 20, 10_000, SCAN, SearchStep("index", 36, SCAN)),
        (FLAT, 20_000, 10_000, SCAN, SearchStep("index", 10_000, SCAN)),
        (HNSW, 20, 1_000_000, 64, SearchStep("index", 36, 64)),
        (HNSW, 20, 1_000_000, 16, SearchStep("index", 36, 36)),  # a beam narrower than the candidates cannot give them
        (HNSW, 20, 1_000_000, SCAN, SearchStep("scan", 36, SCAN)),
        (HNSW, 20_000, 1_000_000, 64, SearchStep("scan", 20_016, SCAN)),  # so wide a beam costs five scans
        (IVF, 20, 1_000_000, 64, SearchStep("index", 36, 64)),
        (IVF, 5, 1_000_000, 64, SearchStep("index", 21, 64)),  # fewer candidates never get less than was measured
        (IVF, 128, 1_000_000, 64, SearchStep("index", 144, 128)),  # four times the candidates, twice the lists
        (IVF, 20, 1_000_000, 4000, SearchStep("scan", 36, SCAN)),
        (IVF, 20, 1_000_000, SCAN, SearchStep("scan", 36, SCAN)),
        # filters that leave few rows
        (HNSW, 20, 1, 64, SearchStep("gather", 1, SCAN)),
        (IVF, 20, 10_000, 64, SearchStep("gather", 36, SCAN)),
        (FLAT, 20, 199, SCAN, SearchStep("gather", 36, SCAN)),
        # filters that leave some: 0.1 × 10,000 + 3 × allowed against 8 × allowed, and against 10,000 + 45 × fetch
        (FLAT, 20, 200, SCAN, SearchStep("scan", 36, SCAN)),
        (FLAT, 20, 3000, SCAN, SearchStep("scan", 36, SCAN)),
        # filters that leave many: 1.5 × 36 rows are allowed among the candidates
        (FLAT, 20, 9000, SCAN, SearchStep("index", 60, SCAN)),
        (HNSW, 20, 500_000, 64, SearchStep("index", 108, 111)),  # 64 × √3
        (IVF, 20, 500_000, 64, SearchStep("index", 108, 111)),
        (IVF, 20, 312_000, SCAN, SearchStep("gather", 36, SCAN)),
        (IVF, 20, 313_000, SCAN, SearchStep("scan", 36, SCAN)),  # 2.5 times all rows at most
        # a GPU: unfiltered and capped, the exact paths stay the CPU's
        (GPU_FLAT, 20, 1_000_000, SCAN, SearchStep("index", 36, SCAN)),
        (GPU_FLAT, 2032, 1_000_000, SCAN, SearchStep("index", 2048, SCAN)),
        (GPU_FLAT, 2033, 1_000_000, SCAN, SearchStep("scan", 2049, SCAN)),
        (GPU_FLAT, 20, 500_000, SCAN, SearchStep("index", 108, SCAN)),
        (GPU_FLAT, 20, 27_000, SCAN, SearchStep("index", 2000, SCAN)),
        (GPU_FLAT, 20, 26_000, SCAN, SearchStep("gather", 36, SCAN)),  # 2,077 candidates are beyond the cap
        (GPU_FLAT, 20, 1000, SCAN, SearchStep("gather", 36, SCAN)),
        (GPU_IVF, 20, 1_000_000, 64, SearchStep("index", 36, 64)),
        (GPU_IVF, 20, 1_000_000, SCAN, SearchStep("scan", 36, SCAN)),  # 4000 lists are beyond the cap
        (
            IndexCapabilities("ivf", 5000, lists=100, largest_fetch=2048, speedup=100),
            20,
            5000,
            SCAN,
            SearchStep("index", 36, 100),
        ),
        (
            IndexCapabilities("ivf", 5000, lists=100, largest_fetch=2048, speedup=100),
            20,
            5000,
            4000,
            SearchStep("index", 36, 100),
        ),
    ],
)
def test_plan(capabilities, k, allowed, effort, step):
    level = Effort((0.5, 0.5), ((1.0, effort),), per_k=36, growth=0.5)
    assert plan(capabilities, k, allowed, effort, level) == step


def test_excluded_rows_are_fetched_in_addition():
    """1,000 excluded rows may be the nearest 1,000 of all, so 1,000 more candidates are fetched."""
    level = Effort((0.5, 0.5), ((1.0, 64),), per_k=36, growth=0.5)
    assert plan(IVF, 20, 999_000, 64, level, removed=1000) == SearchStep(
        "index", 1054, math.ceil(64 * (1054 / 36) ** 0.5)
    )
    assert plan(IVF, 20, 999_000, 64, level).fetch == 55
    half = plan(IVF, 20, 499_000, 64, level, removed=1000)
    assert half.fetch == 108 + 1000  # the share is that of the filter alone


def test_effort_grows_with_the_measured_power():
    for growth, nprobe in ((0.0, 64), (0.5, 128), (1.0, 256)):
        level = Effort((0.5, 0.5), ((1.0, 64),), per_k=36, growth=growth)
        assert plan(IVF, 128, 1_000_000, 64, level) == SearchStep("index", 144, nprobe)


@pytest.mark.parametrize("capabilities", [FLAT, HNSW, IVF, GPU_FLAT, GPU_IVF])
def test_every_plan_is_possible(capabilities):
    """Every plan fetches at least min(k, allowed) candidates, and never more than all rows or the cap."""
    level = Effort((0.5, 0.5), ((1.0, 64),), per_k=36, growth=0.8)
    for k in (1, 20, 1000, 5000):
        for allowed in sorted({1, 2, 40, 1000, capabilities.rows // 2, capabilities.rows - 1, capabilities.rows}):
            for effort in (SCAN, 1, 64, 10**6):
                for removed in (0, 500):
                    for step in (
                        plan(capabilities, k, allowed, effort, level, removed),
                        exact_step(capabilities, k, allowed),
                    ):
                        assert min(k, allowed) <= step.fetch <= capabilities.rows
                        assert capabilities.largest_fetch is None or step.path != "index" or step.fetch <= 2048
                        assert (step.effort == SCAN) == (step.path != "index" or capabilities.kind == "flat")
                        assert capabilities.kind != "ivf" or step.effort <= capabilities.lists
                        assert capabilities.kind != "hnsw" or step.path != "index" or step.effort >= step.fetch
                    assert exact_step(capabilities, k, allowed).path != "index"
