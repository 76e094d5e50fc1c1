"""Records the result of a re-index job, and the state that the next job reads."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.bundle.index_spec import OMITTED_AT_DEFAULT
from index.bundle.integrity import write_durably
from training.nightly.volume_bounds import Loss

STATE_FILE = "state.json"
_FORMAT_VERSION = 1
_REASONS_SHOWN = 1_000


@dataclass
class ReindexRecord:
    """The result of a job.

    Attributes:
        outcome: ``published``, ``nothing to do``, ``refused``, ``stopped``, ``interrupted``, ``busy``, ``failed``, or
            ``dry run``.
        exit_code: of the command.
        items: of the catalogue.
        new: items that the last table lacks.
        changed: items with another text or picture.
        unchanged: items whose stored row stays.
        deleted: items of the last table that no longer exist.
        to_embed: items without a vector.
        encoded: of these, items that the model encoded in this job.
        resumed: of these, items that an interrupted job had encoded.
        reused: changed items that needed no embedding, because their vectors were known by content.
        not_found: items whose picture does not exist.
        unreadable: item id → reason, for pictures that cannot be used.
        losses: losses of the data set since the current bundle.
        bundle: id of the bundle that was published, up to date, or refused.
        built: path of a refused bundle.
        pruned: ids of the deleted bundles.
        why: reasons for a new bundle, or remarks.
        error: the error that ended the job.
        seconds: duration.
    """

    outcome: str = "failed"
    exit_code: int = 2
    items: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    to_embed: int = 0
    encoded: int = 0
    resumed: int = 0
    reused: int = 0
    not_found: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)
    bundle: str | None = None
    built: str | None = None
    pruned: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0

    @property
    def saved(self) -> float:
        """Share of the catalogue that needed no embedding, 0 … 1."""
        return 1.0 - self.to_embed / self.items if self.items else 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file, with the first 1,000 unreadable pictures."""
        return {
            "outcome": self.outcome,
            "exit_code": self.exit_code,
            "bundle": self.bundle,
            "built": self.built,
            "items": {
                "total": self.items,
                "new": self.new,
                "changed": self.changed,
                "unchanged": self.unchanged,
                "deleted": self.deleted,
                "unreadable": len(self.unreadable),
                "not_found": self.not_found,
            },
            "embedding": {
                "needed": self.to_embed,
                "encoded": self.encoded,
                "resumed": self.resumed,
                "reused": self.reused,
                "saved": round(self.saved, 6),
            },
            "lost": {loss.check.bound: round(loss.check.value or 0.0, 6) for loss in self.losses},
            "unreadable": dict(list(self.unreadable.items())[:_REASONS_SHOWN]),
            "pruned": self.pruned,
            "why": self.why,
            "error": self.error,
            "seconds": round(self.seconds, 3),
        }


class ReindexState:
    """``RUN/reindex/state.json``: the last published bundle and the time of the last success.

    Args:
        directory: ``RUN/reindex``.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / STATE_FILE

    def read(self) -> dict[str, Any]:
        """The known ones of ``published`` (bundle id), ``inputs`` (fingerprints) and ``last_success`` (seconds since
        1970); empty if the file cannot be read.
        """
        try:
            found = json.loads(self._path.read_bytes())
            return dict(found) if found["format"] == _FORMAT_VERSION else {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    def last_success(self) -> float | None:
        """Seconds since 1970; None before the first success."""
        found = self.read().get("last_success")
        return float(found) if isinstance(found, int | float) else None

    def published(self, bundle: str | None, inputs: Mapping[str, str]) -> None:
        """Record a published bundle."""
        self._write({"published": bundle, "inputs": dict(inputs)})

    def succeeded(self) -> None:
        """Record a job without changes."""
        self._write({name: part for name, part in self.read().items() if name in {"published", "inputs"}})

    def clear_away(self) -> None:
        """Remove incomplete files of a killed job."""
        for path in self._path.parent.glob(f".{STATE_FILE}.*.part"):
            path.unlink(missing_ok=True)

    def _write(self, parts: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": _FORMAT_VERSION, **parts, "last_success": time.time()}
        write_durably(self._path, json.dumps(content, indent=2).encode() + b"\n")


def digest_of(value: object) -> str:
    """16 hex digits over a value: dataclasses by their fields, mappings by their keys, other objects by their repr."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: object) -> object:
    """A value as JSON-able values."""
    if dataclasses.is_dataclass(value):
        parts = {part: getattr(value, part.name) for part in dataclasses.fields(value)}
        return {
            part.name: _plain(own)
            for part, own in parts.items()
            if not (OMITTED_AT_DEFAULT in part.metadata and own == part.default)
        }
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
