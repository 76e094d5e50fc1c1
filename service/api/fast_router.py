"""Routing: what the groups of routes share: the services they work with, their tables, and letting requests in."""

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from service.access.auth import KeyRing
from service.api.openapi import answers, tagged_answers
from service.bundles.active_bundle import ActiveBundle
from service.bundles.operator_state import OperatorState
from service.bundles.watcher import Watcher
from service.errors import RuleBroken, Violation
from service.http.admission import Admission
from service.http.request_middleware import trace_of
from service.recommend.batching import MicroBatcher
from service.recommend.online_recall import OnlineRecall
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.request_trace import Trace
from service.runtime.bounded_executor import BoundedExecutor
from service.stores.protocols import HistoryStore
from service.stores.redis_faults import RedisTroubles
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_page import MetricsPage

KEY_PROBLEMS = (401, 403, 422, 429, 503)
BODY_PROBLEMS = (400, 408, 413, 415, *KEY_PROBLEMS)


@dataclass(frozen=True)
class Services:
    """What the routes work with; built once, in `service.app`.

    Attributes:
        current: which bundle answers.
        watcher: swaps bundles.
        directives: pin and hidden items.
        histories: where histories are.
        redis_troubles: what Redis refuses at the moment.
        batcher: the engine under the recommender.
        load: how much is in progress.
        recent: histories that were asked with.
        recommender: finds items.
        metrics: counts.
        data_keys: open the data routes.
        admin_keys: open the admin routes.
        metrics_keys: open the metrics.
        log: the service's logger.
        body_limit: largest request body in bytes.
        slow_lane: for what takes longer than a recommendation.
        require_consent: whether events are only kept where consent is said to be given.
        one_thread: whether only the event loop may run a bundle's encoder, as on a GPU.
        sampler: looks at some answers.
    """

    current: ActiveBundle
    watcher: Watcher
    directives: OperatorState
    histories: HistoryStore
    redis_troubles: RedisTroubles
    batcher: MicroBatcher
    load: Admission
    recent: RecentHistories
    recommender: Recommender
    metrics: Metrics
    metrics_page: MetricsPage
    data_keys: KeyRing
    admin_keys: KeyRing
    metrics_keys: KeyRing
    log: FilteringBoundLogger
    body_limit: int
    slow_lane: BoundedExecutor
    require_consent: bool
    one_thread: bool
    sampler: OnlineRecall


class DirectRoute(APIRoute):
    """A route whose handler takes the request and gives the response itself, for half the work of FastAPI's own."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler itself."""
        return self.endpoint


class Route(NamedTuple):
    """One row of a table of routes.

    Attributes:
        method: HTTP method.
        path: template.
        handler: name of the method that answers.
        tag: group in the documentation.
        answer: model of the answer; None: 204 without a body.
        problems: statuses of its problems, besides those of every route.
        extra: what `service.api.openapi.operation` says of body and parameters.
        media_type: of an answer that is no JSON; it may also be 304.
    """

    method: str
    path: str
    handler: str
    tag: str
    answer: type[BaseModel] | None
    problems: tuple[int, ...] = KEY_PROBLEMS
    extra: dict[str, Any] | None = None
    media_type: str | None = None


def add_routes(app: FastAPI, handlers: object, table: Iterable[Route]) -> None:
    """Add the routes of a table with their documentation.

    Args:
        app: gets them.
        handlers: has the methods that the table names.
        table: one row a route.
    """
    for route in table:
        documented = (
            answers(route.answer, *route.problems)
            if route.media_type is None
            else tagged_answers(route.media_type, *route.problems)
        )
        app.add_api_route(
            route.path,
            getattr(handlers, route.handler),
            methods=[route.method],
            status_code=next(iter(documented)),
            tags=[route.tag],
            operation_id=route.handler,
            responses=documented,
            response_class=JSONResponse if route.media_type is None else Response,
            openapi_extra=route.extra,
        )


class ShortWay:
    """ASGI app before the framework: routes without parameters are found in a dict and answered at once.

    It does what FastAPI would do for them in several layers: it finds the route and turns errors into answers.
    Everything else, the unknown and the wrong method included, goes on to FastAPI.

    Args:
        app: takes what is not found here.
        routes: of the application; those with parameters are left to it.
        answers: error → its answer, as the application has it.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Iterable[BaseRoute],
        answers: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]],
    ) -> None:
        self._app = app
        self._answers = answers
        self._errors = tuple(answers)
        self._routes = {
            (method, route.path): route
            for route in routes
            if isinstance(route, DirectRoute) and not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive)
        try:
            response = await route.endpoint(request)
        except self._errors as error:
            response = await self._answers[type(error)](request, error)
        await response(scope, receive, send)


def admit(request: Request, keys: KeyRing, *, takes_query: bool = False) -> Trace:
    """Let a request in: key, rate and query string.

    Raises:
        KeyMissing, KeyRefused: the key.
        RateExceeded: its key or address called too often.
        RuleBroken: a query parameter where none is known.
    """
    keys.admit(request)
    if request.scope["query_string"] and not takes_query:
        name = next(iter(request.query_params), "query")
        raise RuleBroken([Violation(f"query parameter {name[:60]}", "it", "is not known to this route")])
    return trace_of(request.scope)


def admit_to_data(request: Request, services: Services, *, takes_query: bool = False) -> Trace:
    """Let a request to a data route in, if there is a bundle.

    One with a body asks for the bundle only when all of the body is here: a client that sends it slowly would keep an
    old bundle in memory.

    Raises:
        KeyMissing, KeyRefused, RuleBroken: see :func:`admit`.
        NotReady: there is no bundle yet, or the process is draining.
    """
    trace = admit(request, services.data_keys, takes_query=takes_query)
    services.current.admit()
    return trace


def item_id_of(request: Request) -> str:
    """The item id in the path."""
    return unquote(request.path_params["item_id"])
