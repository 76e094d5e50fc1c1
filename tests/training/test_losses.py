"""Losses against closed forms, a row-by-row numpy reference, and finite differences."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.losses import (
    ModalityPairs,
    false_negatives,
    fused_similarities,
    info_nce,
    method_loss,
    relational_topology,
    similarities,
    weak_modality,
)

Array = NDArray[np.float64]


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pairs(
    sequences: Array, items: Array, sequence_present: object = None, item_present: object = None
) -> ModalityPairs:
    """Pairs in float64 from arrays; everything present unless told."""
    there = np.ones(len(sequences), dtype=bool)
    return ModalityPairs(
        torch.tensor(sequences, dtype=torch.float64),
        torch.tensor(items, dtype=torch.float64),
        torch.tensor(np.asarray(there if sequence_present is None else sequence_present)),
        torch.tensor(np.asarray(there if item_present is None else item_present)),
    )


def value(scalar: Tensor | None) -> float:
    assert scalar is not None
    return scalar.item()


def no_histories(batch: int) -> Tensor:
    return torch.full((batch, 1), -1)


def random_pairs(batch: int, dim: int, seed: int, missing: float = 0.0) -> ModalityPairs:
    rng = np.random.default_rng(seed)
    sequences, items = unit(rng.normal(size=(batch, dim))), unit(rng.normal(size=(batch, dim)))
    here, there = rng.random(batch) >= missing, rng.random(batch) >= missing
    return pairs(sequences * here[:, None], items * there[:, None], here, there)


# --- closed forms


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_orthonormal_pairs_have_the_closed_form_loss(temperature: float, fusion: str) -> None:
    batch = 6
    same = pairs(np.eye(batch), np.eye(batch))
    loss = method_loss(same, same, torch.arange(batch), no_histories(batch), temperature=temperature, fusion=fusion)
    expected = math.log(math.exp(1 / temperature) + batch - 1) - 1 / temperature
    assert loss.total.item() == pytest.approx(expected, rel=1e-9)
    assert loss.rows == batch


def test_a_permuted_target_loses() -> None:
    batch, temperature = 6, 0.1
    right = pairs(np.eye(batch), np.eye(batch))
    wrong = pairs(np.eye(batch), np.roll(np.eye(batch), 1, axis=0))
    ids, histories = torch.arange(batch), no_histories(batch)
    assert method_loss(right, right, ids, histories, temperature=temperature).total.item() < 0.01
    # every row's own similarity is 0 and one negative's is 1
    expected = math.log(math.exp(1 / temperature) + batch - 1)
    assert method_loss(wrong, wrong, ids, histories, temperature=temperature).total.item() == pytest.approx(expected)


def test_weak_penalty_by_hand() -> None:
    """Text is perfect, the image knows nothing: c^image = 1/B, so g and β follow by hand."""
    batch, temperature = 4, 1.0
    text = pairs(np.eye(batch), np.eye(batch))
    blind = np.tile(np.eye(batch)[:1], (batch, 1))
    image = pairs(blind, blind)
    loss = method_loss(
        text,
        image,
        torch.arange(batch),
        no_histories(batch),
        temperature=temperature,
        mu=1.0,
        alpha=2.0,
        lead_decay=0.0,
    )
    log_text, log_image = 1 - math.log(math.e + 3), -math.log(4)
    beta = 1 + 2 * (log_text - log_image)
    assert value(loss.lead) == pytest.approx(log_text - log_image)
    assert value(loss.gap) == pytest.approx(log_text - log_image)
    assert value(loss.log_beta) == pytest.approx(math.log(beta))
    assert value(loss.wpcl) == pytest.approx(math.log(1 + 3 * beta))
    assert value(loss.image_weak) == 1.0


def test_the_log_ratio_gap_is_clipped_at_4() -> None:
    batch = 4
    text = pairs(np.eye(batch), np.eye(batch))
    image = pairs(np.eye(batch), np.roll(np.eye(batch), 1, axis=0))
    loss = method_loss(text, image, torch.arange(batch), no_histories(batch), temperature=0.01, mu=1.0)
    assert value(loss.gap) == 4.0
    assert value(loss.log_beta) == pytest.approx(math.log(5))


def test_relations_by_hand() -> None:
    """Three items: text similarities of the two others are 1 and 0, the image's 0 and 1."""
    items_text = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    items_image = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    text, image = pairs(items_text, items_text), pairs(items_image, items_image)
    got = relational_topology(text, image, torch.arange(3), torch.eye(3, dtype=torch.bool), 1.0, 1.0, None).item()
    p = math.e / (math.e + 1)
    opposed = p - (1 - p)  # ½ (KL + KL) of (p, 1 − p) against (1 − p, p), as log p − log(1 − p) = 1
    # row 0 is opposed; row 1: text (1, 0), image (0, 0); row 2: text (0, 0), image (1, 0)
    half = 0.5 * ((p - 0.5) * math.log(p / 0.5) + ((1 - p) - 0.5) * math.log((1 - p) / 0.5))
    assert got == pytest.approx((opposed + half + half) / 3)


