"""The losses of VLM2Rec as functions of tensors: InfoNCE, WPCL and CRTR under one mask.

Published (Kim et al., arXiv 2603.17450): contrastive fine-tuning of sequence → next item; WPCL weights up the weak
modality's negatives; CRTR aligns the two modalities' similarity distributions by a bidirectional KL. Everything more
exact than that (the gap and its clip, the moving average, the masks, the two kinds of relations) is our reading: see
docs/method.md, "Our reading". Lower is better for every term.

All functions take vectors of the whole (global) batch of B pairs. Sums are taken in float32 at least.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.config.types import Fusion, GapKind, WeakBy
from training.losses.modality_pairs import ModalityPairs

GAP_CLIP = 4.0
"""Largest log-ratio gap that counts (our reading)."""
_MASKED = float("-inf")
_MIN_NORM = 1e-6


@dataclass(frozen=True)
class Similarities:
    """Scaled similarities of a batch with what may be compared.

    Attributes:
        logits: (B, B) float32 or float64, row = history, column = next item, divided by the temperature.
        negatives: (B, B) bool, the columns that count as negatives of a row; never the diagonal.
        rows: (B,) bool, the rows whose own pair is defined.
    """

    logits: Tensor
    negatives: Tensor
    rows: Tensor


@dataclass(frozen=True)
class MethodLoss:
    """What one batch gives.

    Attributes:
        total: scalar, ``nce`` plus the other terms, each times its weight; the nce itself if all weights are 0.
        nce: scalar.
        wpcl: scalar, None if its weight is 0.
        crtr: scalar, None if its weight is 0.
        unimodal: scalar, None if its weight is 0.
        lead: scalar, moving average of log c^text − log c^image after this batch; above 0 the image is the weak one.
            None if all weights are 0.
        gap: scalar, mean g over the rows with both modalities; None like ``lead``.
        log_beta: scalar, mean log β over these rows; None if WPCL is not computed.
        image_weak: scalar in [0, 1], share of these rows where the image is the weaker one; None like ``lead``.
        rows: number of pairs that entered ``nce``.
    """

    total: Tensor
    nce: Tensor
    wpcl: Tensor | None
    crtr: Tensor | None
    unimodal: Tensor | None
    lead: Tensor | None
    gap: Tensor | None
    log_beta: Tensor | None
    image_weak: Tensor | None
    rows: int


def false_negatives(item_ids: Tensor, histories: Tensor) -> Tensor:
    """Which columns must not be negatives of a row: the same item, or an item of the row's history.

    Args:
        item_ids: (B,) int64, the next items.
        histories: (B, L) int64, the items before them, padded with −1.

    Returns:
        (B, B) bool, True = leave out. The diagonal is always True: a pair is no negative of itself.
    """
    distinct, code = torch.unique(item_ids, return_inverse=True)
    place = torch.searchsorted(distinct, histories.contiguous()).clamp(max=len(distinct) - 1)
    place = place.masked_fill(distinct[place] != histories, len(distinct))  # of no item of this batch
    seen = torch.zeros(len(item_ids), len(distinct) + 1, dtype=torch.bool, device=item_ids.device)
    seen.scatter_(1, place, value=True)
    excluded: Tensor = seen[:, code] | (code[:, None] == code[None, :])
    return excluded


def similarities(pairs: ModalityPairs, excluded: Tensor, temperature: float) -> Similarities:
    """S^m = z_s^m (z_i^m)ᵀ / τ of one modality.

    Args:
        pairs: vectors and presence.
        excluded: (B, B) bool from :func:`false_negatives`.
        temperature: τ > 0.

    Returns:
        Logits with the mask of this modality: a column whose item lacks it is no negative.
    """
    logits = _product(pairs.sequences, pairs.items) / temperature
    return Similarities(logits, ~excluded & pairs.item_present[None, :] & _off_diagonal(logits), pairs.present)


def fused_similarities(
    text: ModalityPairs, image: ModalityPairs, excluded: Tensor, temperature: float, fusion: Fusion
) -> Similarities:
    """S over both modalities; with one modality missing, the other alone.

    Args:
        text: vectors of the text prompts.
        image: vectors of the image prompts.
        excluded: (B, B) bool from :func:`false_negatives`.
        temperature: τ > 0.
        fusion: ``sum`` is the published one, z = normalise(z^text + z^image) on either side, so S has cross terms;
            ``concat`` is the mean of the S^m over the modalities that a history and an item share, what serving uses.

    Returns:
        Logits; a row or column without any modality (``concat``: without a shared one) does not take part.
    """
    if fusion == "sum":
        logits = _product(_fuse(text, image, items=False), _fuse(text, image, items=True)) / temperature
        comparable = (text.sequence_present | image.sequence_present)[:, None] & (
            text.item_present | image.item_present
        )[None, :]
    else:
        shared_text = text.sequence_present[:, None] & text.item_present[None, :]
        shared_image = image.sequence_present[:, None] & image.item_present[None, :]
        by_text = _product(text.sequences, text.items).masked_fill(~shared_text, 0.0)
        by_image = _product(image.sequences, image.items).masked_fill(~shared_image, 0.0)
        shared = shared_text.to(by_text.dtype) + shared_image.to(by_text.dtype)
        logits = (by_text + by_image) / shared.clamp(min=1.0) / temperature
        comparable = shared_text | shared_image
    return Similarities(logits, ~excluded & comparable & _off_diagonal(logits), comparable.diagonal())


def info_nce(scores: Similarities) -> Tensor:
    """Cross-entropy of the diagonal among itself and the negatives, mean over the defined rows.

    Args:
        scores: logits and masks.

    Returns:
        Scalar ≥ 0; exactly 0 if no row is defined. For B orthonormal pairs it is log(e^{1/τ} + B − 1) − 1/τ.
    """
    return _mean_over(-log_confidence(scores), scores.rows)


def method_loss(
    text: ModalityPairs,
    image: ModalityPairs,
    item_ids: Tensor,
    histories: Tensor,
    *,
    temperature: float,
    fusion: Fusion = "sum",
    wpcl_weight: float = 0.0,
    crtr_weight: float = 0.0,
    unimodal_weight: float = 0.0,
    alpha: float = 1.0,
    hidden: Tensor | None = None,
    weak_by: WeakBy = "ema",
    gap_kind: GapKind = "log_ratio",
    relation_temperature: float = 1.0,
    detach_strong: bool = False,
    lead: float = 0.0,
    confidence_gap_decay: float = 0.9,
) -> MethodLoss:
    """L = L_nce + μ L_wpcl + λ L_crtr + ν L_unimodal over a global batch of B pairs.

    Args:
        text: vectors of the text prompts.
        image: vectors of the image prompts.
        item_ids: (B,) int64, next items.
        histories: (B, L) int64, items before them, padded with −1.
        temperature: τ > 0.
        fusion: see :func:`fused_similarities`.
        wpcl_weight: weight of WPCL; 0 = not computed.
        crtr_weight: weight of CRTR; 0 = not computed.
        unimodal_weight: weight of the sum of both modalities' own InfoNCE, the plain remedy; 0 = not computed.
        alpha: slope of β = 1 + α g.
        hidden: (B, 2) bool, histories whose text or image the fused loss does not see; None = none.
        weak_by: the weak modality of a row by the moving average (``ema``) or row by row (``row``).
        gap_kind: g = |log c^text − log c^image| clipped at 4, or |c^text − c^image|.
        relation_temperature: τ_r of CRTR.
        detach_strong: CRTR sends no gradient into the strong modality.
        lead: moving average of log c^text − log c^image before this batch; 0 at the start.
        confidence_gap_decay: weight of the old average.

    Returns:
        The terms. With all three weights 0, ``total`` is ``nce`` itself: plain contrastive fine-tuning.
    """
    text, image = text.widened(), image.widened()
    excluded = false_negatives(item_ids, histories)
    seen = (text, image) if hidden is None else (text.without(hidden[:, 0]), image.without(hidden[:, 1]))
    fused = fused_similarities(*seen, excluded, temperature, fusion)
    nce, rows = info_nce(fused), int(fused.rows.sum())
    if wpcl_weight == 0 and crtr_weight == 0 and unimodal_weight == 0:
        return MethodLoss(nce, nce, None, None, None, None, None, None, None, rows)
    by_text, by_image = similarities(text, excluded, temperature), similarities(image, excluded, temperature)
    balance = weak_modality(by_text, by_image, weak_by, gap_kind, lead, confidence_gap_decay)
    total, wpcl, crtr, unimodal, log_beta = nce, None, None, None, None
    if wpcl_weight != 0:
        row_log_beta = torch.log1p(alpha * balance.gap)
        wpcl = weak_penalised(by_text, by_image, balance, row_log_beta)
        log_beta = _mean_over(row_log_beta, balance.rows)
        total = total + wpcl_weight * wpcl
    if crtr_weight != 0:
        strong = balance.image_weak if detach_strong else None
        crtr = relational_topology(text, image, item_ids, excluded, temperature, relation_temperature, strong)
        total = total + crtr_weight * crtr
    if unimodal_weight != 0:
        unimodal = info_nce(by_text) + info_nce(by_image)
        total = total + unimodal_weight * unimodal
    image_weak, gap = (_mean_over(v, balance.rows) for v in ((balance.difference > 0).to(nce.dtype), balance.gap))
    return MethodLoss(total, nce, wpcl, crtr, unimodal, balance.lead, gap, log_beta, image_weak, rows)


@dataclass(frozen=True)
class Balance:
    """Which modality is weak, and by how much; no gradient flows through any of it.

    Attributes:
        difference: (B,) log c^text − log c^image; above 0 the image is weaker in this row.
        gap: (B,) g ≥ 0; 0 where a tie leaves the weak modality open.
        image_weak: (B,) bool, the image counts as the weak modality of this row.
        rows: (B,) bool, rows with both modalities on both sides.
        lead: scalar, the moving average after this batch.
    """

    difference: Tensor
    gap: Tensor
    image_weak: Tensor
    rows: Tensor
    lead: Tensor


@torch.no_grad()
def weak_modality(
    by_text: Similarities,
    by_image: Similarities,
    weak_by: WeakBy,
    gap_kind: GapKind,
    lead: float,
    confidence_gap_decay: float,
) -> Balance:
    """The weak modality of every row from the confidences c^m = softmax(S^m)[b] (our reading).

    Args:
        by_text: similarities of the text.
        by_image: similarities of the image.
        weak_by: ``ema``: one weak modality for the batch, by the moving average that includes this batch;
            ``row``: the lower confidence of each row.
        gap_kind: ``log_ratio`` or ``probability``.
        lead: the moving average before this batch.
        confidence_gap_decay: weight of the old average; a batch without a qualifying row leaves it as it was.

    Returns:
        The balance. An average of exactly 0 leaves the weak modality open: every gap is then 0, so β = 1.
    """
    rows = by_text.rows & by_image.rows
    log_text, log_image = log_confidence(by_text), log_confidence(by_image)
    difference = (log_text - log_image).masked_fill(~rows, 0.0)
    gap = difference.abs().clamp(max=GAP_CLIP)
    if gap_kind == "probability":
        gap = (log_text.exp() - log_image.exp()).masked_fill(~rows, 0.0).abs()
    moved = torch.full((), lead, dtype=difference.dtype, device=difference.device)
    if bool(rows.any()):
        moved = confidence_gap_decay * moved + (1 - confidence_gap_decay) * _mean_over(difference, rows)
    if weak_by == "row":
        return Balance(difference, gap, difference > 0, rows, moved)
    gap = torch.where(moved == 0, torch.zeros_like(gap), gap)
    return Balance(difference, gap, (moved > 0).expand_as(rows), rows, moved)


def weak_penalised(by_text: Similarities, by_image: Similarities, balance: Balance, log_beta: Tensor) -> Tensor:
    """WPCL: the weak modality's InfoNCE with log β added to its negatives' logits.

    Args:
        by_text: similarities of the text.
        by_image: similarities of the image.
        balance: the weak modality of each row.
        log_beta: (B,) log β ≥ 0, without gradient.

    Returns:
        Scalar, −mean_b log(e^{S_bb} / (e^{S_bb} + β_b Σ e^{S_bj})) over the rows with both modalities; 0 without one.
    """
    weak = balance.image_weak[:, None]
    logits = torch.where(weak, by_image.logits, by_text.logits)
    negatives = torch.where(weak, by_image.negatives, by_text.negatives)
    raised = logits + log_beta[:, None] * _off_diagonal(logits)
    return _mean_over(-log_confidence(Similarities(raised, negatives, balance.rows)), balance.rows)


def relational_topology(
    text: ModalityPairs,
    image: ModalityPairs,
    item_ids: Tensor,
    excluded: Tensor,
    temperature: float,
    relation_temperature: float,
    image_weak: Tensor | None,
) -> Tensor:
    """CRTR: ½ [KL(R^text ‖ R^image) + KL(R^image ‖ R^text)], the mean of sequence–item and item–item relations.

    Args:
        text: vectors of the text prompts.
        image: vectors of the image prompts.
        item_ids: (B,) int64; equal ids are no others of each other.
        excluded: (B, B) bool from :func:`false_negatives`.
        temperature: τ.
        relation_temperature: τ_r; R^m = softmax of S^m / τ_r over the others that both modalities share.
        image_weak: (B,) bool to keep the gradient out of the strong side of each row, or None to let it into both.

    Returns:
        Scalar ≥ 0; a row needs at least 2 shared others, without any such row exactly 0.
    """
    both = text.item_present & image.item_present
    scale = temperature * relation_temperature
    to_items = _symmetric_kl(
        _product(text.sequences, text.items) / scale,
        _product(image.sequences, image.items) / scale,
        ~excluded & both[None, :],
        text.sequence_present & image.sequence_present,
        image_weak,
    )
    between_items = _symmetric_kl(
        _product(text.items, text.items) / scale,
        _product(image.items, image.items) / scale,
        (item_ids[:, None] != item_ids[None, :]) & both[None, :],
        both,
        image_weak,
    )
    return (to_items + between_items) / 2


def _symmetric_kl(by_text: Tensor, by_image: Tensor, others: Tensor, rows: Tensor, image_weak: Tensor | None) -> Tensor:
    """½ mean over rows of both KL directions between two softmaxes over the same others; 0 without a row."""
    rows = rows & (others.sum(dim=1) >= 2)
    others = others | ~rows[:, None]  # a row that does not count gets a harmless full softmax instead of NaN
    if image_weak is not None:
        weak = image_weak[:, None]
        by_text = torch.where(weak, by_text.detach(), by_text)
        by_image = torch.where(weak, by_image, by_image.detach())
    log_text = torch.log_softmax(by_text.masked_fill(~others, _MASKED), dim=1).masked_fill(~others, 0.0)
    log_image = torch.log_softmax(by_image.masked_fill(~others, _MASKED), dim=1).masked_fill(~others, 0.0)
    # (p − q)(log p − log q) summed is KL(p‖q) + KL(q‖p); masked places have p = q = 1 here and give 0.
    both_ways = ((log_text.exp() - log_image.exp()) * (log_text - log_image)).sum(dim=1)
    return _mean_over(both_ways, rows) / 2


def log_confidence(scores: Similarities) -> Tensor:
    """(B,) log of softmax(S_b)[b] over the row's own pair and its negatives."""
    kept = scores.negatives | ~_off_diagonal(scores.logits)
    return torch.log_softmax(scores.logits.masked_fill(~kept, _MASKED), dim=1).diagonal()


