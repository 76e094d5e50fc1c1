"""Routing: what the groups of routes share: the services they work with, their tables, and letting requests in."""

from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from structlog.typing import FilteringBoundLogger

from service.auth import KeyRing
from service.current import CurrentBundle
from service.directives import Directives
from service.envelope import trace_of
from service.errors import RuleBroken, Violation
from service.metrics import Metrics
from service.openapi import answers
from service.ports import HistoryStore
from service.recommender import Recommender
from service.sampler import Sampler
from service.shadow import RecentHistories
from service.trace import Trace
from service.watcher import Watcher

KEY_PROBLEMS = (401, 403, 422, 503)
BODY_PROBLEMS = (400, 413, 415, *KEY_PROBLEMS)


@dataclass(frozen=True)
class Services:
    """What the routes work with; built once, in `service.app`.

    Attributes:
        current: which bundle answers.
        watcher: swaps bundles.
        directives: pin and hidden items.
        histories: where histories are.
        recent: histories that were asked with.
        recommender: finds items.
        metrics: counts.
        data_keys: open the data routes.
        admin_keys: open the admin routes.
        log: the service's logger.
        body_limit: largest request body in bytes.
        sampler: looks at some answers.
    """

    current: CurrentBundle
    watcher: Watcher
    directives: Directives
    histories: HistoryStore
    recent: RecentHistories
    recommender: Recommender
    metrics: Metrics
    data_keys: KeyRing
    admin_keys: KeyRing
    log: FilteringBoundLogger
    body_limit: int
    sampler: Sampler


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
        extra: what `service.openapi.operation` says of body and parameters.
    """

    method: str
    path: str
    handler: str
    tag: str
    answer: type[BaseModel] | None
    problems: tuple[int, ...] = KEY_PROBLEMS
    extra: dict[str, Any] | None = None


def add_routes(app: FastAPI, handlers: object, table: Iterable[Route]) -> None:
    """Add the routes of a table with their documentation.

    Args:
        app: gets them.
        handlers: has the methods that the table names.
        table: one row a route.
    """
    for route in table:
        app.add_api_route(
            route.path,
            getattr(handlers, route.handler),
            methods=[route.method],
            status_code=200 if route.answer is not None else 204,
            tags=[route.tag],
            responses=answers(route.answer, *route.problems),
            openapi_extra=route.extra,
        )


def admit(request: Request, keys: KeyRing, *, takes_query: bool = False) -> Trace:
    """Let a request in: key and query string.

    Raises:
        KeyMissing, KeyRefused: the key.
        RuleBroken: a query parameter where none is known.
    """
    keys.check(request.headers)
    if request.scope["query_string"] and not takes_query:
        name = next(iter(request.query_params), "query")
        raise RuleBroken([Violation(f"query parameter {name[:60]}", "it", "is not known to this route")])
    return trace_of(request.scope)


def item_id_of(request: Request) -> str:
    """The item id in the path."""
    return unquote(request.path_params["item_id"])
