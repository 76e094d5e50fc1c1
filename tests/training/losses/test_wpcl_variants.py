"""Variants of WPCL, of the gap and of CRTR against values by hand and against loops over rows in plain numpy."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support.loss_configs import loss_config
from training.losses.crtr import crtr_loss
from training.losses.method_loss import MethodLoss, method_loss
from training.losses.modality_pairs import ModalityPairs

Array = NDArray[np.float64]
Make = Callable[..., ModalityPairs]
LossOf = Callable[..., Any]
TEMPERATURE = 0.4
SIZE = 12


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


class Batch:
    """A random batch with repeated items, histories and missing modalities, and loops over its rows."""

    def __init__(self, random_pairs: Make, seed: int, missing: float) -> None:
        self.pairs = random_pairs(SIZE, 6, seed, missing), random_pairs(SIZE, 6, seed + 50, missing)
        rng = np.random.default_rng(seed)
        self.ids = torch.tensor(rng.integers(0, 9, size=SIZE))
        self.histories = torch.tensor(rng.integers(-1, 9, size=(SIZE, 3)))
        self.vectors = [(one.sequences.numpy(), one.items.numpy()) for one in self.pairs]
        self.here = [one.sequence_present.numpy() for one in self.pairs]
        self.there = [one.item_present.numpy() for one in self.pairs]

    def loss(self, **options: Any) -> MethodLoss:
        return method_loss(
            *self.pairs, self.ids, self.histories, loss_config(temperature=TEMPERATURE, **options), confidence_gap=0.0
        )

    def others(self, b: int, *modalities: int) -> list[int]:
        """Negatives of a row that have these modalities."""
        kept = [j for j in range(SIZE) if self.ids[j] != self.ids[b] and self.ids[j] not in self.histories[b]]
        return [j for j in kept if all(self.there[m][j] for m in modalities)]

    def similarity(self, m: int, b: int, j: int) -> float:
        return float(self.vectors[m][0][b] @ self.vectors[m][1][j]) / TEMPERATURE

    def rows(self) -> list[int]:
        """Rows with both modalities on both sides."""
        return [b for b in range(SIZE) if all(self.here[m][b] and self.there[m][b] for m in (0, 1))]

    def log_confidence(self, m: int, b: int, scale: float = 1.0) -> float:
        own = math.exp(self.similarity(m, b, b) / scale)
        return math.log(own / (own + sum(math.exp(self.similarity(m, b, j) / scale) for j in self.others(b, m))))

    def auc(self, m: int, b: int) -> float:
        own, others = self.similarity(m, b, b), [self.similarity(m, b, j) for j in self.others(b, m)]
        return float(np.mean([own > other for other in others])) if others else 1.0

    def spread(self, m: int) -> float:
        """Deviation of all negatives from the mean of their row."""
        rows = [b for b in range(SIZE) if self.here[m][b] and self.there[m][b]]
        blocks = [np.array([self.similarity(m, b, j) for j in self.others(b, m)]) for b in rows]
        centred = np.concatenate([block - block.mean() for block in blocks if len(block)])
        return float(np.sqrt(np.mean(centred**2)))

    def weak(self, measure: Callable[[int, int], float]) -> int:
        """The weak modality by the mean over the rows; 0 text, 1 image."""
        return int(np.mean([measure(0, b) - measure(1, b) for b in self.rows()]) > 0)

    def wpcl(self, weak: int, weight: Callable[[int, int], float]) -> float:
        found = []
        for b in self.rows():
            own = math.exp(self.similarity(weak, b, b))
            found.append(
                math.log1p(
                    sum(weight(b, j) * math.exp(self.similarity(weak, b, j)) for j in self.others(b, weak)) / own
                )
            )
        return float(np.mean(found))

    def gap(self, kind: str, weak: int, b: int) -> float:
        """The gap of a row; the weak modality is fixed, so the strong one may be behind in this row."""
        strong = 1 - weak
        if kind == "auc":
            return max(self.auc(strong, b) - self.auc(weak, b), 0.0)
        scales = [self.spread(m) if kind == "own_scale" else 1.0 for m in (0, 1)]
        lead = self.log_confidence(strong, b, scales[strong]) - self.log_confidence(weak, b, scales[weak])
        return min(max(lead, 0.0), 4.0)


@pytest.fixture(params=[(3, 0.0), (4, 0.3), (11, 0.0)], ids=["complete", "missing", "other"])
def batch(request: pytest.FixtureRequest, random_pairs: Make) -> Batch:
    """Two complete batches, one in which either modality is the weak one, and one with missing modalities."""
    seed, missing = request.param
    return Batch(random_pairs, seed, missing)


@pytest.mark.parametrize("kind", ["one_sided", "own_scale", "auc"])
@pytest.mark.parametrize("weak_by", ["ema", "auc"])
def test_gaps_of_the_strong_modality_equal_the_reference(batch: Batch, kind: str, weak_by: str) -> None:
    got = batch.loss(wpcl_weight=1.0, alpha=1.5, gap_kind=kind, weak_by=weak_by)
    weak = batch.weak(batch.auc if weak_by == "auc" else batch.log_confidence)
    gaps = {b: batch.gap(kind, weak, b) for b in batch.rows()}
    assert min(gaps.values()) == 0.0  # in some row the weak modality is ahead
    assert got.gap is not None
    assert got.wpcl is not None
    assert got.gap.item() == pytest.approx(np.mean(list(gaps.values())), rel=1e-9)
    assert got.wpcl.item() == pytest.approx(batch.wpcl(weak, lambda b, _: 1 + 1.5 * gaps[b]), rel=1e-9)


def test_the_moving_average_of_the_auc(batch: Batch) -> None:
    got = batch.loss(wpcl_weight=1.0, weak_by="auc", confidence_gap_decay=0.9)
    mean = np.mean([batch.auc(0, b) - batch.auc(1, b) for b in batch.rows()])
    assert got.confidence_gap is not None
    assert got.confidence_gap.item() == pytest.approx(0.1 * mean, rel=1e-9)


def test_ties_count_half_in_the_auc(pairs: Make, loss_of: LossOf) -> None:
    """Text is perfect (AUC 1), the image the same everywhere (AUC ½)."""
    text, blind = pairs(np.eye(4), np.eye(4)), pairs(np.ones((4, 4)) / 2, np.ones((4, 4)) / 2)
    loss = loss_of(text, blind, temperature=1.0, wpcl_weight=1.0, weak_by="auc", gap_kind="auc", alpha=2.0)
    assert loss.gap.item() == pytest.approx(0.5)
    assert loss.log_beta.item() == pytest.approx(math.log(2))
    assert loss.image_weak.item() == 1.0


def test_the_scale_of_a_modality_does_not_matter(pairs: Make, loss_of: LossOf) -> None:
    """An image that ranks exactly as the text in a narrower cone is less confident, but no weaker."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(8, 5))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows + 0.5 * rng.normal(size=(8, 5))
    text, image = pairs(queries, rows), pairs(0.1 * queries, rows)
    options: dict[str, Any] = {"temperature": 0.2, "wpcl_weight": 1.0}
    assert loss_of(text, image, **options, gap_kind="one_sided").gap.item() > 0.5
    assert loss_of(text, image, **options, gap_kind="own_scale").gap.item() == pytest.approx(0.0, abs=1e-9)
    assert loss_of(text, image, **options, gap_kind="auc", weak_by="auc").gap.item() == 0.0


