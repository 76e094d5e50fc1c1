"""Computes from the figures whether each goal of the method's bench holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.method.method_plan import IMAGE_ALONE, OURS_LINE, SFT_LINE, TEXT_ALONE
from bench.method.method_readings import POPULARITY, Reading, Readings
from training.ranking.metrics import Interval


@dataclass(frozen=True)
class Claim:
    """A ratio of two means with a bound.

    Attributes:
        text: the statement.
        above: group and reading.
        below: groups and readings, of which the best counts.
        bound: of the ratio.
        at_least: whether the ratio must not be below the bound; else not above it.
    """

    text: str
    above: tuple[str, str]
    below: tuple[tuple[str, str], ...]
    bound: float
    at_least: bool = True


GOALS: Mapping[str, tuple[Claim, ...]] = {
    "collapse": (
        Claim(
            "trained on pictures alone, image only is ≥ 1.5 × popularity",
            (IMAGE_ALONE, "image"), ((POPULARITY, "fused"),), 1.5,
        ),
        Claim("SFT's image utilisation is ≤ 0.6", (SFT_LINE, "image"), ((IMAGE_ALONE, "image"),), 0.6, at_least=False),
        Claim("VLM2Rec's image utilisation is ≥ 0.9", (OURS_LINE, "image"), ((IMAGE_ALONE, "image"),), 0.9),
        Claim("VLM2Rec's text only is ≥ 0.95 × SFT's", (OURS_LINE, "text"), ((SFT_LINE, "text"),), 0.95),
        Claim("VLM2Rec's fused ranking is ≥ 1.05 × SFT's", (OURS_LINE, "fused"), ((SFT_LINE, "fused"),), 1.05),
        Claim(
            "VLM2Rec's fused ranking is above its own text only and image only",
            (OURS_LINE, "fused"), ((OURS_LINE, "text"), (OURS_LINE, "image")), 1.0,
        ),
        Claim(
            "VLM2Rec's fused ranking is above the models trained on one modality",
            (OURS_LINE, "fused"), ((TEXT_ALONE, "text"), (IMAGE_ALONE, "image")), 1.0,
        ),
    ),
    "balanced": (
        Claim("VLM2Rec's fused ranking is ≥ SFT's", (OURS_LINE, "fused"), ((SFT_LINE, "fused"),), 1.0),
        Claim("VLM2Rec's text only loses at most 5 % on SFT's", (OURS_LINE, "text"), ((SFT_LINE, "text"),), 0.95),
        Claim("VLM2Rec's image only loses at most 5 % on SFT's", (OURS_LINE, "image"), ((SFT_LINE, "image"),), 0.95),
    ),
}  # fmt: skip
"""What the catalogues of a plan are held to, by name."""


def checked(claim: Claim, readings: Readings, chosen: Mapping[str, str]) -> dict[str, Any]:
    """Compare a claim with the figures.

    Args:
        claim: what is said.
        readings: of the catalogue.
        chosen: group → name of the row that stands for it.

    Returns:
        ``statement`` and ``bound``; ``value``, ``low`` and ``high`` of the ratio; ``compared_with``, the row and
        reading that counts as the best; ``holds`` by the value, and ``clear``: whether the whole interval is on the
        same side of the bound. All but the first two are None where something was not measured.
    """
    rivals = [one for line, name in claim.below if (one := Reading(chosen.get(line, line), name)) in readings]
    line, name = claim.above
    above = Reading(chosen.get(line, line), name)
    best = max(rivals, key=readings.mean, default=None)
    # A statement about the best of several is open as long as one of them is.
    whole = len(rivals) == len(claim.below)
    ratio = readings.ratio(above, best) if best is not None and whole else None
    if best is None or ratio is None:
        nothing = dict.fromkeys(("value", "low", "high", "compared_with", "holds", "clear"))
        return {"statement": claim.text, "bound": claim.bound, **nothing}
    holds = _right(claim, ratio.ratio)
    return {
        "statement": claim.text,
        "bound": claim.bound,
        "value": ratio.ratio,
        "low": ratio.low,
        "high": ratio.high,
        "compared_with": f"{best.row} {best.name}",
        "holds": holds,
        "clear": _clear(claim, ratio, holds=holds),
    }


def _right(claim: Claim, value: float) -> bool:
    return value >= claim.bound if claim.at_least else value <= claim.bound


def _clear(claim: Claim, ratio: Interval, *, holds: bool) -> bool:
    return all(_right(claim, end) == holds for end in (ratio.low, ratio.high))