def _mean_over(values: Tensor, rows: Tensor) -> Tensor:
    """Mean of (B,) values over the chosen rows; exactly 0, still joined to the graph, if none is chosen."""
    kept = torch.where(rows, values, torch.zeros_like(values))
    return kept.sum() / rows.sum().clamp(min=1)


def _fuse(text: ModalityPairs, image: ModalityPairs, *, items: bool) -> Tensor:
    """(B, D) normalise(z^text + z^image) over what is present."""
    if items:
        parts = ((text.items, text.item_present), (image.items, image.item_present))
    else:
        parts = ((text.sequences, text.sequence_present), (image.sequences, image.sequence_present))
    wide = torch.promote_types(parts[0][0].dtype, torch.float32)
    first, second = (vectors.to(wide).masked_fill(~present[:, None], 0.0) for vectors, present in parts)
    return functional.normalize(first + second, dim=1, eps=_MIN_NORM)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Left times right transposed in float32 at least, also inside an autocast region."""
    wide = torch.promote_types(left.dtype, torch.float32)
    with torch.autocast(left.device.type, enabled=False):
        return left.to(wide) @ right.to(wide).T


def _off_diagonal(square: Tensor) -> Tensor:
    """(B, B) bool, False on the diagonal."""
    return ~torch.eye(square.shape[0], dtype=torch.bool, device=square.device)
