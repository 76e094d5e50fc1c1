"""Defines the bounds that a bundle must keep before it may be published, and checks figures against them.

A bound is a number with a name, such as ``coverage`` or ``slot_share.image``. It applies to the figure of the same
name; a bound on recall or latency applies to that figure of every kind of query (``recall.plain``, ``recall.image
alone`` …). A figure that was not measured misses its bound.
"""

import math
import sys
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

DATA_BOUNDS = frozenset({"deleted", "lost_events", "lost_texts", "lost_pictures", "missing_files", "unreadable_files"})
"""Bounds of the nightly job on its data set; a file of bounds may name them, but no bundle is checked against them."""
_NONE = "none"
_NO_SLOTS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class _Rule:
    """How a bound is checked.

    Attributes:
        at_least: True if the figure must be at least the limit, False if at most.
        highest: the limit lies in 0 … ``highest``.
        every_kind: whether the bound applies to the figure of every kind of query.
    """

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
_LICENCE = "licence"
_ALLOWED = "allowed"
LICENCES_BOUND = f"{_LICENCE}.{_ALLOWED}"
"""The bound on the licences of the pretrained models; the only one that is a list of words."""
NOT_STATED = "not stated"
"""The licence of a model that states none; like any other it is allowed only if it is listed."""
_MODEL = "vlm"
"""``kind`` in the provenance of vectors of a model; features without one have another."""
_FROM_SCRATCH = " from scratch"
"""End of the ``id`` of a model that is not pretrained."""
_FORMS = (*(f"{name}.SLOT" if name in _BY_SLOT else name for name in _RULES), LICENCES_BOUND)


