"""Shadow comparison: what a new bundle would answer to recent histories, beside the one that answers now.

All of it is our own definition:

- *answered*: share of the histories that get any item at all by their sequence;
- *overlap@k*: mean over the histories answered by both of the share of the old top k that is in the new one;
- *coverage*: different items over all answers ÷ the most that there could be, so 1 when no item is answered twice;
- *slot shares*: mean over the answered items of each slot's share of the positive contributions to the score.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import sleep
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.errors import IndexingError
from index.search.row_mask import RowMask
from service.errors import BundleRefused
from service.recommend.recent_histories import History

SHADOW_K = 20
_PAUSE_S = 0.001  # between two histories, so that the requests have the cores more often than the comparison has


@dataclass(frozen=True, slots=True)
class Side:
    """What one bundle answered; see the module for the terms.

    Attributes:
        bundle: its id.
        answered: 0 … 1.
        coverage: 0 … 1.
        slot_shares: by slot name, summing to at most 1 (an item whose contributions are all negative has none).
    """

    bundle: str
    answered: float
    coverage: float
    slot_shares: dict[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A new bundle beside the old one.

    Attributes:
        histories: how many were asked.
        source: recent requests, or the new bundle's probes where there was no traffic to ask with.
        k: length of the answers.
        overlap: 0 … 1; None without an old bundle, or if no history was answered by both.
        old: None without an old bundle.
        new: the new one.
    """

    histories: int
    source: Literal["recent", "probes"]
    k: int
    overlap: float | None
    old: Side | None
    new: Side

    @property
    def slot_shift(self) -> float:
        """The largest change of a slot's share, 0 … 1; a slot that one side lacks counts as 0 there."""
        if self.old is None:
            return 0.0
        old, new = self.old.slot_shares, self.new.slot_shares
        return max(abs(new.get(name, 0.0) - old.get(name, 0.0)) for name in old.keys() | new.keys())

    def as_json(self) -> dict[str, Any]:
        """For `GET /bundle` and the log."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ShadowBounds:
    """What an operator asks of a new bundle beside the old one; None asks nothing.

    Attributes:
        min_overlap: overlap@20, 0 … 1.
        min_coverage: 0 … 1.
        min_answered: 0 … 1.
        max_slot_shift: largest change of a slot's share, 0 … 1.
    """

    min_overlap: float | None = None
    min_coverage: float | None = None
    min_answered: float | None = None
    max_slot_shift: float | None = None

    def check(self, found: Comparison) -> None:
        """Hold a comparison to the bounds; without an old bundle there is nothing to hold it to.

        Raises:
            BundleRefused: a bound is missed.
        """
        if found.old is None:
            return
        at_least = (
            ("overlap", found.overlap, self.min_overlap),
            ("coverage", found.new.coverage, self.min_coverage),
            ("answered", found.new.answered, self.min_answered),
        )
        missed = [
            f"{name} {value:.4f} is below {bound}"
            for name, value, bound in at_least
            if value is not None and bound is not None and value < bound
        ]
        if self.max_slot_shift is not None and found.slot_shift > self.max_slot_shift:
            missed.append(f"the shift of slot shares {found.slot_shift:.4f} is above {self.max_slot_shift}")
        if missed:
            raise BundleRefused(
                "bound",
                f"{found.new.bundle} beside {found.old.bundle} on {found.histories} histories ({found.source}): "
                f"{', '.join(missed)}; change the VLM2REC_SHADOW_* bound, or pin the bundle to serve it all the same",
            )


@dataclass(frozen=True, slots=True, eq=False)
class Shadow:
    """A bundle and what of it may be answered.

    Attributes:
        bundle: loaded and warm.
        available: the rows that may be answered; None: all.
    """

    bundle: Bundle
    available: RowMask | None


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The top k of one history.

    Attributes:
        items: ids, best first.
        shares: (slots,) float64, the slot shares of their scores, summed.
    """

    items: list[str]
    shares: NDArray[np.float64]


AskOld = Callable[[Callable[[], Answer | None]], Answer | None]


def ask_here(question: Callable[[], Answer | None]) -> Answer | None:
    """Ask the old bundle in the calling thread."""
    return question()


