"""Renders report.html of a training run as one self-contained page."""

# The page has no scripts and loads nothing. Titles and ids are untrusted: the template escapes every value, and the
# page's content security policy forbids scripts and requests as a second defence. Pictures are re-encoded from their
# pixels and embedded in the page.

import base64
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from index.bundle.quality import METRIC, Quality, SystemScore
from index.evaluation.plots import axis_over
from index.evaluation.report_page import as_share, page_environment
from training.data.thumbnails import make_thumbnail
from training.report import diagnosis
from training.report.data import RunReport
from training.report.diagnosis import gradient_share
from training.report.nearest_items import ShownItem

_TEMPLATE = "run.html"
_SIDE = 144
"""Pixels of a picture's longer side: shown at half of that, so that it is sharp on a dense screen."""
_MINUTE, _HOUR, _DAY = 60.0, 3_600.0, 86_400.0
_BARS: Mapping[str, tuple[str, str]] = {
    "served encoder": ("all slots", "every"),
    "text + image only": ("text + image", "both"),
    "text + image only, without lists": ("text + image, without lists", "both"),
    "text only": ("text only", "text"),
    "text only, without lists": ("text only, without lists", "text"),
    "image only": ("image only", "image"),
    "image only, without lists": ("image only, without lists", "image"),
    "behaviour only": ("behaviour only", "behaviour"),
    "behaviour only, without lists": ("behaviour only, without lists", "behaviour"),
}
"""System of the evaluation → label and colour of its bar."""


def render_run(report: RunReport, *, now: datetime | None = None) -> str:
    """The page.

    Args:
        report: the content.
        now: time of making, aware; None for the current time.
    """
    environment = page_environment(
        "training", "index", figure=as_figure, short=as_short, tone=tone, code=in_code, share=as_share
    )
    made = (now or datetime.now(UTC)).astimezone(UTC)
    return environment.get_template(_TEMPLATE).render(
        report=report,
        run=report.run,
        facts=_facts(report),
        tiles=_tiles(report),
        summary=_summary(report),
        bars=None if report.quality is None else _bars(report.quality),
        used=[{"found": each, "axis": axis_over([0.0, each.joint, each.alone])} for each in report.utilisations],
        rules=diagnosis,
        pictures=_pictures(report),
        made=f"{made:%Y-%m-%d %H:%M} UTC",
    )


def as_figure(value: float | None) -> str:
    """A measured number to four significant digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def as_short(value: float) -> str:
    """A measured number to three significant digits."""
    return f"{value:.3g}"


def as_span(seconds: float) -> str:
    """A length of time in the two largest units."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{int(seconds // _MINUTE)} min {int(seconds % _MINUTE)} s"
    if seconds < _DAY:
        return f"{int(seconds // _HOUR)} h {int(seconds % _HOUR // _MINUTE)} min"
    return f"{int(seconds // _DAY)} d {int(seconds % _DAY // _HOUR)} h"


def tone(name: str) -> str:
    """The CSS class of a log entry's colour."""
    last = name.rpartition(" ")[2]
    tones = {"text": "text", "image": "image", "model": "language", "tower": "vision", METRIC: "every"}
    return f"tone-{tones.get(last, 'plain')}"


