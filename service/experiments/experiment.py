"""Defines an experiment: its arms, and which of them a user is in."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_FORMAT: Final = 1
_INTERLEAVED_FORMAT: Final = 2  # a service that cannot interleave must not run it as arms of users
_INTERLEAVED_ARMS: Final = 2
_MOST_KEY_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer.

    Attributes:
        name: of the arm.
        share: of the users, 0 … 1.
        bundle: id of the bundle that answers; None in all arms: the active one.
        defaults: fields of a request that it does not set itself, as in ``{"diversity": 0.3}``.
    """

    name: str
    share: float
    bundle: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Experiment:
    """Arms among which users are divided.

    Attributes:
        name: of the experiment.
        salt: key of the hash that divides the users; another salt divides them anew.
        arms: at least two, the first of them the control; their shares sum to 1.
        interleave: whether every answer has items of both arms, see `service.experiments.team_draft`; there are two.
    """

    name: str
    salt: str
    arms: tuple[Arm, ...]
    interleave: bool = False

    @property
    def bundles(self) -> frozenset[str]:
        """Ids of the bundles that its arms name."""
        return frozenset(arm.bundle for arm in self.arms if arm.bundle is not None)

    def arm_of(self, unit: str) -> Arm:
        """The arm of a user, always the same."""
        key = self.salt.encode()[:_MOST_KEY_BYTES]
        point = int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8, key=key).digest()) / 2**64
        for arm in self.arms[:-1]:
            if point < arm.share:
                return arm
            point -= arm.share
        return self.arms[-1]

    def label(self, arm: Arm) -> str:
        """Experiment and arm, as in ``prices/control``."""
        return f"{self.name}/{arm.name}"

    @property
    def interleaved_label(self) -> str:
        """Experiment and both arms, as in ``prices/control+new``; no arm has this name."""
        return f"{self.name}/{'+'.join(arm.name for arm in self.arms)}"

    def as_json(self) -> dict[str, Any]:
        """The definition, for answers."""
        arms = [
            {"name": arm.name, "share": arm.share, "bundle": arm.bundle, "defaults": dict(arm.defaults)}
            for arm in self.arms
        ]
        interleave = {"interleave": True} if self.interleave else {}
        return {"name": self.name, "salt": self.salt, "arms": arms, **interleave}

    def to_json(self) -> str:
        """The definition as it is stored."""
        form = _INTERLEAVED_FORMAT if self.interleave else _FORMAT
        return json.dumps({"format": form, **self.as_json()}, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, stored: str) -> "Experiment":
        """Read a stored definition.

        Raises:
            ValueError: it is none, or of another format.
        """
        try:
            found = json.loads(stored)
            if found["format"] not in {_FORMAT, _INTERLEAVED_FORMAT}:
                raise ValueError(f"it must have format {_FORMAT} or {_INTERLEAVED_FORMAT}, not {found['format']!r}")
            arms = tuple(Arm(arm["name"], float(arm["share"]), arm["bundle"], arm["defaults"]) for arm in found["arms"])
            interleave = found["format"] == _INTERLEAVED_FORMAT
            experiment = cls(str(found["name"]), str(found["salt"]), arms, interleave)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it must be the JSON of an experiment ({error!r})") from error
        if not arms or (interleave and len(arms) != _INTERLEAVED_ARMS):
            raise ValueError(f"it must have arms, and {_INTERLEAVED_ARMS} where it interleaves; it has {len(arms)}")
        return experiment
