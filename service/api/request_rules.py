"""Wishes: from what was asked for on the wire to a query, and from the answer back; for one request or one of many."""

from typing import Any

from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from service.api import request_models
from service.api.rendering import found_items
from service.api.request_body import shown
from service.errors import RuleBroken, UnknownItem, Violation
from service.recommend.query import Query, Recommendations, Strategy
from service.request_trace import Trace
from service.telemetry.metrics import Metrics


def recommend_query(bundle: Bundle, wish: request_models.RecommendRequest) -> Query:
    """What the recommender is asked; without a user whose stored history counts if that is to be ignored.

    Args:
        bundle: that answers; it says whether seen items are left out where the request doesn't.
        wish: what was asked for.
    """
    return Query(
        user_id=wish.user_id if wish.history == "use" else None,
        items=[_weighted(item) for item in wish.items or ()],
        exclude_seen=bundle.manifest.exclude_seen if wish.exclude_seen is None else wish.exclude_seen,
        **_common(wish),
    )


def similar_query(bundle: Bundle, wish: request_models.SimilarRequest) -> Query:
    """The same for neighbours.

    Raises:
        UnknownItem: the bundle lacks the one item that is asked for.
    """
    if wish.item_id is not None and wish.item_id not in bundle.ids:
        raise UnknownItem(f"item_id must be in bundle {bundle.id}; received {shown(wish.item_id)}")
    given = [_weighted(item) for item in wish.items or ()] or [(str(wish.item_id), 1.0)]
    return Query(items=given, **_common(wish))


def check_fields(bundle: Bundle, names: list[str] | None) -> None:
    """Hold the fields that are asked for to those that the bundle has.

    Raises:
        RuleBroken: there is none of that name.
    """
    for place, name in enumerate(names or ()):
        if name not in bundle.metadata.column_names:
            rule = f"must be one of the fields {', '.join(bundle.metadata.column_names)}"
            raise RuleBroken([Violation(f"fields[{place}]", shown(name), rule)])


class AnswerBodies:
    """Builds the bodies of recommendations, counts them, and logs an encoder that failed.

    Args:
        metrics: counts the answers.
        log: the service's logger.
    """

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log

    def body(
        self,
        bundle: Bundle,
        wish: request_models.Wish,
        answer: Recommendations,
        trace: Trace,
        *,
        wanted: Strategy,
    ) -> dict[str, Any]:
        """The body of one answer.

        Args:
            bundle: the bundle that answered.
            wish: the request.
            answer: what was found.
            trace: of the request.
            wanted: the strategy of the route.
        """
        items = found_items(bundle, answer, explain=wish.explain, fields=wish.fields)
        self._metrics.recommended(
            strategy=answer.strategy,
            wanted=wanted,
            degraded=answer.degraded,
            history_used=answer.history_used,
            unknown=len(answer.unknown_items),
            encoder_failed=answer.error is not None,
        )
        for item in items:
            for slot, reason in item["missing"].items():
                self._metrics.missing_slot(slot, reason)
        if answer.error is not None:
            self._log.error("encoder failed", request_id=trace.request_id, reason=answer.error)
        return {
            "request_id": trace.request_id,
            "bundle": bundle.id,
            "strategy": answer.strategy,
            "degraded": answer.degraded,
            "history_used": answer.history_used,
            "unknown_items": answer.unknown_items,
            "items": items,
        }


def _weighted(item: str | request_models.WeightedItem) -> tuple[str, float]:
    return (item, 1.0) if isinstance(item, str) else (item.item_id, item.weight)


def _common(wish: request_models.Wish) -> dict[str, Any]:
    return {
        "k": wish.k,
        "offset": wish.offset,
        "filter": None if wish.filter is None else wish.filter.clauses(),
        "exclude": wish.exclude,
        "slot_weights": wish.slot_weights,
        "diversity": wish.diversity,
        "explain": wish.explain,
        "refuse_unknown": wish.unknown_items == "error",
        "deadline_ms": wish.deadline_ms,
    }
