"""Every term against a reference that loops over rows and shares no code with the module."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.support.loss_configs import loss_config
from training.losses.method_loss import method_loss
from training.losses.modality_pairs import ModalityPairs

Array = NDArray[np.float64]
Make = Callable[..., ModalityPairs]


def relations(modalities: list[tuple[Array, ...]], ids: Tensor, out: list[list[bool]], scale: float) -> float:
    """CRTR, the mean of the relations to items and between items."""
    size = len(ids)
    terms = []
    for between in (False, True):
        found = []
        for b in range(size):
            here = (all(m[3][b] for m in modalities)) if between else all(m[2][b] for m in modalities)
            others = [
                j for j in range(size)
                if all(m[3][j] for m in modalities) and (ids[j] != ids[b] if between else not out[b][j])
            ]  # fmt: skip
            if not here or len(others) < 2:
                continue
            p, q = (
                np.exp([float((m[1] if between else m[0])[b] @ m[1][j]) / scale for j in others]) for m in modalities
            )
            p, q = p / p.sum(), q / q.sum()
            found.append(0.5 * float((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()))
        terms.append(float(np.mean(found)) if found else 0.0)
    return sum(terms) / 2


def reference(
    text: ModalityPairs, image: ModalityPairs, ids: Tensor, histories: Tensor, *, fusion: str, weak_by: str,
    gap_kind: str, temperature: float, alpha: float, relation_temperature: float,
) -> tuple[float, float, float]:  # fmt: skip
    """(nce, wpcl, crtr) with loops over rows and sums of exponentials, sharing no code with the module."""
    size = len(ids)
    modalities = [
        tuple(part.detach().numpy() for part in (m.sequences, m.items, m.sequence_present, m.item_present))
        for m in (text, image)
    ]
    out = [[bool(ids[j] == ids[b] or ids[j] in histories[b]) for j in range(size)] for b in range(size)]

    def normal(vector: Array) -> Array:
        return vector / max(float(np.linalg.norm(vector)), 1e-6)

    def fused(b: int, j: int) -> float | None:
        if fusion == "sum":
            left = [m[0][b] for m in modalities if m[2][b]]
            right = [m[1][j] for m in modalities if m[3][j]]
            return float(normal(sum(left)) @ normal(sum(right))) / temperature if left and right else None
        shared = [float(m[0][b] @ m[1][j]) / temperature for m in modalities if m[2][b] and m[3][j]]
        return sum(shared) / len(shared) if shared else None

    def confidence(own: float, others: list[float], beta: float = 1.0) -> float:
        return math.exp(own) / (math.exp(own) + beta * sum(math.exp(other) for other in others))

    nce, gaps, confidences = [], {}, {}
    for b in range(size):
        own = fused(b, b)
        if own is not None:
            others = [s for j in range(size) if not out[b][j] and (s := fused(b, j)) is not None]
            nce.append(-math.log(confidence(own, others)))
        if all(m[2][b] and m[3][b] for m in modalities):
            rows = []
            for sequences, items, _, there in modalities:
                kept = [float(sequences[b] @ items[j]) / temperature for j in range(size) if not out[b][j] and there[j]]
                rows.append((float(sequences[b] @ items[b]) / temperature, kept))
            confidences[b] = rows
            c_text, c_image = (confidence(*row) for row in rows)
            gaps[b] = (c_text, c_image)
    differences = [math.log(t / i) for t, i in gaps.values()]
    confidence_gap = 0.1 * float(np.mean(differences)) if gaps else 0.0  # decay .9 from 0
    wpcl = []
    for b, (c_text, c_image) in gaps.items():
        gap = min(abs(math.log(c_text / c_image)), 4.0) if gap_kind == "log_ratio" else abs(c_text - c_image)
        weak = int(confidence_gap > 0) if weak_by == "ema" else int(c_text > c_image)
        wpcl.append(-math.log(confidence(*confidences[b][weak], beta=1 + alpha * gap)))
    crtr = relations(modalities, ids, out, temperature * relation_temperature)
    return float(np.mean(nce)) if nce else 0.0, float(np.mean(wpcl)) if wpcl else 0.0, crtr


@pytest.mark.parametrize("fusion", ["sum", "concat"])
@pytest.mark.parametrize("weak_by", ["ema", "row"])
@pytest.mark.parametrize("gap_kind", ["log_ratio", "probability"])
@pytest.mark.parametrize(("missing", "seed", "history"), [(0.0, 3, 3), (0.3, 4, 3), (0.7, 5, 3), (0.0, 6, 16)])
def test_every_term_equals_the_reference(
    random_pairs: Make, fusion: str, weak_by: str, gap_kind: str, missing: float, seed: int, history: int
) -> None:
    text, image = random_pairs(12, 6, seed, missing), random_pairs(12, 6, seed + 50, missing)
    rng = np.random.default_rng(seed)
    ids = torch.tensor(rng.integers(0, 9, size=12))  # repeats
    histories = torch.tensor(rng.integers(-1, 9, size=(12, history)))  # 16 leave rows with 0, 1 and 2 others
    config = loss_config(
        temperature=0.4, fusion=fusion, weak_by=weak_by, gap_kind=gap_kind, wpcl_weight=0.7, crtr_weight=0.3, alpha=1.5,
        relation_temperature=2.0,
    )  # fmt: skip
    got = method_loss(text, image, ids, histories, config)
    nce, wpcl, crtr = reference(
        text, image, ids, histories, fusion=fusion, weak_by=weak_by, gap_kind=gap_kind, temperature=0.4, alpha=1.5,
        relation_temperature=2.0,
    )  # fmt: skip
    assert got.wpcl is not None
    assert got.crtr is not None
    assert got.nce.item() == pytest.approx(nce, rel=1e-9)
    assert got.wpcl.item() == pytest.approx(wpcl, rel=1e-9)
    assert got.crtr.item() == pytest.approx(crtr, rel=1e-9)
    assert got.total.item() == pytest.approx(nce + 0.7 * wpcl + 0.3 * crtr, rel=1e-9)