def test_equal_modalities_have_no_relational_loss_and_no_penalty() -> None:
    same = random_pairs(8, 5, seed=0)
    loss = method_loss(same, same, torch.arange(8), no_histories(8), temperature=0.2, mu=1.0, lam=1.0)
    assert value(loss.crtr) == pytest.approx(0.0, abs=1e-12)
    assert value(loss.log_beta) == 0.0
    plain = info_nce(similarities(same, torch.eye(8, dtype=torch.bool), 0.2))
    assert value(loss.wpcl) == pytest.approx(plain.item(), rel=1e-12)


# --- weights of 0


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_zero_weights_are_plain_fine_tuning_bit_for_bit(fusion: str) -> None:
    text, image = random_pairs(9, 7, seed=1, missing=0.2), random_pairs(9, 7, seed=2, missing=0.2)
    for part in (text.sequences, text.items, image.sequences, image.items):
        part.requires_grad_()
    ids, histories = torch.arange(9) % 7, torch.arange(18).reshape(9, 2) % 7

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, (text.sequences, text.items, image.sequences, image.items)))

    off = method_loss(text, image, ids, histories, temperature=0.3, fusion=fusion, alpha=4.0, mu=0.0, lam=0.0)
    scores = fused_similarities(text, image, false_negatives(ids, histories), 0.3, fusion)
    plain = info_nce(scores)
    assert off.total is off.nce
    assert off.wpcl is None
    assert off.crtr is None
    assert off.total.item() == plain.item()
    assert all(torch.equal(a, b) for a, b in zip(gradients(off.total), gradients(plain), strict=True))


def test_alpha_0_is_an_unweighted_loss_on_the_weak_modality() -> None:
    text, image = random_pairs(9, 7, seed=1), random_pairs(9, 7, seed=2)
    ids, histories = torch.arange(9), no_histories(9)
    loss = method_loss(text, image, ids, histories, temperature=0.3, mu=1.0, alpha=0.0)
    weak = image if value(loss.lead) > 0 else text
    plain = info_nce(similarities(weak, torch.eye(9, dtype=torch.bool), 0.3))
    assert value(loss.wpcl) == pytest.approx(plain.item(), rel=1e-12)


# --- a reference, row by row