def compare(
    new: Shadow, old: Shadow | None, recent: Sequence[History], *, probes: int, ask_old: AskOld = ask_here
) -> Comparison:
    """Ask both bundles with the same histories.

    Args:
        new: the bundle that is tried.
        old: the one that answers now; None: there is none.
        recent: histories of item ids, oldest item first.
        probes: how many probes of the new bundle are asked with where no recent history says anything.
        ask_old: runs a question to the old bundle in the thread that may touch it.

    Raises:
        BundleRefused: the new bundle fails, gives scores that are not finite, or answers nothing at all.
    """
    source: Literal["recent", "probes"] = "recent"
    asked = list(recent)
    before, after = _ask(new, old, asked, ask_old)
    if not any(before) and not any(after):
        source, asked = "probes", _probes(new.bundle, probes)
        before, after = _ask(new, old, asked, ask_old)
    if asked and not any(after) and (new.available is None or new.available.count):
        raise BundleRefused(
            "answers",
            f"{new.bundle.id}: none of {len(asked)} histories ({source}) is answered; is it another catalogue?",
        )
    shares = [
        len(set(was.items) & set(now.items)) / len(was.items)
        for was, now in zip(before, after, strict=True)
        if was is not None and now is not None
    ]
    return Comparison(
        histories=len(asked),
        source=source,
        k=SHADOW_K,
        overlap=sum(shares) / len(shares) if shares else None,
        old=None if old is None else _side(old.bundle, before),
        new=_side(new.bundle, after),
    )


def _ask(
    new: Shadow, old: Shadow | None, histories: Sequence[History], ask_old: AskOld
) -> tuple[list[Answer | None], list[Answer | None]]:
    """The old and the new answers; failures of the old bundle are not held against the new one."""
    before: list[Answer | None] = [None] * len(histories)
    after: list[Answer | None] = [None] * len(histories)
    for place, history in enumerate(histories):
        try:
            after[place] = _answer(new, history)
        except IndexingError as error:
            raise BundleRefused("answers", f"{new.bundle.id}: a history cannot be answered: {error}") from error
        if old is not None:
            with contextlib.suppress(IndexingError, BundleRefused):
                before[place] = ask_old(partial(_answer, old, history))
        sleep(_PAUSE_S)
    return before, after


def _answer(shadow: Shadow, history: History) -> Answer | None:
    bundle = shadow.bundle
    seen, _ = bundle.ids.rows(history)
    usable = seen[bundle.indexed[seen]]
    if not usable.size:
        return None
    query = bundle.encode([usable])
    found = bundle.search(query, SHADOW_K + np.unique(seen).size, allowed=shadow.available)
    kept = (found.rows[0] >= 0) & ~np.isin(found.rows[0], seen)
    rows, scores = found.rows[0][kept][:SHADOW_K], found.scores[0][kept][:SHADOW_K]
    if not rows.size:
        return None
    if not np.isfinite(scores).all():
        raise BundleRefused("answers", f"{bundle.id}: scores must be finite; check the vectors and the training run")
    parts = np.maximum(bundle.contributions(query, rows[None])[0], 0.0).astype(np.float64)
    totals = parts.sum(axis=1, keepdims=True)
    shares = (parts / np.where(totals > 0, totals, 1.0)).sum(axis=0)
    return Answer([bundle.ids.id(row) for row in rows.tolist()], shares)


def _side(bundle: Bundle, answers: Sequence[Answer | None]) -> Side:
    given = [answer for answer in answers if answer is not None]
    places = sum(len(answer.items) for answer in given)
    different = len({item for answer in given for item in answer.items})
    shares = sum((answer.shares for answer in given), np.zeros(len(bundle.layout.slots)))
    return Side(
        bundle.id,
        len(given) / len(answers) if answers else 0.0,
        different / min(places, int(bundle.manifest.indexed)) if places else 0.0,
        {name: float(share) / max(places, 1) for name, share in zip(bundle.layout.names, shares, strict=True)},
    )


def _probes(bundle: Bundle, limit: int) -> list[History]:
    histories = (
        bundle.evaluation_queries.history(probe).tolist() for probe in range(min(len(bundle.evaluation_queries), limit))
    )
    return [tuple(bundle.ids.id(row) for row in history) for history in histories]
