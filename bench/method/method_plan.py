"""Defines what `make bench-method` trains: catalogues, the rows of their tables, seeds and goals.

Rows of one group are candidates for one line of the comparison: the row with the best fused NDCG@10 on
validation, averaged over the seeds, is chosen. Fresh users are ranked once, after that.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from training.config.renamed_keys import former_key

SFT_LINE, OURS_LINE, TEXT_ALONE, IMAGE_ALONE = "sft", "vlm2rec", "text-alone", "image-alone"
"""Groups that goals and utilisation speak of."""
_FORMAT = 1
"""Counts up when what a unit measures changes, so that every unit is done again."""


@dataclass(frozen=True)
class Row:
    """A training configuration, one row of the table.

    Attributes:
        name: unique in its catalogue; letters, digits and hyphens.
        title: what the table calls it.
        overrides: dotted key → value, as :func:`training.config.run_config.load_config` takes them, over those of the
            catalogue.
        group: rows among which validation chooses; default a group of its own.
        frozen: the model that training would start from.
    """

    name: str
    title: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    frozen: bool = False

    @property
    def line(self) -> str:
        """The group."""
        return self.group or self.name


@dataclass(frozen=True)
class CataloguePlan:
    """A made catalogue and what is trained on it.

    Attributes:
        name: unique; letters, digits and hyphens.
        title: one line on what it is.
        demo: arguments of :func:`demo.build.build_demo`.
        base: dotted key → value, for every row.
        rows: what is trained.
        goal: ``collapse`` or ``balanced``, a key of :data:`bench.method.method_goals.GOALS`; empty = held to nothing.
    """

    name: str
    title: str
    demo: Mapping[str, Any]
    base: Mapping[str, Any]
    rows: tuple[Row, ...]
    goal: str = ""


@dataclass(frozen=True)
class Unit:
    """One training run with its measurement.

    Attributes:
        catalogue: what it is trained on.
        row: how.
        seed: of the training; the catalogue and its users have a seed of their own.
    """

    catalogue: CataloguePlan
    row: Row
    seed: int

    @property
    def name(self) -> str:
        """``CATALOGUE/ROW/SEED``, also the place of its directory."""
        return f"{self.catalogue.name}/{self.row.name}/{self.seed}"

    @property
    def overrides(self) -> dict[str, Any]:
        """Dotted key → value of the run."""
        return {**self.catalogue.base, **self.row.overrides, "train.seed": self.seed}

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a hash of the unit's plan."""
        overrides = {former_key(key): value for key, value in self.overrides.items()}
        said = [_FORMAT, dict(self.catalogue.demo), overrides, self.row.frozen]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class MethodPlan:
    """The plan of a run: catalogues and seeds.

    Attributes:
        catalogues: in the order of the page.
        seeds: of the training runs.
    """

    catalogues: tuple[CataloguePlan, ...]
    seeds: tuple[int, ...] = (0, 1, 2)

    def units(self) -> Iterator[Unit]:
        """All runs, one seed of everything before the next."""
        for seed in self.seeds:
            for catalogue in self.catalogues:
                for row in catalogue.rows:
                    yield Unit(catalogue, row, seed)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


SFT: Mapping[str, Any] = {"loss.wpcl_weight": 0.0, "loss.crtr_weight": 0.0}
_SUM: Mapping[str, Any] = {"loss.fusion": "sum"}
_CONCAT: Mapping[str, Any] = {"loss.fusion": "concat"}
_ALONE: tuple[Row, ...] = (
    Row(TEXT_ALONE, "trained on texts alone", {**SFT, "train.modalities": ["text"]}),
    Row(IMAGE_ALONE, "trained on pictures alone", {**SFT, "train.modalities": ["image"]}),
)
_OURS: Mapping[str, Any] = {"loss.wpcl_weight": 1.0, "loss.alpha": 1.0, "loss.crtr_weight": 0.3, **_SUM}
_OURS_CONCAT: Mapping[str, Any] = {"loss.wpcl_weight": 1.0, "loss.alpha": 1.0, "loss.crtr_weight": 0.1, **_CONCAT}

