"""Computes from the figures whether each goal of the method's bench holds, at each fusion by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from bench.method.method_plan import IMAGE_ALONE, OURS_LINE, REMEDY_LINES, SFT_LINE
from bench.method.method_ratios import RowRatio, RowRatios
from bench.method.method_readings import FUSED, Reading
from training.config.types import Fusion


@dataclass(frozen=True)
class Claim:
    """A ratio of two means with a bound.

    Attributes:
        text: the statement.
        reading: what is compared: ``fused``, ``text`` or ``image``.
        above: the group whose chosen row is the numerator.
        below: groups, of which the best that was measured counts.
        bound: of the ratio.
        at_least: whether the ratio must not be below the bound; else not above it.
        whole_above: the lower end of the interval must be above this too; None for any.
        premise: says of plain fine-tuning whether there is anything to mend; no goal.
    """

    text: str
    reading: str
    above: str
    below: tuple[str, ...]
    bound: float
    at_least: bool = True
    whole_above: float | None = None
    premise: bool = False


def _goals(fusion: Fusion) -> tuple[Claim, ...]:
    ours, sft = OURS_LINE[fusion], SFT_LINE[fusion]
    return (
        Claim("SFT's image utilisation is ≤ 0.6", "image", sft, (IMAGE_ALONE,), 0.6, at_least=False, premise=True),
        Claim(
            "VLM2Rec's fused ranking is ≥ 1.03 × SFT's, the interval above 1", FUSED, ours, (sft,), 1.03,
            whole_above=1.0,
        ),
        Claim("VLM2Rec's image utilisation is ≥ 0.9", "image", ours, (IMAGE_ALONE,), 0.9),
        Claim("VLM2Rec's text only is no worse than SFT's", "text", ours, (sft,), 1.0),
        Claim("VLM2Rec's fused ranking is above the best simple remedy's", FUSED, ours, REMEDY_LINES[fusion], 1.0),
    )  # fmt: skip


FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
GOALS: Mapping[Fusion, tuple[Claim, ...]] = {fusion: _goals(fusion) for fusion in FUSIONS}
"""What every catalogue is held to; both sides of a ratio have the same fusion."""


def checked(claim: Claim, ratios: RowRatios, chosen: Mapping[str, str]) -> dict[str, Any]:
    """Compare a claim with the figures.

    Args:
        claim: what is said.
        ratios: of the catalogue.
        chosen: group → name of the row that stands for it.

    Returns:
        ``statement``, ``bound`` and ``premise``; ``ratio``, a :class:`bench.method.method_ratios.RowRatio`;
        ``measured`` and ``compared_with``, names of the rows; ``holds``, and ``clear``: whether the whole interval is
        on the same side of the bound. All but the first three are None where something was not measured.
    """
    about = {"statement": claim.text, "bound": claim.bound, "premise": claim.premise}
    above = _chosen(claim.above, claim.reading, chosen)
    measured = [one for line in claim.below if (one := _chosen(line, claim.reading, chosen)) in ratios]
    best = max(measured, key=ratios.mean, default=None)
    ratio = None if best is None else ratios.ratio(above, best)
    if best is None or ratio is None:
        return {**about, **dict.fromkeys(("ratio", "measured", "compared_with", "holds", "clear"))}
    found = ratio.interval
    right = _right(claim, found.ratio)
    return {
        **about,
        "ratio": ratio,
        "measured": above.row,
        "compared_with": best.row,
        "holds": right and (claim.whole_above is None or found.low > claim.whole_above),
        "clear": all(_right(claim, end) == right for end in (found.low, found.high)),
    }


def simple_remedies(fusion: Fusion, ratios: RowRatios, chosen: Mapping[str, str]) -> dict[str, RowRatio]:
    """Row of each simple remedy that was measured at a fusion → VLM2Rec's fused ranking over it."""
    ours = _chosen(OURS_LINE[fusion], FUSED, chosen)
    rivals = [_chosen(line, FUSED, chosen) for line in REMEDY_LINES[fusion]]
    return {one.row: ratio for one in rivals if (ratio := ratios.ratio(ours, one)) is not None}


def _chosen(line: str, reading: str, chosen: Mapping[str, str]) -> Reading:
    return Reading(chosen.get(line, line), reading)


def _right(claim: Claim, value: float) -> bool:
    return value >= claim.bound if claim.at_least else value <= claim.bound
