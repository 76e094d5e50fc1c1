"""Combines InfoNCE, WPCL, CRTR and the per-modality losses into the training loss of a global batch."""

# Published (Kim et al., arXiv 2603.17450): contrastive fine-tuning of sequence → next item; WPCL weights up the weak
# modality's negatives; CRTR aligns the two modalities' similarity distributions by a bidirectional KL. Everything more
# exact is our reading, see docs/method.md: the gap and its clip, the moving average, the masks, the kinds of relations.

from dataclasses import dataclass

import torch
from torch import Tensor

from training.config.run_config import LossConfig
from training.losses.crtr import crtr_loss
from training.losses.info_nce import info_nce
from training.losses.modality_balance import weak_modality
from training.losses.modality_pairs import ModalityPairs
from training.losses.similarities import false_negatives, fused_similarities, mean_over, similarities
from training.losses.wpcl import wpcl_loss


@dataclass(frozen=True)
class MethodLoss:
    """The loss of one batch and its terms; lower is better for every term.

    Attributes:
        total: scalar, InfoNCE plus every other term times its weight; the InfoNCE itself if all weights are 0.
        nce: scalar, InfoNCE of the fused similarities.
        wpcl: scalar, None if its weight is 0.
        crtr: scalar, None if its weight is 0.
        unimodal: scalar, None if its weight is 0.
        confidence_gap: scalar, moving average of log c^text − log c^image after this batch; above 0 the image is the
            weak modality. None if all weights are 0.
        gap: scalar, mean g over the rows with both modalities; None if all weights are 0.
        log_beta: scalar, mean log β over these rows; None if WPCL is not computed.
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
        config: the weights μ, λ and ν and the options of each term; a term of weight 0 is not computed.
        hidden: (B, 2) bool, histories whose text or image the fused loss does not see; None = none.
        confidence_gap: moving average of log c^text − log c^image before this batch; 0 at the start.

    Returns:
        The terms. If all three weights are 0, ``total`` is ``nce`` itself: plain contrastive fine-tuning.
    """
    text, image = text.widened(), image.widened()
    excluded = false_negatives(item_ids, histories)
    seen = (text, image) if hidden is None else (text.without(hidden[:, 0]), image.without(hidden[:, 1]))
    fused = fused_similarities(*seen, excluded, config.temperature, config.fusion)
    nce, rows = info_nce(fused), int(fused.rows.sum())
    if config.wpcl_weight == 0 and config.crtr_weight == 0 and config.unimodal_weight == 0:
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
    total, wpcl, crtr, unimodal, log_beta = nce, None, None, None, None
    if config.wpcl_weight != 0:
        row_log_beta = torch.log1p(config.alpha * balance.gap)
        wpcl = wpcl_loss(by_text, by_image, balance, row_log_beta)
        log_beta = mean_over(row_log_beta, balance.rows)
        total = total + config.wpcl_weight * wpcl
    if config.crtr_weight != 0:
        crtr = crtr_loss(
            text,
            image,
            item_ids,
            excluded,
            temperature=config.temperature,
            relation_temperature=config.relation_temperature,
            image_weak=balance.image_weak if config.detach_strong else None,
        )
        total = total + config.crtr_weight * crtr
    if config.unimodal_weight != 0:
        unimodal = info_nce(by_text) + info_nce(by_image)
        total = total + config.unimodal_weight * unimodal
    image_weak, gap = (mean_over(v, balance.rows) for v in ((balance.difference > 0).to(nce.dtype), balance.gap))
    return MethodLoss(total, nce, wpcl, crtr, unimodal, balance.confidence_gap, gap, log_beta, image_weak, rows)
