"""Finds modalities that most items have but that hardly count in the answers of a bundle."""

# Everything follows from the figures of the gate, so bundles of earlier versions are judged, too, and nothing more is
# stored.

from collections.abc import Mapping
from dataclasses import dataclass

from index.items.slots import IMAGE, TEXT

LEAST_SHARE = 0.05
"""Share of the scores below which a modality hardly counts."""
_MOST_MISSING = 0.5
REMEDY = (
    "train with another backbone (vlm.family), set encoder.whiten, raise its weight, or leave the modality out; the "
    "bounds slot_share.SLOT and text_quality or image_quality make it a refusal"
)


@dataclass(frozen=True)
class UnusedModality:
    """A modality that more than half of the items have but that hardly counts.

    Attributes:
        slot: ``text`` or ``image``.
        present: share of the items that have it, 0 … 1.
        share: its share of the scores of plain answers, its lists included, 0 … 1; None if it was not measured.
        quality: NDCG@10 of its slot alone over that of popularity; None if it was not measured.
    """

    slot: str
    present: float
    share: float | None
    quality: float | None

    def __str__(self) -> str:
        """What is wrong, as one phrase."""
        found = []
        if self.share is not None and self.share < LEAST_SHARE:
            found.append(f"it gives {100 * self.share:.2g} % of the scores")
        if self.quality is not None and self.quality < 1:
            found.append(f"alone it ranks worse than popularity ({self.quality:.2f} ×)")
        return f"{self.slot}: {100 * self.present:.3g} % of the items have it, but {' and '.join(found)}"


def unused_modalities(figures: Mapping[str, float]) -> tuple[UnusedModality, ...]:
    """Modalities of most items with less than 5 % of the scores, or worse than popularity alone.

    Args:
        figures: of the gate, by name; a slot without figures is passed over.
    """
    found = []
    for slot in (TEXT, IMAGE):
        missing = figures.get(f"missing.{slot}")
        if missing is None or missing >= _MOST_MISSING:
            continue
        share, quality = figures.get(f"slot_share.{slot}"), figures.get(f"{slot}_quality")
        if (share is not None and share < LEAST_SHARE) or (quality is not None and quality < 1):
            found.append(UnusedModality(slot, 1 - missing, share, quality))
    return tuple(found)
