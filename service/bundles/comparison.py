"""Compares a new bundle with the active one on recent histories; nobody receives these answers.

The figures are our own definition:

- *answered*: share of the histories for which the sequence finds any item;
- *overlap@k*: share of the old top k that is in the new one, mean over the histories that both bundles answer;
- *coverage*: distinct items over all answers ÷ the most that there could be, so 1 when no item is answered twice;
- *slot shares*: each slot's share of the positive contributions to the score, mean over the answered items.
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
from index.lists.list_query import ListQuery
from index.search.row_mask import RowMask
from service.errors import BundleRefused, RetrieverUnavailable
from service.recommend.recent_histories import History
from service.retrieval.faiss_retriever import FAISS
from service.retrieval.retriever import Retriever
from service.settings.groups import ComparisonSettings

SHADOW_K = 20
_PAUSE_S = 0.001  # between two histories, so that requests get the cores more often than the comparison does


@dataclass(frozen=True, slots=True)
class BundleFigures:
    """The figures of one bundle; the module defines the terms.

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
        histories: how many were compared.
        source: recent requests, or the new bundle's evaluation queries ("probes") where there was no usable traffic.
        k: length of the answers.
        overlap: 0 … 1; None without an old bundle, or if there is no history that both bundles answer.
        old: figures of the active bundle; None if there is none.
        new: figures of the new bundle.
    """

    histories: int
    source: Literal["recent", "probes"]
    k: int
    overlap: float | None
    old: BundleFigures | None
    new: BundleFigures

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
    """The operator's bounds on a new bundle beside the active one.

    Attributes:
        settings: the bounds; one that is None is not checked.
    """

    settings: ComparisonSettings

    def check(self, found: Comparison) -> None:
        """Check a comparison; without an old bundle there is nothing to check.

        Raises:
            BundleRefused: a bound is missed.
        """
        if found.old is None:
            return
        at_least = (
            ("overlap", found.overlap, self.settings.shadow_min_overlap),
            ("coverage", found.new.coverage, self.settings.shadow_min_coverage),
            ("answered", found.new.answered, self.settings.shadow_min_answered),
        )
        missed = [
            f"{name} {value:.4f} is below {bound}"
            for name, value, bound in at_least
            if value is not None and bound is not None and value < bound
        ]
        most = self.settings.shadow_max_slot_shift
        if most is not None and found.slot_shift > most:
            missed.append(f"the shift of slot shares {found.slot_shift:.4f} is above {most}")
        if missed:
            raise BundleRefused(
                "bound",
                f"{found.new.bundle} beside {found.old.bundle} on {found.histories} histories ({found.source}): "
                f"{', '.join(missed)}; change the VLM2REC_SHADOW_* bound, or pin the bundle to serve it all the same",
            )


@dataclass(frozen=True, slots=True, eq=False)
class ComparedBundle:
    """A bundle and the rows that may be answered from it.

    Attributes:
        bundle: loaded and warm.
        available: the rows that may be answered; None: all.
        retriever: finds its items.
    """

    bundle: Bundle
    available: RowMask | None
    retriever: Retriever = FAISS


@dataclass(frozen=True, slots=True, eq=False)
class TopItems:
    """The top k of one history.

    Attributes:
        items: ids, best first.
        shares: (slots,) float64, the slot shares of their scores, summed over the items.
    """

    items: list[str]
    shares: NDArray[np.float64]


AskOld = Callable[[Callable[[], TopItems | None]], TopItems | None]


def ask_here(query: Callable[[], TopItems | None]) -> TopItems | None:
    """Run a query of the old bundle in the calling thread."""
    return query()


def compare(
    new: ComparedBundle,
    old: ComparedBundle | None,
    recent: Sequence[History],
    *,
    evaluation_queries: int,
    ask_old: AskOld = ask_here,
) -> Comparison:
    """Compare two bundles on the same histories.

    Args:
        new: the bundle that is validated.
        old: the active bundle; None: there is none.
        recent: histories of item ids, oldest item first.
        evaluation_queries: how many evaluation queries of the new bundle are used if neither bundle answers any recent
            history.
        ask_old: runs a query of the old bundle in the thread that may use its encoder.

    Raises:
        BundleRefused: the new bundle fails, gives scores that are not finite, or answers no history.
    """
    source: Literal["recent", "probes"] = "recent"
    histories = list(recent)
    before, after = _answers(new, old, histories, ask_old)
    if not any(before) and not any(after):
        source, histories = "probes", _evaluation_histories(new.bundle, evaluation_queries)
        before, after = _answers(new, old, histories, ask_old)
    if histories and not any(after) and (new.available is None or new.available.count):
        raise BundleRefused(
            "answers",
            f"{new.bundle.id}: none of {len(histories)} histories ({source}) is answered; is it another catalogue?",
        )
    overlaps = [
        len(set(was.items) & set(now.items)) / len(was.items)
        for was, now in zip(before, after, strict=True)
        if was is not None and now is not None
    ]
    return Comparison(
        histories=len(histories),
        source=source,
        k=SHADOW_K,
        overlap=sum(overlaps) / len(overlaps) if overlaps else None,
        old=None if old is None else _figures(old.bundle, before),
        new=_figures(new.bundle, after),
    )


def _answers(
    new: ComparedBundle, old: ComparedBundle | None, histories: Sequence[History], ask_old: AskOld
) -> tuple[list[TopItems | None], list[TopItems | None]]:
    """The answers of the old and the new bundle; a failure of the old bundle does not count against the new one."""
    before: list[TopItems | None] = [None] * len(histories)
    after: list[TopItems | None] = [None] * len(histories)
    for number, history in enumerate(histories):
        try:
            after[number] = _answer(new, history)
        except IndexingError as error:
            raise BundleRefused("answers", f"{new.bundle.id}: a history cannot be answered: {error}") from error
        if old is not None:
            with contextlib.suppress(IndexingError, BundleRefused, RetrieverUnavailable):
                before[number] = ask_old(partial(_answer, old, history))
        sleep(_PAUSE_S)
    return before, after


def _answer(compared: ComparedBundle, history: History) -> TopItems | None:
    bundle = compared.bundle
    seen, _ = bundle.ids.rows(history)
    usable = seen[bundle.indexed[seen]]
    if not usable.size:
        return None
    held, lists = compared.retriever.vectors(bundle, usable), [ListQuery(usable)]
    query = bundle.encode([usable], None if held is None else partial(held.of, others=bundle.vectors))
    length, allowed = SHADOW_K + np.unique(seen).size, compared.available
    found = compared.retriever.search(bundle, query, length, allowed=allowed, histories=lists)
    kept = (found.rows[0] >= 0) & ~np.isin(found.rows[0], seen)
    rows, scores = found.rows[0][kept][:SHADOW_K], found.scores[0][kept][:SHADOW_K]
    if not rows.size:
        return None
    if not np.isfinite(scores).all():
        raise BundleRefused("answers", f"{bundle.id}: scores must be finite; check the vectors and the training run")
    parts = np.maximum(bundle.contributions(query, rows[None], lists, found.vectors)[0], 0.0).astype(np.float64)
    totals = parts.sum(axis=1, keepdims=True)
    shares = (parts / np.where(totals > 0, totals, 1.0)).sum(axis=0)
    return TopItems([bundle.ids.id(row) for row in rows.tolist()], shares)


def _figures(bundle: Bundle, answers: Sequence[TopItems | None]) -> BundleFigures:
    given = [answer for answer in answers if answer is not None]
    total = sum(len(answer.items) for answer in given)
    distinct = len({item for answer in given for item in answer.items})
    shares = sum((answer.shares for answer in given), np.zeros(len(bundle.layout.slots)))
    return BundleFigures(
        bundle.id,
        len(given) / len(answers) if answers else 0.0,
        distinct / min(total, int(bundle.manifest.indexed)) if total else 0.0,
        {name: float(share) / max(total, 1) for name, share in zip(bundle.layout.names, shares, strict=True)},
    )


def _evaluation_histories(bundle: Bundle, limit: int) -> list[History]:
    queries = bundle.evaluation_queries
    histories = (queries.history(number).tolist() for number in range(min(len(queries), limit)))
    return [tuple(bundle.ids.id(row) for row in history) for history in histories]