def in_code(text: str) -> Markup:
    """A text with back-quoted parts as code; everything is escaped."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 and number < len(parts) - 1 else part
        for number, part in enumerate(parts)
    )


def _summary(report: RunReport) -> list[str]:
    """Sentences on what was trained, on which data and for how long."""
    run, options = report.run, report.run.config.train
    if not run.history.lines:
        return ["No training was logged in this run."]
    model = run.config.vlm.model
    what = f"The pretrained model {model}" if model else "A small vision-language model, made from scratch,"
    seen = "" if run.history.pairs is None else f", {run.history.pairs:,} pairs of a history and its next item"
    took = "" if run.history.seconds is None else f", in {as_span(run.history.seconds)} of training steps"
    sentences = [
        f"{what} was trained on {' and '.join(run.modalities)} of {len(report.dataset):,} items and the histories of "
        f"{report.histories:,} users: {run.history.steps:,} of {options.steps:,} steps{seen}{took}."
    ]
    if run.diverged:
        sentences.append(f"It was stopped because of the {run.diverged}, which was not finite.")
    elif not run.finished:
        sentences.append("It has not ended: what is shown is how far it has come.")
    elif run.history.steps < options.steps:
        sentences.append("It ended early, as the validation had not become better for a while.")
    if report.same_data is False:
        sentences.append(
            "Careful: it was trained on other data than this data set as it is now, so counts, titles and pictures may "
            "not be those that it saw."
        )
    return sentences


def _facts(report: RunReport) -> dict[str, str]:
    config = report.run.config
    loss, train = config.loss, config.train
    return {
        "Model": config.vlm.model or f"from scratch, width {config.vlm.scratch.hidden_size}",
        "Modalities": " + ".join(train.modalities),
        "Fusion": loss.fusion,
        "Loss": f"InfoNCE + {loss.wpcl_weight:g} · WPCL + {loss.crtr_weight:g} · CRTR",
        "α": f"{loss.alpha:g}",
        "τ": f"{loss.temperature:g}",
        "Weak modality by": {"ema": "moving average", "row": "row", "auc": "moving average of AUC"}[loss.weak_by],
        "Batch": f"{train.batch_size:,} windows",
        "Peak rate": f"{train.learning_rate:g}, {train.decay}",
        "Rate of the vision tower": f"× {train.vision_rate:g}",
        "Seed": f"{train.seed}",
    }


def _tiles(report: RunReport) -> list[tuple[str, str, str]]:
    """Name, figure and remark."""
    run = report.run
    tiles = [("Items", f"{len(report.dataset):,}", "in the catalogue")]
    if run.history.pairs is not None:
        tiles.append(("Pairs read", f"{run.history.pairs:,}", f"in {run.history.steps:,} steps"))
    if run.history.seconds is not None:
        rate = run.history.steps / run.history.seconds if run.history.seconds > 0 else 0.0
        tiles.append(("Time", as_span(run.history.seconds), f"{rate:.3g} steps a second"))
    fused = run.validated()
    if fused is not None:
        tiles.append(("NDCG@10", f"{fused:.4f}", f"held-out events, step {run.kept_step:,}"))
    text, image = run.validated("text"), run.validated("image")
    if text and image is not None and len(run.modalities) > 1:
        tiles.append(("Image over text", f"{image / text:.2f}", "NDCG@10 of each alone"))
    share = gradient_share(run, "image")
    if share is not None and len(run.modalities) > 1:
        tiles.append(("Gradient of image", as_share(round(share, 2)), "of both, late in the run"))
    tiles += [
        (f"{each.modality.capitalize()} utilisation", as_ratio(each.ratio), "of what it teaches alone")
        for each in report.utilisations
    ]
    return tiles


def as_ratio(ratio: float | None) -> str:
    """A ratio of two figures; a dash where the second is 0."""
    return "–" if ratio is None else f"{ratio:.2f}"


def _bars(quality: Quality) -> dict[str, Any]:
    by_name: dict[str, SystemScore] = {score.name: score for score in quality.systems}
    popular = by_name.get("popularity")
    shown = [(label, colour, by_name[name]) for name, (label, colour) in _BARS.items() if name in by_name]
    axis = axis_over([0.0, *(score.ndcg for _, _, score in shown), *([] if popular is None else [popular.ndcg])])
    rows = [
        {"label": label, "colour": colour, "score": score, "at": axis.at(score.ndcg)} for label, colour, score in shown
    ]
    return {
        "axis": axis,
        "rows": rows,
        "popular": popular,
        "popular_at": None if popular is None else axis.at(popular.ndcg),
    }


def _pictures(report: RunReport) -> dict[str, str]:
    """Item id → picture as a ``data:`` address; without items that have no readable picture."""
    found = {}
    for item in _items(report):
        if item.picture is not None and item.item_id not in found:
            made = make_thumbnail(item.picture, _SIDE)
            if made is not None:
                found[item.item_id] = "data:image/jpeg;base64," + base64.b64encode(made).decode("ascii")
    return found


def _items(report: RunReport) -> Iterable[ShownItem]:
    for example in report.examples:
        yield example.item
        for neighbours in example.nearest.values():
            yield from (neighbour.item for neighbour in neighbours)