def test_a_row_without_negatives_does_not_divide_by_zero(pairs: Make, loss_of: LossOf) -> None:
    alone = pairs(np.eye(1), np.eye(1))
    for options in ({"gap_kind": "own_scale"}, {"gap_kind": "auc", "weak_by": "auc"}):
        for kind in ("margin", "per_negative", "hard_negatives"):
            loss = loss_of(alone, alone, wpcl_weight=1.0, wpcl_kind=kind, negative_shift=0.25, **options)
            assert (loss.total.item(), loss.gap.item(), loss.log_beta.item()) == (0.0, 0.0, 0.0)


# --- R2 and R3: weights of single negatives


def test_weights_of_confused_negatives_equal_the_reference(batch: Batch) -> None:
    got = batch.loss(wpcl_weight=1.0, wpcl_kind="per_negative", alpha=3.0)
    weak = batch.weak(batch.log_confidence)

    def weight(b: int, j: int) -> float:
        if not batch.there[1 - weak][j]:
            return 1.0
        w, s = (batch.similarity(m, b, j) - batch.similarity(m, b, b) for m in (weak, 1 - weak))
        return 1 + 3.0 * max(sigmoid(w) - sigmoid(s), 0.0)

    logs = [np.mean([math.log(weight(b, j)) for j in batch.others(b, weak)]) for b in batch.rows()]
    assert got.wpcl is not None
    assert got.log_beta is not None
    assert got.wpcl.item() == pytest.approx(batch.wpcl(weak, weight), rel=1e-9)
    assert got.log_beta.item() == pytest.approx(np.mean(logs), rel=1e-9)
    assert got.log_beta.item() > 0