def reference(  # noqa: C901
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
    lead = 0.1 * float(np.mean([math.log(t / i) for t, i in gaps.values()])) if gaps else 0.0  # decay .9 from 0
    wpcl = []
    for b, (c_text, c_image) in gaps.items():
        gap = min(abs(math.log(c_text / c_image)), 4.0) if gap_kind == "log_ratio" else abs(c_text - c_image)
        weak = int(lead > 0) if weak_by == "ema" else int(c_text > c_image)
        wpcl.append(-math.log(confidence(*confidences[b][weak], beta=1 + alpha * gap)))
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
            scale = temperature * relation_temperature
            p, q = (
                np.exp([float((m[1] if between else m[0])[b] @ m[1][j]) / scale for j in others]) for m in modalities
            )
            p, q = p / p.sum(), q / q.sum()
            found.append(0.5 * float((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()))
        terms.append(float(np.mean(found)) if found else 0.0)
    return float(np.mean(nce)) if nce else 0.0, float(np.mean(wpcl)) if wpcl else 0.0, sum(terms) / 2


@pytest.mark.parametrize("fusion", ["sum", "concat"])
@pytest.mark.parametrize("weak_by", ["ema", "row"])
@pytest.mark.parametrize("gap_kind", ["log_ratio", "probability"])
@pytest.mark.parametrize(("missing", "seed"), [(0.0, 3), (0.3, 4), (0.7, 5)])
def test_every_term_equals_the_reference(fusion: str, weak_by: str, gap_kind: str, missing: float, seed: int) -> None:
    text, image = random_pairs(12, 6, seed, missing), random_pairs(12, 6, seed + 50, missing)
    rng = np.random.default_rng(seed)
    ids = torch.tensor(rng.integers(0, 9, size=12))  # repeats
    histories = torch.tensor(rng.integers(-1, 9, size=(12, 3)))
    got = method_loss(
        text, image, ids, histories, temperature=0.4, fusion=fusion, weak_by=weak_by, gap_kind=gap_kind,
        mu=0.7, lam=0.3, alpha=1.5, relation_temperature=2.0,
    )  # fmt: skip
    nce, wpcl, crtr = reference(
        text, image, ids, histories, fusion=fusion, weak_by=weak_by, gap_kind=gap_kind, temperature=0.4, alpha=1.5,
        relation_temperature=2.0,
    )  # fmt: skip
    assert got.nce.item() == pytest.approx(nce, rel=1e-9)
    assert value(got.wpcl) == pytest.approx(wpcl, rel=1e-9)
    assert value(got.crtr) == pytest.approx(crtr, rel=1e-9)
    assert got.total.item() == pytest.approx(nce + 0.7 * wpcl + 0.3 * crtr, rel=1e-9)


# --- masks


def test_false_negatives_are_the_same_item_and_items_of_the_history() -> None:
    excluded = false_negatives(torch.tensor([5, 7, 5]), torch.tensor([[7, -1], [-1, -1], [1, 2]]))
    assert excluded.tolist() == [[True, True, True], [False, True, False], [True, False, True]]


def test_a_false_negative_does_not_enter_its_row() -> None:
    """Item 1 is in row 0's history and is what row 0 is most like: with the mask that costs nothing."""
    sequences, items = np.eye(3), np.eye(3)
    sequences[0] = [0.6, 0.8, 0]
    text = pairs(sequences, items)
    masked = similarities(text, false_negatives(torch.arange(3), torch.tensor([[1], [-1], [-1]])), 0.1)
    row = math.log(1 + math.exp(-6))
    rest = math.log(1 + 2 * math.exp(-10))
    assert info_nce(masked).item() == pytest.approx((row + 2 * rest) / 3, rel=1e-9)


def test_a_missing_picture_leaves_the_text_alone() -> None:
    """Row 2's item has no picture: fused it is compared by its text, whatever stands in the picture's place."""
    batch = 4
    text = pairs(np.eye(batch), np.eye(batch))
    for filler in (0.0, 7.0):
        items = np.eye(batch)
        items[2] = filler
        image = pairs(np.eye(batch), items, item_present=[True, True, False, True])
        for fusion in ("sum", "concat"):
            scores = fused_similarities(text, image, torch.eye(batch, dtype=torch.bool), 1.0, fusion)
            assert scores.rows.all()
            assert scores.logits[2, 2].item() == pytest.approx(1.0)
        by_image = similarities(image, torch.eye(batch, dtype=torch.bool), 1.0)
        assert by_image.rows.tolist() == [True, True, False, True]
        assert not by_image.negatives[:, 2].any()


def test_a_pair_without_anything_to_compare_does_not_count() -> None:
    none = np.zeros(3, dtype=bool)
    text = pairs(np.eye(3), np.eye(3), item_present=none)
    image = pairs(np.eye(3), np.eye(3), sequence_present=none)
    loss = method_loss(text, image, torch.arange(3), no_histories(3), temperature=0.1, fusion="concat", mu=1.0, lam=1.0)
    assert loss.rows == 0
    assert loss.total.item() == 0.0
    assert value(loss.wpcl) == 0.0
    assert value(loss.lead) == 0.0


def test_no_qualifying_row_is_exactly_zero_with_zero_gradient() -> None:
    text = random_pairs(5, 4, seed=0)
    image = pairs(np.zeros((5, 4)), np.zeros((5, 4)), np.zeros(5, dtype=bool), np.zeros(5, dtype=bool))
    text.sequences.requires_grad_()
    loss = method_loss(text, image, torch.arange(5), no_histories(5), temperature=0.1, mu=1.0, lam=1.0, lead=0.7)
    assert value(loss.wpcl) == 0.0
    assert value(loss.crtr) == 0.0
    assert value(loss.lead) == pytest.approx(0.7)
    loss.total.backward()
    assert torch.isfinite(text.sequences.grad).all()


def test_relations_need_two_shared_others() -> None:
    text, image = random_pairs(2, 4, seed=0), random_pairs(2, 4, seed=1)
    assert (
        relational_topology(text, image, torch.arange(2), torch.eye(2, dtype=torch.bool), 0.1, 1.0, None).item() == 0.0
    )


def test_one_pair_alone_has_no_loss() -> None:
    one = random_pairs(1, 4, seed=0)
    loss = method_loss(one, one, torch.tensor([3]), torch.tensor([[1]]), temperature=0.1, mu=1.0, lam=1.0)
    assert loss.total.item() == 0.0


# --- gradients and dtypes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "concat"},
        {"mu": 1.0, "alpha": 0.0},
        {"lam": 1.0},
        {"fusion": "concat", "mu": 0.0, "lam": 1.0},
    ],
)
def test_gradients_agree_with_finite_differences(options: dict[str, float]) -> None:
    text, image = random_pairs(5, 4, seed=6), random_pairs(5, 4, seed=7, missing=0.3)
    ids, histories = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([[2], [-1], [-1], [0], [-1]])

    def total(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        left = ModalityPairs(a, b, text.sequence_present, text.item_present)
        right = ModalityPairs(c, d, image.sequence_present, image.item_present)
        return method_loss(left, right, ids, histories, temperature=0.5, **options).total

    inputs = [v.clone().requires_grad_() for v in (text.sequences, text.items, image.sequences, image.items)]
    assert torch.autograd.gradcheck(total, inputs)


def gradient_sizes(loss: Tensor, text: ModalityPairs, image: ModalityPairs) -> tuple[float, float]:
    parts = (text.sequences, text.items, image.sequences, image.items)
    found = torch.autograd.grad(loss, parts, allow_unused=True)
    sizes = [0.0 if g is None else g.abs().sum().item() for g in found]
    return sizes[0] + sizes[1], sizes[2] + sizes[3]


@pytest.mark.parametrize(("weak_by", "lead"), [("ema", 3.0), ("ema", -3.0), ("row", 0.0)])
def test_no_gradient_into_the_strong_side(weak_by: str, lead: float) -> None:
    text, image = random_pairs(6, 4, seed=6), random_pairs(6, 4, seed=7)
    for part in (text.sequences, text.items, image.sequences, image.items):
        part.requires_grad_()
    loss = method_loss(
        text, image, torch.arange(6), no_histories(6), temperature=0.5, lam=1.0, detach_strong=True, weak_by=weak_by,
        lead=lead,
    )  # fmt: skip
    into_text, into_image = gradient_sizes(loss.crtr, text, image)
    if weak_by == "ema":
        assert (into_text > 0, into_image > 0) == (lead < 0, lead > 0)
    else:
        assert into_text > 0
        assert into_image > 0


def test_the_gap_carries_no_gradient() -> None:
    """With the text strong throughout, WPCL moves the image alone although β depends on the text."""
    text, image = random_pairs(6, 4, seed=6), random_pairs(6, 4, seed=7)
    for part in (text.sequences, text.items, image.sequences, image.items):
        part.requires_grad_()
    loss = method_loss(text, image, torch.arange(6), no_histories(6), temperature=0.5, mu=1.0, lead=5.0)
    into_text, into_image = gradient_sizes(loss.wpcl, text, image)
    assert into_text == 0
    assert into_image > 0


def half(source: ModalityPairs, dtype: torch.dtype) -> ModalityPairs:
    return ModalityPairs(
        source.sequences.to(dtype), source.items.to(dtype), source.sequence_present, source.item_present
    )


def test_bfloat16_vectors_are_summed_in_float32() -> None:
    text, image = random_pairs(64, 32, seed=8), random_pairs(64, 32, seed=9)
    ids, histories = torch.arange(64), no_histories(64)
    low = [half(part, torch.bfloat16) for part in (text, image)]
    exact = [half(part, torch.float64) for part in low]  # the same rounded values, summed exactly
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = method_loss(*low, ids, histories, temperature=0.05, fusion="concat", mu=1.0, lam=1.0)
    expected = method_loss(*exact, ids, histories, temperature=0.05, fusion="concat", mu=1.0, lam=1.0)
    assert got.total.dtype == torch.float32
    assert got.total.item() == pytest.approx(expected.total.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [1e-6, 1e-3, 1e3, 1e6])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    text, image = half(random_pairs(16, 8, 1, 0.2), torch.float32), half(random_pairs(16, 8, 2, 0.2), torch.float32)
    for part in (text.sequences, text.items, image.sequences, image.items):
        part.requires_grad_()
    loss = method_loss(text, image, torch.arange(16), no_histories(16), temperature=temperature, mu=1.0, lam=1.0)
    loss.total.backward()
    assert math.isfinite(loss.total.item())
    for part in (text.sequences, text.items, image.sequences, image.items):
        assert torch.isfinite(part.grad).all()


def test_opposite_modalities_do_not_blow_up_the_sum() -> None:
    rows = np.eye(4)
    text, image = pairs(rows, rows), pairs(-rows, rows)
    text.sequences.requires_grad_()
    method_loss(text, image, torch.arange(4), no_histories(4), temperature=1.0, fusion="sum").total.backward()
    assert torch.isfinite(text.sequences.grad).all()


# --- the moving average


def balance_of(difference_sign: int, lead: float, decay: float) -> object:
    strong, blind = pairs(np.eye(4), np.eye(4)), pairs(np.ones((4, 4)) / 2, np.ones((4, 4)) / 2)
    text, image = (strong, blind) if difference_sign > 0 else (blind, strong)
    none = torch.eye(4, dtype=torch.bool)
    return weak_modality(similarities(text, none, 1.0), similarities(image, none, 1.0), "ema", "log_ratio", lead, decay)


@pytest.mark.parametrize(
    ("sign", "lead", "decay", "image_weak"),
    [(1, 0.0, 0.9, True), (-1, 0.0, 0.9, False), (1, -10.0, 0.9, False), (-1, 10.0, 0.9, True), (1, -10.0, 0.0, True)],
)
def test_the_weak_modality_follows_the_moving_average(sign: int, lead: float, decay: float, image_weak: bool) -> None:
    balance = balance_of(sign, lead, decay)
    assert balance.image_weak.tolist() == [image_weak] * 4
    now = sign * (1 - math.log(math.e + 3) + math.log(4))
    assert balance.lead.item() == pytest.approx(decay * lead + (1 - decay) * now)


def test_a_tie_of_the_average_leaves_beta_at_1() -> None:
    """Two rows that favour one modality each, exactly equally: gaps are there, but nothing is weak."""
    text, image = pairs(np.eye(2)[[0, 0]], np.eye(2)), pairs(np.eye(2)[[1, 1]], np.eye(2))
    ids, histories = torch.arange(2), no_histories(2)
    row = method_loss(text, image, ids, histories, temperature=1.0, mu=1.0, weak_by="row")
    tie = method_loss(text, image, ids, histories, temperature=1.0, mu=1.0, lead=0.0)
    assert value(row.log_beta) == pytest.approx(math.log(2))  # both gaps are 1
    assert value(tie.lead) == 0.0
    assert value(tie.log_beta) == 0.0


def test_the_loss_has_no_hidden_state() -> None:
    text, image = random_pairs(6, 4, seed=6), random_pairs(6, 4, seed=7)
    ids, histories = torch.arange(6), no_histories(6)
    first, second = (
        method_loss(text, image, ids, histories, temperature=0.5, mu=1.0, lam=1.0).total.item() for _ in range(2)
    )
    assert first == second