COLLAPSE: tuple[Row, ...] = (
    Row("frozen", "untrained", _SUM, frozen=True),
    *_ALONE,
    Row(SFT_LINE, "SFT, sum (as published)", {**SFT, **_SUM}),
    Row("sft-concat", "SFT, concat", {**SFT, **_CONCAT}),
    Row("wpcl", "SFT + WPCL (μ 1, α 1), sum", {**_OURS, "loss.crtr_weight": 0.0}),
    Row("crtr", "SFT + CRTR (λ .3), sum", {**SFT, **_SUM, "loss.crtr_weight": 0.3}),
    Row(OURS_LINE, "VLM2Rec (μ 1, α 1, λ .3), sum", _OURS),
    Row("vlm2rec-concat", "VLM2Rec (μ 1, α 1, λ .1), concat", _OURS_CONCAT),
    Row("weak-plain", "VLM2Rec with α = 0: the weak loss unweighted, sum", {**_OURS, "loss.alpha": 0.0}),
    Row("nu", "SFT + an unweighted loss per modality (ν .5), sum", {**SFT, **_SUM, "loss.unimodal_weight": 0.5}),
    Row("dropout", "SFT + modality dropout .5, sum", {**SFT, **_SUM, "loss.modality_dropout": 0.5}),
    Row("vision-rate", "SFT, image tower at three times the rate, sum", {**SFT, **_SUM, "train.vision_rate": 3.0}),
)
"""SFT fuses by the sum, as published; `docs/experiments/vlm.md` says how the settings of the others were chosen."""

BALANCED: tuple[Row, ...] = (
    *_ALONE,
    Row("sft-sum", "SFT, sum", {**SFT, **_SUM}, group=SFT_LINE),
    Row("sft-concat", "SFT, concat", {**SFT, **_CONCAT}, group=SFT_LINE),
    Row("vlm2rec-sum", "VLM2Rec (μ 1, α 1, λ .3), sum", _OURS, group=OURS_LINE),
    Row("vlm2rec-concat", "VLM2Rec (μ 1, α 1, λ .1), concat", _OURS_CONCAT, group=OURS_LINE),
    Row("nu", "SFT + an unweighted loss per modality (ν .5), concat", {**SFT, **_CONCAT, "loss.unimodal_weight": 0.5}),
)

STRONG_TEXT: tuple[Row, ...] = (
    *(row for row in COLLAPSE if row.name in {TEXT_ALONE, IMAGE_ALONE, SFT_LINE, "sft-concat", OURS_LINE, "nu"}),
    Row("vlm2rec-concat", "VLM2Rec (μ 1, α 1, λ .1), concat", _OURS_CONCAT, group=OURS_LINE),
)

_BASE: Mapping[str, Any] = {
    "train.batch_size": 48,
    "vlm.max_text_tokens": 12,
    "train.validate_every": 0,
    "train.diagnose_every": 50,
}

PLAN = MethodPlan(
    catalogues=(
        CataloguePlan(
            "equal-preferences",
            "equal preferences in text and picture, independent of each other (the default demo catalogue), 400 steps",
            {},
            {**_BASE, "train.steps": 400},
            COLLAPSE,
            goal="collapse",
        ),
        CataloguePlan(
            "shared-theme",
            "equal preferences, one theme shown in both, 80 % consistent, 300 steps",
            {"theme": 0.8},
            {**_BASE, "train.steps": 300},
            BALANCED,
            goal="balanced",
        ),
        CataloguePlan(
            "strong-text",
            "a stronger preference in text (3.5) than in pictures (2.5), independent, 500 steps",
            {"text_preference": 3.5},
            {**_BASE, "train.steps": 500},
            STRONG_TEXT,
            goal="collapse",
        ),
    )
)

_SMOKE_LINES = frozenset({"frozen", TEXT_ALONE, IMAGE_ALONE, SFT_LINE, "sft-concat", OURS_LINE, "vlm2rec-concat"})
SMOKE = MethodPlan(
    catalogues=(
        CataloguePlan(
            "smoke",
            "forty items, three steps",
            {"items": 40, "users": 60, "evaluation_users": 80, "without_text": 1, "without_image": 1},
            {
                "train.steps": 3,
                "train.batch_size": 8,
                "train.validate_every": 3,
                "train.log_every": 1,
                "train.diagnose_every": 1,
                "vlm.scratch.layers": 1,
                "vlm.scratch.vision_layers": 1,
                "vlm.scratch.vocabulary": 320,
                "vlm.scratch.hidden_size": 16,
                "vlm.scratch.heads": 2,
                "vlm.scratch.vision_hidden_size": 16,
                "vlm.scratch.vision_heads": 2,
            },
            tuple(row for row in COLLAPSE if row.name in _SMOKE_LINES),
            goal="collapse",
        ),
    ),
    seeds=(0, 1),
)
"""Seconds instead of hours, to see that everything runs; its figures mean nothing."""