@pytest.mark.parametrize("hardness", [0.5, 2.0])
def test_weights_of_hard_negatives_equal_the_reference(batch: Batch, hardness: float) -> None:
    got = batch.loss(wpcl_weight=1.0, wpcl_kind="hard_negatives", hardness=hardness)
    weak = batch.weak(batch.log_confidence)

    def weight(b: int, j: int) -> float:
        powers = {k: math.exp(hardness * batch.similarity(weak, b, k)) for k in batch.others(b, weak)}
        return len(powers) * powers[j] / sum(powers.values())

    assert got.wpcl is not None
    assert got.wpcl.item() == pytest.approx(batch.wpcl(weak, weight), rel=1e-9)


@pytest.mark.parametrize("options", [{"wpcl_kind": "per_negative", "alpha": 0.0}, {"wpcl_kind": "hard_negatives"}])
def test_equal_weights_are_the_unweighted_loss(batch: Batch, options: dict[str, Any]) -> None:
    got, plain = batch.loss(wpcl_weight=1.0, hardness=0.0, **options), batch.loss(wpcl_weight=1.0, alpha=0.0)
    assert got.wpcl is not None
    assert plain.wpcl is not None
    assert got.wpcl.item() == pytest.approx(plain.wpcl.item(), rel=1e-12)


def test_weights_of_negatives_turn_the_gradient_at_chance(pairs: Make, loss_of: LossOf) -> None:
    """In a large batch at chance one β per row leaves the gradient's direction; weights of negatives change it."""
    rng = np.random.default_rng(1)
    sides = [rng.normal(size=(200, 16)) for _ in range(4)]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    text = pairs(unit[0], unit[0])

    def direction(**options: Any) -> torch.Tensor:
        image = pairs(unit[2], unit[3])
        image.sequences.requires_grad_()
        loss = loss_of(text, image, temperature=0.5, wpcl_weight=1.0, confidence_gap=5.0, **options)
        return torch.autograd.grad(loss.wpcl, image.sequences)[0].flatten()

    plain = direction(alpha=0.0)

    def turned(**options: Any) -> float:
        return 1 - torch.cosine_similarity(plain, direction(**options), dim=0).item()

    assert turned(alpha=8.0) < 1e-5
    assert turned(wpcl_kind="per_negative", alpha=8.0) > 1e-3
    assert turned(wpcl_kind="hard_negatives", hardness=2.0) > 1e-2


# --- R1: inside the fused loss


@pytest.mark.parametrize("fusion", ["concat", "sum"])
@pytest.mark.parametrize("kind", ["one_sided", "auc"])
def test_shifted_negatives_equal_the_reference(batch: Batch, fusion: str, kind: str) -> None:
    got = batch.loss(negative_shift=0.2, fusion=fusion, gap_kind=kind)
    weak = batch.weak(batch.log_confidence)

    def sides(b: int, j: int) -> tuple[list[Array], list[Array], list[int]]:
        left = [batch.vectors[m][0][b] for m in (0, 1) if batch.here[m][b]]
        right = [batch.vectors[m][1][j] for m in (0, 1) if batch.there[m][j]]
        return left, right, [m for m in (0, 1) if batch.here[m][b] and batch.there[m][j]]

    def fused(b: int, j: int, gamma: float) -> float | None:
        left, right, shared = sides(b, j)
        if not left or not right or (fusion == "concat" and not shared):
            return None
        parts = [batch.similarity(m, b, j) for m in (0, 1)]
        if fusion == "concat":
            score, scale = float(np.mean([parts[m] for m in shared])), 2.0
        else:
            one, other = np.sum(left, axis=0), np.sum(right, axis=0)
            scale = float(np.linalg.norm(one) * np.linalg.norm(other))
            score = float(one @ other) / scale / TEMPERATURE
        moved = 2 * gamma * (parts[weak] - parts[1 - weak]) / scale if len(shared) == 2 and b != j else 0.0
        return score + moved

    losses = []
    for b in range(SIZE):
        gamma = 0.2 * math.tanh(batch.gap(kind, weak, b)) if b in batch.rows() else 0.0
        own = fused(b, b, gamma)
        if own is not None:
            others = [s for j in batch.others(b) if (s := fused(b, j, gamma)) is not None]
            losses.append(math.log1p(sum(math.exp(other - own) for other in others)))
    assert got.total is got.nce
    assert got.nce.item() == pytest.approx(np.mean(losses), rel=1e-9)
    assert got.nce.item() != pytest.approx(batch.loss(fusion=fusion).nce.item(), rel=1e-6)


