"""Reads the evaluation of the encoder that ``vlm2rec evaluate --json`` wrote, for the gate and the report.

The file has tables of systems, each with NDCG@10 and its ratio to popularity on the same users. It names the encoder
that it measured, and the build rejects it for a bundle with another encoder.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.bundle.encoder_pair import EncoderPair, encoder_hash
from index.errors import IndexSpecError

SYSTEMS: Mapping[str, str] = {
    "served_quality": "served encoder",
    "text_quality": "text only",
    "image_quality": "image only",
}
"""Figure → name of the system in the evaluation."""

METRIC = "ndcg@10"


class _EvaluationPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _System(_EvaluationPart):
    name: str
    value: float = Field(alias="ndcg@10")
    ratio_to_popularity: dict[str, tuple[float | None, float | None, float | None]]


class _Table(_EvaluationPart):
    name: str
    users: int = Field(ge=1)
    items: int = Field(ge=1)
    exclude_seen: bool | None = None
    rows: tuple[_System, ...]


class _Encoder(_EvaluationPart):
    hash: str
    served: str | None = None


class _Model(_EvaluationPart):
    encoder: _Encoder


class _EvaluationFile(_EvaluationPart):
    tables: tuple[_Table, ...] = Field(min_length=1)
    model: _Model
    lists: dict[str, float] = {}


@dataclass(frozen=True)
class SystemScore:
    """NDCG@10 of one system, and its ratio to popularity.

    Attributes:
        name: name of the system in the evaluation.
        ndcg: NDCG@10, mean over the users, 0 … 1; higher is better.
        ratio: ratio to NDCG@10 of popularity on the same users; None if that is 0.
        low: lower end of the 95 % interval of the ratio.
        high: upper end of that interval.
    """

    name: str
    ndcg: float
    ratio: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Quality:
    """The evaluation of a bundle's encoder.

    Attributes:
        targets: the held-out events: ``test``, ``validation`` or ``fresh users``.
        users: number of users.
        systems: every system of the evaluation's first table, in its order.
        evaluation: the content of the whole file.
    """

    targets: str
    users: int
    systems: tuple[SystemScore, ...]
    evaluation: Mapping[str, Any]

    @classmethod
    def read(
        cls,
        evaluation: Mapping[str, Any],
        encoder: Path,
        *,
        exclude_seen: bool = True,
        lists: Mapping[str, float] | None = None,
        refit: EncoderPair | None = None,
    ) -> "Quality":
        """Validate an evaluation and read its first table; a table of cold items may follow.

        Args:
            evaluation: content of the file that ``vlm2rec evaluate --json`` wrote.
            encoder: ``encoder.onnx`` of the bundle that is being built; not read if it was refitted.
            exclude_seen: whether recommendations from that bundle exclude the items of the user's history by default.
            lists: weights of the bundle's item-to-item lists by name, empty for none; None checks no lists.
            refit: the encoders of a refitted bundle; None if the measured encoder serves.

        Raises:
            IndexSpecError: the evaluation has another form or a number that is not finite, or it measured another
                encoder, other lists or another ``exclude_seen``.
        """
        try:
            file = _EvaluationFile.model_validate_json(json.dumps(evaluation, allow_nan=False))
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
        _check_encoders(file.model.encoder, encoder, refit)
        if lists is not None and file.lists != lists:
            raise IndexSpecError(
                f"the evaluation measured {_described(file.lists)}, this bundle gets {_described(lists)}; evaluate "
                "again, or build without the evaluation"
            )
        table = file.tables[0]
        if table.exclude_seen not in {None, exclude_seen}:
            raise IndexSpecError(
                f"the evaluation measured results with exclude_seen = {str(table.exclude_seen).lower()}, this bundle "
                f"has {str(exclude_seen).lower()}; evaluate again, or build without the evaluation"
            )
        systems = tuple(
            SystemScore(row.name, row.value, *row.ratio_to_popularity.get(METRIC, (None, None, None)))
            for row in table.rows
        )
        return cls(table.name, table.users, systems, evaluation)

    def figures(self) -> dict[str, float]:
        """Ratio to popularity by figure, without systems that were not measured or have no ratio."""
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


def _check_encoders(named: _Encoder, encoder: Path, refit: EncoderPair | None) -> None:
    """Check that an evaluation measured the bundle's encoder or, after a refit, names exactly its two encoders.

    Raises:
        IndexSpecError: it is of another encoder or of another pair.
    """
    own = encoder_hash(encoder) if refit is None else refit.measured
    if named.hash != own:
        gets = repr(own) if refit is None else f"the refit {refit.served!r} of {own!r}"
        raise IndexSpecError(
            f"the evaluation measured the encoder {named.hash[:60]!r}, this bundle gets {gets}; "
            "evaluate again, or build without the evaluation"
        )
    if refit is not None and named.served != refit.served:
        other = "none" if named.served is None else repr(named.served[:60])
        raise IndexSpecError(
            f"the evaluation of the encoder {own!r} names {other} as its refit, this bundle gets {refit.served!r}; "
            "evaluate again, or build without the evaluation"
        )


def _described(lists: Mapping[str, float]) -> str:
    weights = ", ".join(f"{name[:20]} {weight:g}" for name, weight in lists.items())
    return f"the item-to-item lists {weights}" if lists else "no item-to-item lists"
