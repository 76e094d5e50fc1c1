"""Defines what `make bench-method` trains: catalogues, the rows of their tables, seeds and goals.

Rows of one group are candidates for one line of the comparison: the row with the best fused NDCG@10 on
validation, averaged over the seeds, is chosen. The table has fresh users' figures of the chosen row alone. A line has
one fusion, so that losses are compared at the same fusion.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from training.config.renamed_keys import former_key
from training.config.types import Fusion

TEXT_ALONE, IMAGE_ALONE = "text-alone", "image-alone"
SFT_LINE: Mapping[Fusion, str] = {"sum": "sft-sum", "concat": "sft-concat"}
OURS_LINE: Mapping[Fusion, str] = {"sum": "vlm2rec-sum", "concat": "vlm2rec-concat"}
REMEDY_LINES: Mapping[Fusion, tuple[str, ...]] = {
    "sum": ("nu-sum", "dropout-sum", "vision-rate-sum"),
    "concat": ("nu-concat",),
}
"""Groups that goals and utilisation speak of, by fusion."""
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
        seeds: how many of the plan's seeds, from the first; None for all. A row with fewer seeds than another of its
            group is compared on validation alone.
    """

    name: str
    title: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    frozen: bool = False
    seeds: int | None = None

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
    """

    name: str
    title: str
    demo: Mapping[str, Any]
    base: Mapping[str, Any]
    rows: tuple[Row, ...]


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
        for number, seed in enumerate(self.seeds):
            for catalogue in self.catalogues:
                for row in catalogue.rows:
                    if row.seeds is None or number < row.seeds:
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
_MARGIN: Mapping[Fusion, Mapping[str, Any]] = {
    "sum": {"loss.wpcl_weight": 1.0, "loss.alpha": 1.0, "loss.crtr_weight": 0.3, **_SUM},
    "concat": {"loss.wpcl_weight": 1.0, "loss.alpha": 1.0, "loss.crtr_weight": 0.1, **_CONCAT},
}
_R2: Mapping[str, Any] = {
    "loss.wpcl_kind": "per_negative", "loss.wpcl_weight": 0.5, "loss.alpha": 4.0, "loss.weak_by": "auc",
    "loss.crtr_weight": 0.0,
}  # fmt: skip
"""The `[loss]` of the preset ``towers-minilm``."""
R1: Mapping[str, Any] = {
    "loss.negative_shift": 0.25, "loss.gap_kind": "own_scale", "loss.weak_by": "auc",
    "loss.wpcl_weight": 0.0, "loss.crtr_weight": 0.0,
}  # fmt: skip
R3: Mapping[str, Any] = {
    "loss.wpcl_kind": "hard_negatives", "loss.wpcl_weight": 0.5, "loss.hardness": 1.0, "loss.weak_by": "auc",
    "loss.crtr_weight": 0.0,
}  # fmt: skip
RELATION_TEMPERATURES = (1.0, 2.0, 4.0)


def relations(temperature: float) -> Mapping[str, Any]:
    """CRTR with the positive: λ .1 τ_r², as its gradient falls with the square of the temperature."""
    weight = round(0.1 * temperature**2, 6)
    return {
        "loss.crtr_weight": weight, "loss.relation_positive": True, "loss.relation_temperature": temperature,
    }  # fmt: skip


def _fused(fusion: Fusion) -> Mapping[str, Any]:
    return {"loss.fusion": fusion}


def _sft(fusion: Fusion) -> Row:
    return Row(SFT_LINE[fusion], f"SFT, {fusion}", {**SFT, **_fused(fusion)})


def _unweighted(fusion: Fusion) -> Row:
    title = f"SFT + an unweighted loss per modality (ν .5), {fusion}"
    return Row(f"nu-{fusion}", title, {**SFT, **_fused(fusion), "loss.unimodal_weight": 0.5})


def _ours(fusion: Fusion) -> tuple[Row, ...]:
    """The candidates for VLM2Rec at one fusion: the margin and R2 with all seeds, the others with one."""
    line, at = OURS_LINE[fusion], _fused(fusion)
    strength = f"μ 1, α 1, λ {'.3' if fusion == 'sum' else '.1'}"
    by_auc = {**_MARGIN[fusion], "loss.weak_by": "auc"}
    return (
        Row(line, f"VLM2Rec ({strength}), {fusion}", _MARGIN[fusion]),
        Row(f"r2-{fusion}", f"VLM2Rec, R2 (μ .5, α 4, weak by AUC, λ 0), {fusion}", {**_R2, **at}, group=line),
        Row(f"r1-{fusion}", f"R1 (γ .25, μ 0, λ 0), {fusion}", {**R1, **at}, group=line, seeds=1),
        Row(f"r3-{fusion}", f"R3 (μ .5, η 1, λ 0), {fusion}", {**R3, **at}, group=line, seeds=1),
        *(
            Row(
                f"gap-{kind.replace('_', '-')}-{fusion}",
                f"VLM2Rec ({strength}), weak by AUC, gap `{kind}`, {fusion}",
                {**by_auc, "loss.gap_kind": kind}, group=line, seeds=1,
            )
            for kind in ("one_sided", "auc")
        ),
        *(
            Row(
                f"r2-crtr-{temperature:g}-{fusion}",
                f"R2 + CRTR with the positive (λ .1 τ_r², τ_r {temperature:g}), {fusion}",
                {**_R2, **at, **relations(temperature)},
                group=line, seeds=1,
            )
            for temperature in RELATION_TEMPERATURES
        ),
    )  # fmt: skip


_BOTH_FUSIONS: tuple[Row, ...] = (
    *_ALONE,
    _sft("sum"),
    _sft("concat"),
    *_ours("sum"),
    *_ours("concat"),
    _unweighted("sum"),
    _unweighted("concat"),
)
COLLAPSE: tuple[Row, ...] = (
    Row("frozen", "untrained", _SUM, frozen=True),
    *_BOTH_FUSIONS,
    Row("wpcl-sum", "SFT + WPCL (μ 1, α 1), sum", {**_MARGIN["sum"], "loss.crtr_weight": 0.0}),
    Row("crtr-sum", "SFT + CRTR (λ .3), sum", {**SFT, **_SUM, "loss.crtr_weight": 0.3}),
    Row("weak-plain-sum", "VLM2Rec with α = 0: the weak loss unweighted, sum", {**_MARGIN["sum"], "loss.alpha": 0.0}),
    Row("dropout-sum", "SFT + modality dropout .5, sum", {**SFT, **_SUM, "loss.modality_dropout": 0.5}),
    Row("vision-rate-sum", "SFT, image tower at three times the rate, sum", {**SFT, **_SUM, "train.vision_rate": 3.0}),
)
"""`docs/experiments/vlm.md` says how the settings were chosen."""

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
        ),
        CataloguePlan(
            "shared-theme",
            "equal preferences, one theme shown in both, 80 % consistent, 300 steps",
            {"theme": 0.8},
            {**_BASE, "train.steps": 300},
            _BOTH_FUSIONS,
        ),
        CataloguePlan(
            "strong-text",
            "a stronger preference in text (3.5) than in pictures (2.5), independent, 500 steps",
            {"text_preference": 3.5},
            {**_BASE, "train.steps": 500},
            _BOTH_FUSIONS,
        ),
    )
)

_SMOKE_LINES = frozenset({"frozen", TEXT_ALONE, IMAGE_ALONE, *SFT_LINE.values(), *OURS_LINE.values()})
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
        ),
    ),
    seeds=(0, 1),
)
"""Seconds instead of hours, to see that everything runs; its figures mean nothing."""
