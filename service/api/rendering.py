"""Renders rows and scores as the JSON of a response."""

from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response
from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from index.bundle.manifest import REPORT_FILE
from index.items.modality_status import ModalityStatus
from index.items.slots import BEHAVIOUR
from service.api.requests import request_models
from service.recommend.query import Recommendations, Strategy
from service.request_trace import Trace
from service.telemetry.metrics import Metrics

_TITLE = "title"
_COLD = ModalityStatus.COLD.name.lower()
_REASONS = [reason.name.lower() for reason in ModalityStatus]


def age_s(bundle: Bundle) -> float:
    """Seconds since a bundle was built."""
    return max((datetime.now(UTC) - bundle.manifest.created).total_seconds(), 0.0)


def report_in(directory: Path) -> Any:  # noqa: ANN401 - any JSON value
    """The report in a bundle's directory; None if the directory was pruned since the bundle was loaded."""
    try:
        return orjson.loads((directory / REPORT_FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None


class _JsonResponse(Response):
    """A 200 with two headers; Starlette's own code takes several times as long to write them."""

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:  # noqa: ARG002 - Starlette's
        """Set the raw headers; ``headers`` is never given."""
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), (b"content-type", b"application/json")]


def json_response(value: Any) -> Response:  # noqa: ANN401 - any JSON-able value
    """A 200 with a JSON body; numbers that are not finite become null."""
    return _JsonResponse(orjson.dumps(value))


