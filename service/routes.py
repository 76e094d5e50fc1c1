"""Routes: from wire types to the recommender and the histories, and back. No logic."""

from time import time
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from index.bundle import Bundle
from service import replies, schemas
from service.answers import Answer, Query, Strategy
from service.bodies import read_json, shown, validate
from service.errors import NotReady, RuleBroken, UnknownItem, Violation
from service.metrics import CONTENT_TYPE
from service.openapi import operation, path_parameter, query_parameters
from service.ports import Event
from service.rendering import age_s, found_items, item_of, json_response, report_of
from service.routing import BODY_PROBLEMS, KEY_PROBLEMS, Route, Services, add_routes, admit, item_id_of
from service.trace import Trace

_USER_ADAPTER: TypeAdapter[str] = TypeAdapter(schemas.Id)

_RECOMMEND = operation(body=schemas.RecommendRequest)
_SIMILAR = operation(body=schemas.SimilarRequest)
_EVENTS = operation(body=(schemas.EventRequest, schemas.EventsRequest))
_USER = operation(parameters=[path_parameter("user_id", "Percent-encoded, a slash too.")])
_ITEM = operation(parameters=[path_parameter("item_id", "Percent-encoded, a slash too.")])
_PAGE = operation(parameters=query_parameters(schemas.ItemsQuery))

_TABLE = (
    Route("POST", "/recommend", "recommend", "recommend", replies.RecommendAnswer, BODY_PROBLEMS, _RECOMMEND),
    Route("POST", "/similar", "similar", "recommend", replies.RecommendAnswer, (404, *BODY_PROBLEMS), _SIMILAR),
    Route("POST", "/events", "store_events", "users", replies.StoredAnswer, BODY_PROBLEMS, _EVENTS),
    Route("GET", "/users/{user_id}/history", "history", "users", replies.HistoryAnswer, extra=_USER),
    Route("DELETE", "/users/{user_id}", "erase_user", "users", None, extra=_USER),
    Route("GET", "/items", "items", "catalogue", replies.ItemsAnswer, extra=_PAGE),
    Route("GET", "/items/{item_id}", "item", "catalogue", replies.ItemAnswer, (404, *KEY_PROBLEMS), _ITEM),
    Route("GET", "/bundle", "bundle", "catalogue", replies.BundleAnswer),
    Route("GET", "/livez", "live", "operations", replies.Health, ()),
    Route("GET", "/readyz", "ready", "operations", replies.Health, (503,)),
)