def test_the_shift_moves_repulsion_from_the_strong_to_the_weak_modality(random_pairs: Make) -> None:
    """∂L/∂z_s^m of the negatives has the weight ½ ± γ tanh(g): with γ = ½ the strong modality would lose all of it."""
    text, image = random_pairs(10, 6, 1), random_pairs(10, 6, 2)
    for part in (text, image):
        part.sequences.requires_grad_()
    ids, histories = torch.arange(10), torch.full((10, 1), -1)
    config = loss_config(
        temperature=1.0, fusion="concat", negative_shift=0.5, gap_kind="one_sided", confidence_gap_decay=1.0
    )
    text.sequences.data *= 50  # the log-ratio gap reaches its clip in the rows where the text is right
    loss = method_loss(text, image, ids, histories, config, confidence_gap=1.0)
    from_text, from_image = torch.autograd.grad(loss.nce, (text.sequences, image.sequences))
    with torch.no_grad():
        by_text, by_image = text.sequences @ text.items.T, image.sequences @ image.items.T
        gap = (by_text.log_softmax(1) - by_image.log_softmax(1)).diagonal().clamp(min=0, max=4)
        gamma = 0.5 * torch.tanh(gap)[:, None] * (1 - torch.eye(10))
        probability = ((by_text + by_image) / 2 + gamma * (by_image - by_text)).softmax(1)
        toward = probability - torch.eye(10)
        np.testing.assert_allclose(from_text, (toward * (0.5 - gamma)) @ text.items / 10, atol=1e-12)
        np.testing.assert_allclose(from_image, (toward * (0.5 + gamma)) @ image.items / 10, atol=1e-12)
    assert gamma.max() > 0.49


def test_no_gap_no_shift(random_pairs: Make, loss_of: LossOf) -> None:
    same = random_pairs(8, 5, seed=0)
    for fusion in ("concat", "sum"):
        plain = loss_of(same, same, temperature=0.3, fusion=fusion)
        assert loss_of(same, same, temperature=0.3, fusion=fusion, negative_shift=0.25).nce.item() == plain.nce.item()


def test_a_hidden_modality_is_not_shifted(batch: Batch) -> None:
    """Modality dropout: what the fused loss does not see of a history cannot be moved."""
    hidden = torch.zeros(SIZE, 2, dtype=torch.bool)
    hidden[:, 1] = True
    config = {"temperature": TEMPERATURE, "fusion": "concat"}
    shifted, plain = (
        method_loss(*batch.pairs, batch.ids, batch.histories, loss_config(**config, negative_shift=s), hidden=hidden)
        for s in (0.25, 0.0)
    )
    assert shifted.nce.item() == plain.nce.item()


@pytest.mark.parametrize("temperature", [1e-6, 1e-2, 1e6])
@pytest.mark.parametrize("kind", ["per_negative", "hard_negatives"])
@pytest.mark.parametrize("gap_kind", ["one_sided", "own_scale", "auc"])
@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_extreme_temperatures_stay_finite(
    random_pairs: Make, loss_of: LossOf, temperature: float, kind: str, gap_kind: str, fusion: str
) -> None:
    made = [random_pairs(16, 8, seed, 0.2) for seed in (1, 2)]
    sides = [
        ModalityPairs(m.sequences.float().requires_grad_(), m.items.float(), m.sequence_present, m.item_present)
        for m in made
    ]
    loss = loss_of(
        *sides,
        temperature=temperature,
        wpcl_weight=1.0,
        wpcl_kind=kind,
        gap_kind=gap_kind,
        fusion=fusion,
        negative_shift=0.25,
        weak_by="auc",
    )
    loss.total.backward()
    assert math.isfinite(loss.total.item())
    for side in sides:
        assert side.sequences.grad is not None
        assert torch.isfinite(side.sequences.grad).all()


# --- CRTR with the positive


def test_relations_with_the_positive_by_hand(pairs: Make) -> None:
    """Two items: with its own item each history has two to compare; text prefers the own one, the image the other."""
    text, image = pairs(np.eye(2), np.eye(2)), pairs(np.eye(2), np.eye(2)[::-1].copy())
    options: dict[str, Any] = {"temperature": 1.0, "relation_temperature": 2.0, "image_weak": None}
    excluded = torch.eye(2, dtype=torch.bool)
    got = crtr_loss(text, image, torch.arange(2), excluded, **options, positive=True).item()
    p = sigmoid(0.5)
    assert got == pytest.approx((p - (1 - p)) * 0.5 / 2)  # log p − log(1 − p) = ½; items alone have one other
    assert crtr_loss(text, image, torch.arange(2), excluded, **options).item() == 0.0


def test_relations_with_the_positive_are_configured(random_pairs: Make, loss_of: LossOf) -> None:
    text, image = random_pairs(8, 5, 0), random_pairs(8, 5, 1)
    with_it, without = (
        loss_of(text, image, temperature=0.3, crtr_weight=1.0, relation_positive=kept).crtr.item()
        for kept in (True, False)
    )
    assert with_it != pytest.approx(without, rel=1e-3)