class ResponseBodies:
    """Builds the JSON bodies of recommendations, counts them, and logs errors of the encoder.

    Args:
        metrics: counts the responses.
        log: the service's logger.
    """

    def __init__(self, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._metrics = metrics
        self._log = log

    def body(
        self,
        bundle: Bundle,
        params: request_models.RetrievalRequest,
        answer: Recommendations,
        trace: Trace,
        *,
        wanted: Strategy,
    ) -> dict[str, Any]:
        """The body of one response.

        Args:
            bundle: the one that answered.
            params: the validated request.
            answer: rows and scores.
            trace: of the request.
            wanted: the strategy of the route.
        """
        items = self.items(bundle, params, answer)
        return {**self.head(bundle, answer, trace, wanted=wanted), "items": items}

    def head(self, bundle: Bundle, answer: Recommendations, trace: Trace, *, wanted: Strategy) -> dict[str, Any]:
        """The body of one response without its items; arguments as for :meth:`body`."""
        self._metrics.recommended(
            strategy=answer.strategy,
            wanted=wanted,
            degraded=answer.degraded,
            history_used=answer.history_used,
            unknown=len(answer.unknown_items),
            encoder_failed=answer.error is not None,
        )
        if answer.error is not None:
            self._log.error("encoder failed", request_id=trace.request_id, reason=answer.error)
        return {
            "request_id": trace.request_id,
            "bundle": bundle.id,
            "strategy": answer.strategy,
            "degraded": answer.degraded,
            "history_used": answer.history_used,
            "unknown_items": answer.unknown_items,
        }

    def items(
        self, bundle: Bundle, params: request_models.RetrievalRequest, answer: Recommendations
    ) -> list[dict[str, Any]]:
        """The items of one response; arguments as for :meth:`body`."""
        items = _items(bundle, answer, explain=params.explain, fields=params.fields)
        for item in items:
            if missing := item["missing"]:
                for slot, reason in missing.items():
                    imputed = slot == BEHAVIOUR and "imputed" in item
                    self._metrics.missing_slot(slot, "imputed" if imputed else reason)
        return items


def _items(
    bundle: Bundle, answer: Recommendations, *, explain: bool | Literal["full"], fields: list[str] | None
) -> list[dict[str, Any]]:
    """The items of an answer, best first.

    Args:
        bundle: the one that answered.
        answer: rows and scores.
        explain: whether to add contributions and the nearest history item, null where the answer has none; ``full``:
            also the contributions of the lists.
        fields: metadata to add; None adds none.
    """
    rows, all_missing = answer.rows.tolist(), _missing_of(bundle, answer.rows)
    items = [
        {"item_id": bundle.ids.id(row), "score": score, "missing": missing}
        for row, score, missing in zip(rows, answer.scores.tolist(), all_missing, strict=True)
    ]
    for position in _imputed_of(bundle, answer.rows, all_missing):
        items[position]["imputed"] = True
    if explain:
        nearest = None if answer.nearest is None else answer.nearest.tolist()
        parts = _named(bundle.layout.names, answer.contributions, len(items))
        lists = () if bundle.list_scores is None else bundle.list_scores.lists.names
        list_parts = _named(lists, answer.list_contributions, len(items))
        for position, item in enumerate(items):
            item["contributions"] = parts[position]
            if explain == "full":
                item["list_contributions"] = list_parts[position]
            item["nearest_history_item"] = None if nearest is None else bundle.ids.id(nearest[position])
    if fields is not None:
        for item, found in zip(items, bundle.fields_of(answer.rows, fields), strict=True):
            item["fields"] = found
    return items


def _named(names: Sequence[str], parts: NDArray[np.float32] | None, items: int) -> Sequence[dict[str, float] | None]:
    """The parts of each item by name; None for each if the answer has none."""
    return [None] * items if parts is None else [dict(zip(names, row, strict=True)) for row in parts.tolist()]


def _missing_of(bundle: Bundle, rows: NDArray[np.int64]) -> list[dict[str, str]]:
    """The slots that items lack: slot → absent, unreadable, cold or not_found; empty for an item with all slots.

    Args:
        bundle: of the catalogue.
        rows: (k,) int64 rows of the items.
    """
    codes = bundle.missing[rows]
    if not codes.any():
        return [{} for _ in range(len(rows))]
    names = bundle.layout.names
    return [
        {name: _REASONS[code] for name, code in zip(names, states, strict=True) if code} for states in codes.tolist()
    ]


def _imputed_of(bundle: Bundle, rows: NDArray[np.int64], missing: Sequence[Mapping[str, str]]) -> list[int]:
    """Positions of the items with an imputed behaviour vector.

    Args:
        bundle: of the catalogue.
        rows: (k,) int64 rows of the items.
        missing: the slots that each of them lacks, see :func:`_missing_of`.
    """
    cold = [position for position, found in enumerate(missing) if found.get(BEHAVIOUR) == _COLD]
    if not cold:
        return []
    imputed = bundle.imputed(rows[cold]).tolist()
    return [position for position, filled in zip(cold, imputed, strict=True) if filled]


def items_of(bundle: Bundle, rows: Sequence[int], hidden: Container[str]) -> list[dict[str, Any]]:
    """Items of the catalogue as JSON.

    Args:
        bundle: of the catalogue.
        rows: of the items.
        hidden: ids that operators have hidden.
    """
    chosen = np.array(rows, dtype=np.int64)
    all_missing, fields = _missing_of(bundle, chosen), bundle.fields_of(chosen)
    thumbnails, imputed = bundle.thumbnails, set(_imputed_of(bundle, chosen, all_missing))
    return [
        {
            "item_id": (item_id := bundle.ids.id(row)),
            "fields": found,
            "slots": [name for name in bundle.layout.names if name not in missing],
            "missing": missing,
            "imputed": position in imputed,
            "popularity": int(bundle.popularity[row]) / bundle.total_events,
            "picture": thumbnails is not None and thumbnails.has(row),
            "available": item_id not in hidden,
        }
        for position, (row, missing, found) in enumerate(zip(rows, all_missing, fields, strict=True))
    ]


def samples_of(bundle: Bundle, most: int) -> list[dict[str, Any]]:
    """Held-out histories with their targets, evenly spaced over the evaluation queries of a bundle."""
    queries = bundle.evaluation_queries
    chosen = np.linspace(0, len(queries) - 1, min(len(queries), most)).astype(np.int64).tolist()

    def named(row: int) -> dict[str, Any]:
        return {"item_id": bundle.ids.id(row), "title": bundle.fields(row, [_TITLE]).get(_TITLE)}

    return [
        {
            "history": [named(row) for row in queries.history(query).tolist()],
            "target": named(int(queries.targets[query])),
        }
        for query in chosen
    ]
