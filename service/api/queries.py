"""Builds the recommender's query from a validated request."""

from typing import Any

from index.bundle.bundle import Bundle
from service.api.requests import request_models
from service.api.requests.request_body import shown
from service.errors import RuleBroken, RuleViolation, UnknownItem
from service.recommend.query import Query
from service.recommend.stored_history import HistoryWindow


def recommend_query(
    bundle: Bundle, params: request_models.RecommendRequest, *, contributions_later: bool = False
) -> Query:
    """The query of `/recommend`; without the user if the request ignores the stored history.

    Args:
        bundle: the active one; it says whether seen items are left out, and how many places are kept for new items,
            where the request does not.
        params: the validated request.
        contributions_later: whether they are needed after the answer is sent.
    """
    stored, excluded = params.history != "ignore", params.exclude_seen
    return Query(
        user_id=params.user_id if stored else None,
        session_id=params.session_id if stored else None,
        history_window=None if isinstance(params.history, str) else _window(params.history),
        items=[_weighted(item) for item in params.items or ()],
        exclude_seen=bundle.manifest.exclude_seen
        if excluded is None
        else frozenset(excluded)
        if isinstance(excluded, list)
        else excluded,
        fresh_share=fresh_share_of(bundle, params),
        **_common(params, contributions_later),
    )


def fresh_share_of(bundle: Bundle, params: request_models.RecommendRequest) -> float:
    """The share of the places that is kept for new items, 0 … 1: that of the request, else that of the bundle."""
    return bundle.manifest.fresh_share if params.fresh_share is None else params.fresh_share


def similar_query(bundle: Bundle, params: request_models.SimilarRequest, *, contributions_later: bool = False) -> Query:
    """The query of `/similar`; arguments as for :func:`recommend_query`.

    Raises:
        UnknownItem: the bundle lacks the one item of the request.
    """
    if params.item_id is not None and params.item_id not in bundle.ids:
        raise UnknownItem(f"item_id must be in bundle {bundle.id}; received {shown(params.item_id)}")
    given = [_weighted(item) for item in params.items or ()] or [(str(params.item_id), 1.0)]
    return Query(items=given, fresh_share=params.fresh_share or 0.0, **_common(params, contributions_later))


def check_fields(bundle: Bundle, names: list[str] | None) -> None:
    """Check that the bundle has the metadata fields of a request.

    Raises:
        RuleBroken: the bundle has no field of that name.
    """
    for position, name in enumerate(names or ()):
        if name not in bundle.metadata.column_names:
            rule = f"must be one of the fields {', '.join(bundle.metadata.column_names)}"
            raise RuleBroken([RuleViolation(f"fields[{position}]", shown(name), rule)])


def _window(window: request_models.HistoryWindowRequest) -> HistoryWindow:
    return HistoryWindow(window.session_minutes * 60.0, window.long_term)


def _weighted(item: str | request_models.WeightedItem) -> tuple[str, float]:
    return (item, 1.0) if isinstance(item, str) else (item.item_id, item.weight)


def _common(params: request_models.RetrievalRequest, contributions_later: bool) -> dict[str, Any]:
    return {
        "k": params.k,
        "offset": params.offset,
        "filter": None if params.filter is None else params.filter.clauses(),
        "exclude": params.exclude,
        "slot_weights": params.slot_weights,
        "diversity": params.diversity,
        "explain": bool(params.explain),
        "contributions_later": contributions_later,
        "explain_lists": params.explain == "full",
        "refuse_unknown": params.unknown_items == "error",
        "deadline_ms": params.deadline_ms,
    }
