"""What `vlm2rec evaluate` found out about the model, read for the gate and the report.

The file is that of ``evaluate --json``: tables of systems, each with NDCG@10 and its ratio to popularity on the same
users. It names the encoder it measured, and a bundle with another encoder is not built from it: a good evaluation of
last week's model must not carry this week's.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.bundle.integrity import sha256_of
from index.errors import IndexSpecError

SYSTEMS: Mapping[str, str] = {
    "served_quality": "served encoder",
    "text_quality": "text only",
    "image_quality": "image only",
}
"""Figure → the system's name in the evaluation."""

METRIC = "ndcg@10"

_HASH_DIGITS = 16


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _System(_Part):
    name: str
    value: float = Field(alias="ndcg@10")
    ratio_to_popularity: dict[str, tuple[float | None, float | None, float | None]]


class _Table(_Part):
    name: str
    users: int = Field(ge=1)
    items: int = Field(ge=1)
    exclude_seen: bool | None = None
    rows: tuple[_System, ...]


class _Encoder(_Part):
    hash: str


class _Model(_Part):
    encoder: _Encoder


class _File(_Part):
    tables: tuple[_Table, ...] = Field(min_length=1)
    model: _Model


@dataclass(frozen=True)
class Score:
    """One system beside popularity.

    Attributes:
        name: of the system, as the evaluation calls it.
        ndcg: NDCG@10, mean over the users, 0 … 1; higher is better.
        ratio: to that of popularity on the same users; None where popularity has none.
        low: lower end of its 95 % interval.
        high: upper end.
    """

    name: str
    ndcg: float
    ratio: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Quality:
    """An evaluation of the encoder that goes into a bundle.

    Attributes:
        targets: which held-out events: ``test``, ``validation`` or ``fresh users``.
        users: how many.
        systems: every system of that table, as it stands there.
        evaluation: the whole file.
    """

    targets: str
    users: int
    systems: tuple[Score, ...]
    evaluation: Mapping[str, Any]

    @classmethod
    def read(cls, evaluation: Mapping[str, Any], encoder: Path, *, exclude_seen: bool = True) -> "Quality":
        """Take the figures out of an evaluation; its first table counts, one of cold items may follow.

        Args:
            evaluation: what ``vlm2rec evaluate --json`` wrote.
            encoder: ``encoder.onnx`` of the bundle that is being built.
            exclude_seen: whether that bundle leaves out what the user had before.

        Raises:
            IndexSpecError: it is of another form, has a number that is not finite, or measured another encoder or
                another way to answer.
        """
        try:
            file = _File.model_validate_json(json.dumps(evaluation, allow_nan=False))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise IndexSpecError(
                f"the evaluation is not what `vlm2rec evaluate --json` writes ({where}: {first['msg']}); evaluate again"
            ) from error
        except (TypeError, ValueError, RecursionError) as error:
            raise IndexSpecError(
                f"the evaluation figures must be JSON without NaN ({error}); evaluate again"
            ) from error
        own = sha256_of(encoder)[:_HASH_DIGITS]
        if file.model.encoder.hash != own:
            raise IndexSpecError(
                f"the evaluation measured the encoder {file.model.encoder.hash[:60]!r}, this bundle gets {own!r}; "
                "evaluate again, or take the evaluation away"
            )
        table = file.tables[0]
        if table.exclude_seen not in {None, exclude_seen}:
            raise IndexSpecError(
                f"the evaluation measured answers with exclude_seen = {str(table.exclude_seen).lower()}, this bundle "
                f"gives them with {str(exclude_seen).lower()}; evaluate again, or take the evaluation away"
            )
        systems = tuple(
            Score(row.name, row.value, *row.ratio_to_popularity.get(METRIC, (None, None, None))) for row in table.rows
        )
        return cls(table.name, table.users, systems, evaluation)

    def figures(self) -> dict[str, float]:
        """Ratio to popularity by figure; a system that was not measured, or has no ratio, is left out."""
        by_name = {score.name: score.ratio for score in self.systems}
        ratios = {figure: by_name.get(name) for figure, name in SYSTEMS.items()}
        return {figure: ratio for figure, ratio in ratios.items() if ratio is not None}

    def as_json(self) -> dict[str, Any]:
        """The section ``quality`` of ``report.json``."""
        return {
            "metric": METRIC,
            "targets": self.targets,
            "users": self.users,
            "systems": [asdict(score) for score in self.systems],
        }
