"""What `make bench-method` trains: catalogues, the rows of their tables, seeds and goals, as data.

Rows of one group are candidates for one line of the comparison: of each group the row with the best fused NDCG@10 on
validation, averaged over the seeds, stands for it. Fresh users are looked at once, after that.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SFT_LINE, OURS_LINE, TEXT_ALONE, IMAGE_ALONE = "sft", "vlm2rec", "text-alone", "image-alone"
"""Groups that goals and utilisation speak of."""
_FORMAT = 1
"""Counts up when what a unit measures changes, so that every unit is done again."""


@dataclass(frozen=True)
class Row:
    """One way to train.

    Attributes:
        name: unique in its catalogue; letters, digits and hyphens.
        title: what the table calls it.
        overrides: dotted key → value, as :func:`training.config.load_config` takes them, over those of the catalogue.
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
class Catalogue:
    """A made catalogue and what is trained on it.

    Attributes:
        name: unique; letters, digits and hyphens.
        title: one line on what it is.
        demo: arguments of :func:`demo.build.build_demo`.
        base: dotted key → value, for every row.
        rows: what is trained.
        goal: ``collapse`` or ``balanced``, a key of :data:`bench.method_goals.GOALS`; empty = held to nothing.
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

    catalogue: Catalogue
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
        """16 hex digits over all that the plan says of it."""
        said = [_FORMAT, dict(self.catalogue.demo), self.overrides, self.row.frozen]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """Everything that is trained.

    Attributes:
        catalogues: in the order of the page.
        seeds: of the training runs.
    """

    catalogues: tuple[Catalogue, ...]
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


SFT: Mapping[str, Any] = {"loss.mu": 0.0, "loss.lam": 0.0}
WPCL: Mapping[str, Any] = {"loss.mu": 0.5, "loss.lam": 0.0}
CRTR: Mapping[str, Any] = {"loss.mu": 0.0, "loss.lam": 0.1}
BOTH: Mapping[str, Any] = {"loss.mu": 0.5, "loss.lam": 0.1}


def _of_each_fusion(name: str, title: str, overrides: Mapping[str, Any]) -> tuple[Row, Row]:
    """The same for both fusions, of which validation chooses one."""
    concat, total = (
        Row(f"{name}-{fusion}", f"{title}, {fusion}", {**overrides, "loss.fusion": fusion}, group=name)
        for fusion in ("concat", "sum")
    )
    return concat, total


ROWS: tuple[Row, ...] = (
    Row("frozen", "untrained", frozen=True),
    Row(TEXT_ALONE, "trained on texts alone", {**SFT, "train.modalities": ["text"]}),
    Row(IMAGE_ALONE, "trained on pictures alone", {**SFT, "train.modalities": ["image"]}),
    *_of_each_fusion(SFT_LINE, "SFT", SFT),
    *_of_each_fusion("wpcl", "+ WPCL", WPCL),
    *_of_each_fusion("crtr", "+ CRTR", CRTR),
    *_of_each_fusion(OURS_LINE, "VLM2Rec", BOTH),
    *_of_each_fusion("weak-plain", "extra loss on the weak modality, α = 0", {**WPCL, "loss.alpha": 0.0}),
    *_of_each_fusion("vision-rate", "SFT, image tower at three times the rate", {**SFT, "train.vision_rate": 3.0}),
)

BASE: Mapping[str, Any] = {"train.steps": 600}

PLAN = Plan(
    catalogues=(
        Catalogue(
            "shared-theme",
            "one theme shown in both, 80 % consistent",
            {"theme": 0.8},
            BASE,
            ROWS,
            goal="collapse",
        ),
        Catalogue(
            "equal-tastes",
            "equal tastes, independent",
            {},
            BASE,
            ROWS,
            goal="balanced",
        ),
    )
)

SMOKE = Plan(
    catalogues=(
        Catalogue(
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
            tuple(row for row in ROWS if row.line in {"frozen", TEXT_ALONE, IMAGE_ALONE, SFT_LINE, OURS_LINE}),
            goal="collapse",
        ),
    ),
    seeds=(0, 1),
)
"""Seconds instead of hours, to see that everything runs; its figures mean nothing."""
