"""Adds routes from tables of operations, and lets requests into them; Starlette answers, FastAPI documents."""

from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from service.access.auth import KeyRing
from service.api.openapi import answers, tagged_answers
from service.bundles.active_bundle import ActiveBundle
from service.errors import RuleBroken, Violation
from service.http.request_context import context_of
from service.request_trace import Trace

KEY_PROBLEMS = (401, 403, 422, 429, 503)
BODY_PROBLEMS = (400, 408, 413, 415, *KEY_PROBLEMS)


class Operation(NamedTuple):
    """One method of one path.

    Attributes:
        method: HTTP method.
        path: template.
        handler: name of the method that answers it.
        tag: group in the documentation.
        answer: model of the response; None: 204 without a body.
        problems: statuses of its problems, besides those of every operation.
        extra: parameters and body, from `service.api.openapi.operation`.
        media_type: of a response that is not JSON; such a response may also be 304.
    """

    method: str
    path: str
    handler: str
    tag: str
    answer: type[BaseModel] | None
    problems: tuple[int, ...] = KEY_PROBLEMS
    extra: dict[str, Any] | None = None
    media_type: str | None = None


class NamedRoute(Route):
    """A Starlette route that adds itself to the scope, for metrics and logs; FastAPI's router does not.

    Attributes:
        documented: the same route as FastAPI documents it; None: not in the OpenAPI document.
    """

    documented: APIRoute | None = None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the path and the method match, and what the scope gets."""
        match, child_scope = super().matches(scope)
        if match is not Match.NONE:
            child_scope["route"] = self
        return match, child_scope


def add_operations(app: FastAPI, handlers: object, operations: Iterable[Operation]) -> None:
    """Add a route for each operation, with its documentation.

    Args:
        app: gets the routes.
        handlers: has the methods that the operations name.
        operations: one route each.
    """
    for operation in operations:
        handler = getattr(handlers, operation.handler)
        responses = (
            answers(operation.answer, *operation.problems)
            if operation.media_type is None
            else tagged_answers(operation.media_type, *operation.problems)
        )
        route = NamedRoute(operation.path, handler, methods=[operation.method])
        route.documented = APIRoute(
            operation.path,
            handler,
            methods=[operation.method],
            status_code=next(iter(responses)),
            tags=[operation.tag],
            operation_id=operation.handler,
            responses=responses,
            response_class=JSONResponse if operation.media_type is None else Response,
            openapi_extra=operation.extra,
        )
        app.router.routes.append(route)


def documented(routes: Iterable[BaseRoute]) -> list[APIRoute]:
    """The routes that the OpenAPI document lists, as FastAPI documents them."""
    return [route.documented for route in routes if isinstance(route, NamedRoute) and route.documented is not None]


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
    return context_of(request.scope).trace


def admit_to_data(request: Request, keys: KeyRing, active_bundle: ActiveBundle, *, takes_query: bool = False) -> Trace:
    """Let a request to a data route in, if there is an active bundle.

    A handler that reads a body gets the bundle only afterwards: a client that sends the body slowly would keep an old
    bundle in memory.

    Raises:
        KeyMissing, KeyRefused, RuleBroken: see :func:`admit`.
        NotReady: there is no bundle yet, or the process is draining.
    """
    trace = admit(request, keys, takes_query=takes_query)
    active_bundle.admit()
    return trace


def item_id_of(request: Request) -> str:
    """The item id in the path."""
    return unquote(request.path_params["item_id"])
