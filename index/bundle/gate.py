"""Bounds: how good a bundle must be before it may go live.

A bound is a number with a name: ``coverage``, ``slot_share.image``. It is held against the figure of the same name, or,
for recall and latency, against that figure of every kind of query (``recall.plain``, ``recall.image alone`` …). A
figure that was not measured misses its bound: what nobody looked at is no reason to go live.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from index.bound_check import BoundCheck
from index.errors import IndexSpecError
from index.items.slots import SlotLayout

AUTO: Literal["auto"] = "auto"

OF_THE_DATA = frozenset({"deleted", "lost_events", "lost_texts", "lost_pictures", "missing_files", "unreadable_files"})
"""Bounds that a file may name too: the nightly job holds a data set to them, and no bundle."""
_NONE = "none"
_NO_SLOTS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class _Rule:
    """How one name is held: the figure at least or at most the limit, which lies in 0 … ``highest``."""

    at_least: bool
    highest: float = 1.0
    every_kind: bool = False


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "recall": _Rule(at_least=True, every_kind=True),
        "served_quality": _Rule(at_least=True, highest=math.inf),
        "text_quality": _Rule(at_least=True, highest=math.inf),
        "image_quality": _Rule(at_least=True, highest=math.inf),
        "coverage": _Rule(at_least=True),
        "slot_share": _Rule(at_least=True),
        "missing": _Rule(at_least=False),
        "latency_p99_ms": _Rule(at_least=False, highest=math.inf, every_kind=True),
        "near_duplicates": _Rule(at_least=False),
        "disagreement": _Rule(at_least=False),
    }
)
_BY_SLOT = ("slot_share", "missing")
_FORMS = tuple(f"{name}.SLOT" if name in _BY_SLOT else name for name in _RULES)


@dataclass(frozen=True)
class Bounds:
    """What a bundle is held to; None and an empty mapping set no bound.

    Attributes:
        recall: recall@k against exact search, of every kind of query at least this, 0 … 1.
        served_quality: NDCG@10 of the served encoder over that of popularity at least this; ``auto`` means 1 where the
            build is given an evaluation, and no bound where it is given none.
        text_quality: the same ratio with nothing but the text slot.
        image_quality: the same ratio with nothing but the image slot.
        coverage: share of the catalogue in the top k of the probes' plain queries at least this, 0 … 1.
        slot_share: slot → share of the plain answers' score that it gives at least this, 0 … 1.
        missing: slot → share of the items without it at most this, 0 … 1.
        latency_p99_ms: p99 of one search with one query, of every kind of query at most this, in milliseconds.
        near_duplicates: share of the pictured items whose picture nearly repeats another's at most this, 0 … 1.
        disagreement: share of the items whose text and picture disagree at most this, 0 … 1.

    Raises:
        IndexSpecError: a number out of its range.
    """

    recall: float | None = 0.95
    served_quality: float | Literal["auto"] | None = AUTO
    text_quality: float | None = None
    image_quality: float | None = None
    coverage: float | None = None
    slot_share: Mapping[str, float] = field(default_factory=lambda: _NO_SLOTS)
    missing: Mapping[str, float] = field(default_factory=lambda: _NO_SLOTS)
    latency_p99_ms: float | None = None
    near_duplicates: float | None = None
    disagreement: float | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits(evaluated=False).items():
            highest = _RULES[name.partition(".")[0]].highest
            if not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 <= limit <= highest:
                allowed = "at least 0" if math.isinf(highest) else f"0 … {highest:g}"
                raise IndexSpecError(f"bound {name} must be a number, {allowed}, got {limit!r}")
            if math.isinf(limit):
                raise IndexSpecError(f"bound {name} must be finite; write {_NONE!r} for no bound")

    def limits(self, *, evaluated: bool) -> dict[str, float]:
        """The bounds that are set, by name.

        Args:
            evaluated: whether the build is given an evaluation, which decides what ``auto`` means.
        """
        limits: dict[str, float] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name in _BY_SLOT:
                limits |= {f"{part.name}.{slot}": limit for slot, limit in value.items()}
            elif value == AUTO and part.name == "served_quality":
                limits |= {part.name: 1.0} if evaluated else {}
            elif value is not None:
                limits[part.name] = value
        return limits

    def check_slots(self, layout: SlotLayout) -> None:
        """Hold the slots that bounds name to those of a catalogue.

        Raises:
            IndexSpecError: a bound names a slot that the catalogue does not have.
        """
        for name in _BY_SLOT:
            unknown = sorted(set(getattr(self, name)) - set(layout.names))
            if unknown:
                raise IndexSpecError(
                    f"bound {name}.{unknown[0]}: there is no such slot, the items have {', '.join(layout.names)}"
                )

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Bounds":
        """Bounds from plain values, as a TOML file holds them.

        Args:
            raw: by attribute name; a mapping by slot for ``slot_share`` and ``missing``; ``"none"`` sets no bound.

        Raises:
            IndexSpecError: an unknown name, or a value of another kind or out of its range.
        """
        values: dict[str, Any] = {}
        for name, value in raw.items():
            if name not in _RULES:
                raise IndexSpecError(f"unknown bound {name!r}; there are {', '.join(_FORMS)}")
            if (name in _BY_SLOT) != isinstance(value, Mapping):
                form = f"set by slot, like {name}.image" if name in _BY_SLOT else "a single number"
                raise IndexSpecError(f"bound {name} must be {form}, got {value!r}")
            if name in _BY_SLOT:
                values[name] = {slot: limit for slot, limit in value.items() if limit != _NONE}
            else:
                values[name] = None if value == _NONE else value
        return cls(**values)


def read_bounds(file: Path | None, options: Sequence[str]) -> Bounds:
    """Bounds from a TOML file and from options, which win.

    Args:
        file: TOML with the attributes of :class:`Bounds`; None for the defaults. Those of :data:`OF_THE_DATA` are
            left out.
        options: ``name=value`` each, like ``coverage=0.2`` or ``slot_share.image=0.05``.

    Raises:
        IndexSpecError: the file cannot be read, an option is not of that form, a name is unknown or a value wrong.
    """
    raw: dict[str, Any] = {}
    if file is not None:
        try:
            raw = tomllib.loads(file.read_text(encoding="utf-8-sig"))
            raw = {name: value for name, value in raw.items() if name not in OF_THE_DATA}
            Bounds.parse(raw)
        except (OSError, ValueError, RecursionError, IndexSpecError) as error:
            raise IndexSpecError(f"{file}: not usable as bounds ({error}); see docs/bundles.md") from error
    for option in options:
        name, equals, text = (part.strip() for part in option.partition("="))
        family, dot, slot = name.partition(".")
        if not equals:
            raise IndexSpecError(f"a bound must be written NAME=VALUE, like coverage=0.2, got {option!r}")
        if not is_bound(name):
            raise IndexSpecError(f"unknown bound {name!r}; there are {', '.join(_FORMS)}")
        value = _number(name, text)
        raw[family] = {**raw.get(family, {}), slot: value} if dot else value
    return Bounds.parse(raw)


def _number(name: str, text: str) -> float | str:
    if text == _NONE or (text == AUTO and name == "served_quality"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise IndexSpecError(f"bound {name} must be a number or {_NONE!r}, got {text!r}") from error


def is_bound(name: str) -> bool:
    """Whether a bound may have this name."""
    family, dot, slot = name.partition(".")
    return family in _RULES and (bool(dot and slot) if family in _BY_SLOT else not dot)


def check_figures(limits: Mapping[str, float], figures: Mapping[str, float]) -> tuple[BoundCheck, ...]:
    """Hold figures to bounds.

    Args:
        limits: bounds by name, as :meth:`Bounds.limits` gives them; every name satisfies :func:`is_bound`.
        figures: figures by name.

    Returns:
        One check per bound, or per figure where a bound holds for every kind of query, in the order of :class:`Bounds`.
    """
    checks = []
    families = list(_RULES)
    for bound, limit in sorted(limits.items(), key=lambda item: (families.index(item[0].partition(".")[0]), item[0])):
        rule = _RULES[bound.partition(".")[0]]
        named = [name for name in figures if rule.every_kind and name.startswith(f"{bound}.")] or [bound]
        checks += [BoundCheck(bound, name, figures.get(name), limit, rule.at_least) for name in named]
    return tuple(checks)


def decisive(checks: Sequence[BoundCheck]) -> tuple[tuple[BoundCheck, int], ...]:
    """The checks worth a reader's time: each that fails, then per bound the one kept most narrowly.

    Args:
        checks: as :func:`check_figures` gives them.

    Returns:
        A check and how many of its bound it stands for.
    """
    kept: dict[str, list[BoundCheck]] = {}
    for check in checks:
        if check.held:
            kept.setdefault(check.bound, []).append(check)
    narrowest = (min(members, key=lambda check: abs(check.limit - (check.value or 0.0))) for members in kept.values())
    return (
        *((check, 1) for check in checks if not check.held),
        *((check, len(kept[check.bound])) for check in narrowest),
    )
