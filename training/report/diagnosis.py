"""Judges whether a modality is collapsing, by rules that the report shows."""

# The decisive figure is utilisation, which needs a second run. Without one there are only signs: a modality that
# contributes little to the joint model may be neglected, or may have little information.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from training.config.types import MODALITIES
from training.finetune.training_run import TrainingRun
from training.report.utilisation import Utilisation

COLLAPSED, USED = 0.6, 0.9
"""Utilisation up to which a modality counts as collapsed, and from which as fully used."""
LITTLE_GRADIENT = 0.2
"""Share of the gradient below which a modality is hardly trained any more."""
LITTLE_FOUND = 0.5
"""Ratio to the other modality's NDCG@10 below which a modality is far behind."""
FEW_DIRECTIONS = 2.0
"""Effective rank below which vectors lie on little more than a line."""
Kind = Literal["good", "warn", "bad", "unknown"]


@dataclass(frozen=True)
class Diagnosis:
    """The verdict at the top of the report.

    Attributes:
        kind: ``good``, ``warn``, ``bad`` or ``unknown``.
        headline: in a few words.
        reasons: a sentence each, with the numbers.
    """

    kind: Kind
    headline: str
    reasons: tuple[str, ...]


def judge(run: TrainingRun, utilisations: Sequence[Utilisation]) -> Diagnosis:
    """Judge a run.

    Args:
        run: the run.
        utilisations: of the modalities with a run of their own.
    """
    if len(run.modalities) == 1:
        return Diagnosis("unknown", f"Trained on {run.modalities[0]} alone", ("There is nothing to balance.",))
    if not run.history.lines:
        return Diagnosis("unknown", "Nothing was logged yet", ())
    signs = [_crowded(run), _neglected(run), _far_behind(run)]
    reasons = tuple(reason for _, reason in signs if reason)
    flat = signs[0][0]
    suspects = [modality for modality, _ in signs if modality]
    if flat:
        return Diagnosis("bad", f"The {flat} vectors have collapsed", reasons)
    if utilisations:
        return _by_utilisation(utilisations, reasons)
    if not reasons:
        return Diagnosis("unknown", "The log does not tell how the modalities fare", ())
    if not suspects:
        return Diagnosis("good", "Both modalities are alive", reasons)
    if len(suspects) > 1 and len(set(suspects)) == 1:
        return Diagnosis("bad", f"The {suspects[0]} side is falling behind", reasons)
    return Diagnosis("warn", f"The {' or '.join(sorted(set(suspects)))} side may be falling behind", reasons)


def gradient_share(run: TrainingRun, modality: str) -> float | None:
    """Share of a modality in the norms of the gradient on both, late in the run; None if it was not measured."""
    norms = {name: run.history.late(f"gradient {name}") for name in MODALITIES}
    own, total = norms[modality], sum(norm or 0.0 for norm in norms.values())
    return None if own is None or None in norms.values() or total <= 0 else own / total


def _by_utilisation(utilisations: Sequence[Utilisation], reasons: tuple[str, ...]) -> Diagnosis:
    ratios = [(found, found.ratio) for found in utilisations]
    measured = sorted((ratio, found.modality) for found, ratio in ratios if ratio is not None)
    words = tuple(_used(found) for found in utilisations)
    if not measured:
        return Diagnosis("unknown", "Nothing can be said about utilisation", words + reasons)
    least, modality = measured[0]
    if least <= COLLAPSED:
        return Diagnosis("bad", f"The {modality} side has collapsed", words + reasons)
    if least < USED:
        return Diagnosis("warn", f"The {modality} side is not fully used", words + reasons)
    used = f"The {modality} side is" if len(measured) == 1 else "Text and image are both"
    return Diagnosis("good", f"{used} fully used", words + reasons)


def _used(found: Utilisation) -> str:
    if found.ratio is None:
        return f"Trained alone, {found.modality} finds nothing, so there is nothing to use."
    return (
        f"Utilisation of {found.modality}: {found.ratio:.2f} (by {found.modality} alone the joint model reaches an "
        f"NDCG@10 of {found.joint:.4f}, a model trained on {found.modality} alone {found.alone:.4f})."
    )


def _crowded(run: TrainingRun) -> tuple[str | None, str | None]:
    ranks = {name: run.history.late(f"effective rank {name}") for name in MODALITIES}
    known = {name: rank for name, rank in ranks.items() if rank is not None}
    if not known:
        return None, None
    least = min(known, key=lambda name: known[name])
    words = " and ".join(f"{rank:.1f} ({name})" for name, rank in known.items())
    return (least if known[least] < FEW_DIRECTIONS else None), f"The vectors use {words} directions."


def _neglected(run: TrainingRun) -> tuple[str | None, str | None]:
    share = gradient_share(run, "image")
    if share is None:
        return None, None
    weak = "image" if share < LITTLE_GRADIENT else ("text" if 1 - share < LITTLE_GRADIENT else None)
    return weak, f"Image gets {100 * share:.0f} % of the gradient late in the run, text {100 - 100 * share:.0f} %."


def _far_behind(run: TrainingRun) -> tuple[str | None, str | None]:
    text, image = run.validated("text"), run.validated("image")
    if text is None or image is None or max(text, image) <= 0:
        return None, None
    weak = "image" if image < LITTLE_FOUND * text else ("text" if text < LITTLE_FOUND * image else None)
    return weak, f"NDCG@10 by image alone is {image:.4f}, by text alone {text:.4f}."