class Routes:
    """The handlers; every one reads the current bundle at most once.

    Args:
        services: what they work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def register(self, app: FastAPI) -> None:
        """Add all routes with their documentation."""
        add_routes(app, self, _TABLE)
        app.add_api_route("/metrics", self.metrics, methods=["GET"], include_in_schema=False)
        app.add_api_route("/", self.front, methods=["GET"], include_in_schema=False)

    async def front(self, _request: Request) -> Response:
        """Lead whoever opens the address in a browser to the documentation."""
        return RedirectResponse("/docs")

    async def recommend(self, request: Request) -> Response:
        """Recommend items to a user, or for a list of items, oldest first."""
        trace = self._admit(request)
        wish = validate(schemas.RecommendRequest, await read_json(request, self._services.body_limit))
        bundle = self._services.current.get()
        _check_fields(bundle, wish.fields)
        trace.lap("parse")
        query = Query(
            user_id=wish.user_id if wish.history == "use" else None,
            items=[_weighted(item) for item in wish.items or ()],
            exclude_seen=wish.exclude_seen,
            **_common(wish),
        )
        answer = await self._services.recommender.recommend(bundle, query, trace)
        return self._recommended(bundle, wish, answer, trace, wanted="sequence")

    async def similar(self, request: Request) -> Response:
        """Find the neighbours of an item, or of several; the order of the items has no part in it."""
        trace = self._admit(request)
        wish = validate(schemas.SimilarRequest, await read_json(request, self._services.body_limit))
        bundle = self._services.current.get()
        _check_fields(bundle, wish.fields)
        trace.lap("parse")
        if wish.item_id is not None and wish.item_id not in bundle.ids:
            raise UnknownItem(f"item_id must be in bundle {bundle.id}; received {shown(wish.item_id)}")
        given = [_weighted(item) for item in wish.items or ()] or [(str(wish.item_id), 1.0)]
        answer = await self._services.recommender.similar(bundle, Query(items=given, **_common(wish)), trace)
        return self._recommended(bundle, wish, answer, trace, wanted="similar")

    async def store_events(self, request: Request) -> Response:
        """Store one event, or up to 1000, all or none; what is answered with 200 is in Redis."""
        trace = self._admit(request)
        body = await read_json(request, self._services.body_limit)
        if isinstance(body, dict) and "events" in body:
            received = validate(schemas.EventsRequest, body).events
        else:
            received = [validate(schemas.EventRequest, body)]
        trace.lap("parse")
        now = time()
        events = [_event(event, now) for event in received]
        stored = await self._services.histories.append(events)
        trace.lap("store")
        duplicates = len(events) - stored
        self._services.metrics.events(stored=stored, duplicates=duplicates)
        return json_response({"stored": stored, "duplicates": duplicates})

    async def history(self, request: Request) -> Response:
        """The kept history of a user, newest last."""
        trace = self._admit(request)
        user_id = _user_id(request)
        entries = await self._services.histories.entries(user_id)
        trace.lap("history")
        steps = [{"item_id": entry.item_id, "timestamp": entry.timestamp, "type": entry.type} for entry in entries]
        return json_response({"user_id": user_id, "items": steps})

    async def erase_user(self, request: Request) -> Response:
        """Erase all that is kept of a user; one that was never seen is no error."""
        trace = self._admit(request)
        user_id = _user_id(request)
        self._services.recent.clear()
        await self._services.histories.erase(user_id)
        trace.lap("erase")
        return Response(status_code=204)

    async def items(self, request: Request) -> Response:
        """Browse the catalogue, page by page, in its own order."""
        self._admit(request, takes_query=True)
        bundle = self._services.current.get()
        page = _page(request)
        end = min(page.cursor + page.limit, len(bundle))
        events = int(bundle.popularity.sum())
        hidden = self._services.directives.hidden
        rows = range(page.cursor, end)
        found = [item_of(bundle, row, events, available=bundle.ids.id(row) not in hidden) for row in rows]
        return json_response({"bundle": bundle.id, "items": found, "next": end if end < len(bundle) else None})

    async def item(self, request: Request) -> Response:
        """One item of the current bundle."""
        self._admit(request)
        bundle = self._services.current.get()
        item_id = item_id_of(request)
        row = bundle.ids.row(item_id)
        if row is None:
            raise UnknownItem(f"item_id must be in bundle {bundle.id}; received {shown(item_id)}")
        available = item_id not in self._services.directives.hidden
        return json_response(item_of(bundle, row, int(bundle.popularity.sum()), available=available))

    async def bundle(self, request: Request) -> Response:
        """What answers now: manifest, report and age of the bundle; and what this replica does about others."""
        self._admit(request)
        bundle = self._services.current.get()
        return json_response(
            {
                "bundle": bundle.id,
                "age_seconds": age_s(bundle),
                "items": len(bundle),
                "slots": {slot.name: slot.dim for slot in bundle.layout.slots},
                "max_history": bundle.max_history,
                "manifest": bundle.manifest.model_dump(mode="json"),
                "report": report_of(bundle),
                "swap": self._services.watcher.status(),
            }
        )

    async def live(self, _request: Request) -> Response:
        """Whether the process is up."""
        return json_response({"status": "up"})

    async def ready(self, _request: Request) -> Response:
        """Whether a bundle is loaded and warm and others are watched for; with Redis down it is ready but degraded."""
        self._services.current.check_ready()
        bundle = self._services.current.get()
        if not self._services.watcher.alive:
            raise NotReady("the watcher of bundles has ended; start this process again")
        redis = "up" if await self._services.histories.alive() else "down"
        return json_response({"status": "ready", "bundle": bundle.id, "redis": redis})

    async def metrics(self, _request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        return Response(self._services.metrics.exposition(), media_type=CONTENT_TYPE)

    def _admit(self, request: Request, *, takes_query: bool = False) -> Trace:
        """Let a request to a data route in, if there is a bundle.

        One with a body asks for the bundle only when all of the body is here: a client that sends it slowly would keep
        an old bundle in memory.
        """
        trace = admit(request, self._services.data_keys, takes_query=takes_query)
        self._services.current.admit()
        return trace

    def _recommended(
        self, bundle: Bundle, wish: schemas.Wish, answer: Answer, trace: Trace, *, wanted: Strategy
    ) -> Response:
        items = found_items(bundle, answer, explain=wish.explain, fields=wish.fields)
        body = {
            "request_id": trace.request_id,
            "bundle": bundle.id,
            "strategy": answer.strategy,
            "degraded": answer.degraded,
            "history_used": answer.history_used,
            "unknown_items": answer.unknown_items,
            "items": items,
        }
        self._services.metrics.recommended(
            strategy=answer.strategy,
            wanted=wanted,
            degraded=answer.degraded,
            history_used=answer.history_used,
            unknown=len(answer.unknown_items),
            trouble=answer.trouble is not None,
        )
        for item in items:
            for slot, reason in item["missing"].items():
                self._services.metrics.lacking(slot, reason)
        if answer.trouble is not None:
            self._services.log.error("encoder failed", request_id=trace.request_id, reason=answer.trouble)
        response = json_response(body)
        trace.lap("write")
        return response


def _weighted(item: str | schemas.WeightedItem) -> tuple[str, float]:
    return (item, 1.0) if isinstance(item, str) else (item.item_id, item.weight)


def _common(wish: schemas.Wish) -> dict[str, Any]:
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


def _event(event: schemas.EventRequest, now: float) -> Event:
    return Event(
        event.user_id,
        event.item_id,
        now if event.timestamp is None else event.timestamp,
        event.type,
        event.event_id,
        event.request_id,
    )


def _check_fields(bundle: Bundle, names: list[str] | None) -> None:
    for place, name in enumerate(names or ()):
        if name not in bundle.metadata.column_names:
            rule = f"must be one of the fields {', '.join(bundle.metadata.column_names)}"
            raise RuleBroken([Violation(f"fields[{place}]", shown(name), rule)])


def _user_id(request: Request) -> str:
    """The user id in the path, held to the rule for ids."""
    sent: str = request.path_params["user_id"]
    try:
        return _USER_ADAPTER.validate_python(unquote(sent, errors="strict"))
    except (UnicodeDecodeError, ValidationError):
        rule = "must be 1 to 256 bytes of percent-encoded UTF-8 without control characters"
        raise RuleBroken([Violation("user_id", shown(sent), rule)]) from None


def _page(request: Request) -> schemas.ItemsQuery:
    return validate(schemas.ItemsQuery, dict(request.query_params))
