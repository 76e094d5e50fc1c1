"""Combines InfoNCE, WPCL, CRTR and the per-modality losses into the training loss of a global batch."""

# Published (Kim et al., arXiv 2603.17450): contrastive fine-tuning of sequence → next item; WPCL weights up the weak
# modality's negatives; CRTR aligns the two modalities' similarity distributions by a bidirectional KL. Everything more
# exact is our reading, see docs/method.md: the gap and its clip, the moving average, the masks, the kinds of relations.

from dataclasses import dataclass

from torch import Tensor

from training.config.run_config import LossConfig
from training.losses.crtr import crtr_loss
from training.losses.info_nce import info_nce
from training.losses.modality_balance import ModalityBalance, weak_modality
from training.losses.modality_pairs import ModalityPairs
from training.losses.shifted_negatives import shifted_negatives
from training.losses.similarities import Similarities, false_negatives, fused_similarities, mean_over, similarities
from training.losses.wpcl import mean_log_weight, negative_log_weights, wpcl_loss


@dataclass(frozen=True)
class MethodLoss:
    """The loss of one batch and its terms; lower is better for every term.

    Attributes:
        total: scalar, InfoNCE plus every other term times its weight; the InfoNCE itself if all weights are 0.
        nce: scalar, InfoNCE of the fused similarities.
        wpcl: scalar, None if its weight is 0.
        crtr: scalar, None if its weight is 0.
        unimodal: scalar, None if its weight is 0.
        confidence_gap: scalar, moving average of text − image after this batch, of log c or of AUC (``weak_by``); above
            0 the image is the weak modality. None if all weights are 0.
        gap: scalar, mean g over the rows with both modalities; None if all weights are 0.
        log_beta: scalar, mean log weight of their negatives in WPCL, log β; None if WPCL is not computed.
        image_weak: scalar in [0, 1], share of these rows where the image is the weaker one; None if all weights are 0.
        rows: number of pairs in ``nce``.
    """

    total: Tensor
    nce: Tensor
    wpcl: Tensor | None
    crtr: Tensor | None
    unimodal: Tensor | None
    confidence_gap: Tensor | None
    gap: Tensor | None
    log_beta: Tensor | None
    image_weak: Tensor | None
    rows: int

    def terms(self) -> dict[str, float]:
        """The computed terms and figures by name, without the total and the moving average."""
        values = {
            "nce": self.nce,
            "wpcl": self.wpcl,
            "crtr": self.crtr,
            "unimodal": self.unimodal,
            "gap": self.gap,
            "log_beta": self.log_beta,
            "image_weak": self.image_weak,
        }
        return {name: value.item() for name, value in values.items() if value is not None}


def method_loss(
    text: ModalityPairs,
    image: ModalityPairs,
    item_ids: Tensor,
    histories: Tensor,
    config: LossConfig,
    *,
    hidden: Tensor | None = None,
    confidence_gap: float = 0.0,
) -> MethodLoss:
    """L = L_nce + μ L_wpcl + λ L_crtr + ν L_unimodal over a global batch of B pairs, summed in float32 at least.

    Args:
        text: vectors of the text prompts.
        image: vectors of the image prompts.
        item_ids: (B,) int64, next items.
        histories: (B, L) int64, items before them, padded with −1.
        config: the weights μ, λ and ν, the shift γ, and the options of each term; what is 0 is not computed.
        hidden: (B, 2) bool, histories whose text or image the fused loss does not see; None = none.
        confidence_gap: moving average of the modalities' difference before this batch; 0 at the start.

    Returns:
        The terms. If weights and shift are 0, ``total`` is ``nce`` itself: plain contrastive fine-tuning.
    """
    text, image = text.widened(), image.widened()
    excluded = false_negatives(item_ids, histories)
    seen = (text, image) if hidden is None else (text.without(hidden[:, 0]), image.without(hidden[:, 1]))
    fused = fused_similarities(*seen, excluded, config.temperature, config.fusion)
    rows = int(fused.rows.sum())
    if not (config.wpcl_weight or config.crtr_weight or config.unimodal_weight or config.negative_shift):
        nce = info_nce(fused)
        return MethodLoss(nce, nce, None, None, None, None, None, None, None, rows)
    by_text, by_image = (similarities(side, excluded, config.temperature) for side in (text, image))
    balance = weak_modality(
        by_text,
        by_image,
        weak_by=config.weak_by,
        gap_kind=config.gap_kind,
        confidence_gap=confidence_gap,
        decay=config.confidence_gap_decay,
    )
    if config.negative_shift:
        fused = shifted_negatives(
            fused, *seen, balance,
            shift=config.negative_shift, temperature=config.temperature, fusion=config.fusion,
        )  # fmt: skip
    total = nce = info_nce(fused)
    wpcl, crtr, unimodal, log_beta = None, None, None, None
    if config.wpcl_weight != 0:
        wpcl, log_beta = _wpcl(by_text, by_image, balance, config)
        total = total + config.wpcl_weight * wpcl
    if config.crtr_weight != 0:
        crtr = _crtr(text, image, item_ids, excluded, balance, config)
        total = total + config.crtr_weight * crtr
    if config.unimodal_weight != 0:
        unimodal = info_nce(by_text) + info_nce(by_image)
        total = total + config.unimodal_weight * unimodal
    image_weak, gap = (mean_over(v, balance.rows) for v in ((balance.difference > 0).to(nce.dtype), balance.gap))
    return MethodLoss(total, nce, wpcl, crtr, unimodal, balance.confidence_gap, gap, log_beta, image_weak, rows)


def _wpcl(
    by_text: Similarities, by_image: Similarities, balance: ModalityBalance, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """WPCL and the mean log weight of its negatives."""
    weights = negative_log_weights(
        by_text, by_image, balance, kind=config.wpcl_kind, alpha=config.alpha, hardness=config.hardness
    )
    if config.wpcl_kind == "margin":
        mean = mean_over(weights[:, 0], balance.rows)
    else:
        mean = mean_log_weight(weights, by_text, by_image, balance)
    return wpcl_loss(by_text, by_image, balance, weights), mean


def _crtr(
    text: ModalityPairs,
    image: ModalityPairs,
    item_ids: Tensor,
    excluded: Tensor,
    balance: ModalityBalance,
    config: LossConfig,
) -> Tensor:
    """CRTR as configured."""
    return crtr_loss(
        text,
        image,
        item_ids,
        excluded,
        temperature=config.temperature,
        relation_temperature=config.relation_temperature,
        image_weak=balance.image_weak if config.detach_strong else None,
        positive=config.relation_positive,
    )
