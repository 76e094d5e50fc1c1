"""The choice of a path, and the skew of queries, by hand."""

import numpy as np
import pytest

from index.plan import SCAN, Effort, Engine, Step, plan, skew_of, slot_shares
from index.slots import Slot, SlotLayout

LAYOUT = SlotLayout((Slot("text", 2), Slot("image", 1)))
HNSW = Engine("hnsw", 1_000_000)
IVF = Engine("ivf", 1_000_000, lists=4000)
FLAT = Engine("flat", 10_000)
GPU_FLAT = Engine("flat", 1_000_000, filters=False, largest_fetch=2048)
GPU_IVF = Engine("ivf", 1_000_000, lists=4000, filters=False, largest_fetch=2048)


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
    ("engine", "k", "allowed", "effort", "step"),
    [
        # no filter
        (FLAT, 20, 10_000, SCAN, Step("scan", 36, SCAN)),
        (FLAT, 20_000, 10_000, SCAN, Step("scan", 10_000, SCAN)),
        (HNSW, 20, 1_000_000, 64, Step("index", 36, 64)),
        (HNSW, 20, 1_000_000, 16, Step("index", 36, 36)),  # a beam narrower than the candidates cannot give them
        (HNSW, 20, 1_000_000, SCAN, Step("scan", 36, SCAN)),
        (HNSW, 1_000_000, 1_000_000, 64, Step("scan", 1_000_000, SCAN)),
        (IVF, 20, 1_000_000, 64, Step("index", 36, 64)),
        (IVF, 128, 1_000_000, 64, Step("index", 144, 128)),  # four times the candidates, twice the lists
        (IVF, 20, 1_000_000, 4000, Step("scan", 36, SCAN)),
        # filters that leave few rows
        (HNSW, 20, 1, 64, Step("gather", 1, SCAN)),
        (IVF, 20, 15_625, 64, Step("gather", 36, SCAN)),
        (FLAT, 20, 500, SCAN, Step("gather", 36, SCAN)),
        # filters that leave many
        (FLAT, 20, 501, SCAN, Step("scan", 36, SCAN)),
        (HNSW, 20, 500_000, 64, Step("index", 36, 128)),
        (HNSW, 20, 20_000, 64, Step("scan", 36, SCAN)),
        (IVF, 20, 500_000, 64, Step("index", 36, 128)),
        (IVF, 20, 15_626, 64, Step("scan", 36, SCAN)),
        # an index that cannot filter
        (GPU_FLAT, 20, 1_000_000, SCAN, Step("scan", 36, SCAN)),
        (GPU_FLAT, 2032, 1_000_000, SCAN, Step("scan", 2048, SCAN)),
        (GPU_FLAT, 2033, 1_000_000, SCAN, Step("gather", 2049, SCAN)),
        (GPU_FLAT, 20, 500_000, SCAN, Step("scan", 108, SCAN)),
        (GPU_FLAT, 20, 20_000, SCAN, Step("gather", 36, SCAN)),
        (GPU_IVF, 20, 1_000_000, 64, Step("index", 36, 64)),
        (GPU_IVF, 20, 1_000_000, SCAN, Step("gather", 36, SCAN)),  # 4000 lists are beyond the cap
        (Engine("ivf", 5000, lists=100, filters=False), 20, 5000, SCAN, Step("index", 36, 100)),
        (Engine("ivf", 5000, lists=100, filters=False), 20, 5000, 4000, Step("index", 36, 100)),
    ],
)
def test_plan(engine, k, allowed, effort, step):
    assert plan(engine, k, allowed, effort, per_k=36) == step