@dataclass(frozen=True)
class Bounds:
    """The bounds of a bundle; None and an empty mapping set no bound.

    Attributes:
        recall: least recall@k against exact search, for every kind of query, 0 … 1.
        served_quality: least ratio of the served encoder's NDCG@10 to popularity's; ``auto`` means 1 if the build is
            given an evaluation, and no bound otherwise.
        text_quality: least such ratio with the text slot alone.
        image_quality: least such ratio with the image slot alone.
        coverage: least share of the catalogue in the top k of the plain evaluation queries, 0 … 1.
        slot_share: slot → its least share of the score of plain queries' results, 0 … 1.
        missing: slot → largest share of items without it, 0 … 1.
        latency_p99_ms: largest p99 of a search with one query, for every kind of query, in milliseconds.
        near_duplicates: largest share of pictured items whose picture nearly repeats another item's, 0 … 1.
        disagreement: largest share of items whose text and picture disagree, 0 … 1.
        licences: the licences that a pretrained model may have, in lower case; None allows any.

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
    licences: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, limit in self.limits(evaluated=False).items():
            highest = _RULES[name.partition(".")[0]].highest
            if not isinstance(limit, int | float) or isinstance(limit, bool) or not 0 <= limit <= highest:
                allowed = "at least 0" if math.isinf(highest) else f"0 … {highest:g}"
                raise IndexSpecError(f"bound {name} must be a number, {allowed}, got {limit!r}")
            if limit > sys.float_info.max:  # also a whole number that no float holds
                raise IndexSpecError(f"bound {name} must be finite; write {_NONE!r} for no bound")

    def limits(self, *, evaluated: bool) -> dict[str, float]:
        """The limits of the bounds that are set, by name.

        Args:
            evaluated: whether the build is given an evaluation; decides the meaning of ``auto``.
        """
        limits: dict[str, float] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name == "licences":
                continue  # no number; `check_licences` holds it
            if part.name in _BY_SLOT:
                limits |= {f"{part.name}.{slot}": limit for slot, limit in value.items()}
            elif value == AUTO and part.name == "served_quality":
                limits |= {part.name: 1.0} if evaluated else {}
            elif value is not None:
                limits[part.name] = value
        return limits

    def check_slots(self, layout: SlotLayout) -> None:
        """Check that the catalogue has the slots that bounds name.

        Raises:
            IndexSpecError: a bound names a slot that the catalogue does not have.
        """
        for name in _BY_SLOT:
            unknown = sorted(set(getattr(self, name)) - set(layout.names))
            if unknown:
                raise IndexSpecError(
                    f"bound {name}.{unknown[0]}: there is no such slot, the items have {', '.join(layout.names)}"
                )

    def check_licences(self, model: Mapping[str, Any]) -> None:
        """Check that the pretrained models below a bundle have allowed licences.

        Args:
            model: provenance of the item table; vectors without a pretrained model name no licence.

        Raises:
            IndexSpecError: a licence is not listed.
        """
        if self.licences is None:
            return
        refused = [licence for licence in licences_of(model) if licence not in self.licences]
        if refused:
            raise IndexSpecError(
                f"bound {LICENCES_BOUND}: the licence of the pretrained model must be one of "
                f"{', '.join(self.licences) or 'none'}, got {refused[0]!r}; train from another model, or list this "
                "licence if it permits your use"
            )

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Bounds":
        """Parse plain values, as a TOML file holds them.

        Args:
            raw: value by attribute name; a mapping by slot for ``slot_share`` and ``missing``; ``"none"`` sets no
                bound.

        Raises:
            IndexSpecError: an unknown name, or a value of another type or out of its range.
        """
        values: dict[str, Any] = {}
        for name, value in raw.items():
            if name == _LICENCE:
                values["licences"] = _allowed(value)
                continue
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
    """Read bounds from a TOML file and from options; options take precedence.

    Args:
        file: TOML with the attributes of :class:`Bounds`; None for the defaults. :data:`DATA_BOUNDS` are ignored.
        options: ``name=value`` each, like ``coverage=0.2`` or ``slot_share.image=0.05``.

    Raises:
        IndexSpecError: the file cannot be read, an option has another form, a name is unknown or a value invalid.
    """
    raw: dict[str, Any] = {}
    if file is not None:
        try:
            raw = tomllib.loads(file.read_text(encoding="utf-8-sig"))
            raw = {name: value for name, value in raw.items() if name not in DATA_BOUNDS}
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
        value = _words(text) if name == LICENCES_BOUND else _number(name, text)
        raw[family] = {**raw.get(family, {}), slot: value} if dot else value
    return Bounds.parse(raw)


def licences_of(model: Mapping[str, Any]) -> tuple[str, ...]:
    """Licences of the pretrained models in the provenance of an item table or bundle.

    Args:
        model: provenance.

    Returns:
        Empty without a pretrained model; :data:`NOT_STATED` for one that was embedded before licences were recorded.
    """
    embeddings = model.get("embeddings")
    if not isinstance(embeddings, Mapping):
        return ()
    found = embeddings.get("licences")
    if isinstance(found, list | tuple):
        return tuple(str(licence) for licence in found)
    # Such provenance names its model: "tfidf-svd…" of kind "no-vlm", "qwen2_5_vl from scratch", else a pretrained one.
    pretrained = embeddings.get("kind") == _MODEL and not str(embeddings.get("id", "")).endswith(_FROM_SCRATCH)
    return (NOT_STATED,) if pretrained else ()


def _words(text: str) -> list[str] | str:
    return text if text == _NONE else text.split(",")


def _allowed(value: object) -> tuple[str, ...] | None:
    """The list of ``licence.allowed``; None for no bound."""
    listed = value[_ALLOWED] if isinstance(value, Mapping) and set(value) == {_ALLOWED} else value
    if listed == _NONE:
        return None
    named = listed if listed is not value and isinstance(listed, list) else [None]
    if not all(isinstance(word, str) and word.strip() for word in named):
        raise IndexSpecError(
            f'bound {LICENCES_BOUND} must be a list of licences, like ["apache-2.0", "{NOT_STATED}"], got {value!r}'
        )
    return tuple(str(word).strip().lower() for word in named)


def _number(name: str, text: str) -> float | str:
    if text == _NONE or (text == AUTO and name == "served_quality"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise IndexSpecError(f"bound {name} must be a number or {_NONE!r}, got {text!r}") from error


def is_bound(name: str) -> bool:
    """Whether a name is that of a bound."""
    if name == LICENCES_BOUND:
        return True
    family, dot, slot = name.partition(".")
    return family in _RULES and (bool(dot and slot) if family in _BY_SLOT else not dot)


def check_figures(limits: Mapping[str, float], figures: Mapping[str, float]) -> tuple[BoundCheck, ...]:
    """Check figures against bounds.

    Args:
        limits: limit by name, as :meth:`Bounds.limits` returns them; every name satisfies :func:`is_bound`.
        figures: value by name of the figure.

    Returns:
        One check per bound, or per figure for a bound on every kind of query; in the order of :class:`Bounds`.
    """
    checks = []
    families = list(_RULES)
    for bound, limit in sorted(limits.items(), key=lambda item: (families.index(item[0].partition(".")[0]), item[0])):
        rule = _RULES[bound.partition(".")[0]]
        named = [name for name in figures if rule.every_kind and name.startswith(f"{bound}.")] or [bound]
        checks += [BoundCheck(bound, name, figures.get(name), limit, rule.at_least) for name in named]
    return tuple(checks)


def decisive_checks(checks: Sequence[BoundCheck]) -> tuple[tuple[BoundCheck, int], ...]:
    """Select the checks to report: every failed check, then per bound the passed check with the smallest margin.

    Args:
        checks: as :func:`check_figures` returns them.

    Returns:
        Each selected check with the number of checks that it represents: 1, or all passed checks of its bound.
    """
    passed: dict[str, list[BoundCheck]] = {}
    for check in checks:
        if check.passed:
            passed.setdefault(check.bound, []).append(check)
    narrowest = (min(members, key=lambda check: abs(check.limit - (check.value or 0.0))) for members in passed.values())
    return (
        *((check, 1) for check in checks if not check.passed),
        *((check, len(passed[check.bound])) for check in narrowest),
    )
