"""Carries what the connection and the middleware know of one request in its ASGI scope, as one typed value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from service.http.body_budget import BodyBudget
from service.http.problems import RequestRefusal
from service.request_trace import Trace

CONTEXT: Final = "vlm2rec.context"
"""Key of the context in the scope."""


@dataclass(slots=True)
class RequestContext:
    """State of one request.

    Attributes:
        began: `perf_counter` seconds when its first bytes were received.
        refusal: what to answer instead of asking the application; None: the application answers.
        overloaded: whether so much is in progress that there is only time for popular items.
        late: whether its body did not arrive in time.
        left: whether its client has closed the connection.
        trace: request id and stage times; set by `RequestMiddleware`.
        bodies: what all bodies that are still arriving may take; set by `RequestMiddleware`.
    """

    began: float
    refusal: RequestRefusal | None = None
    overloaded: bool = False
    late: bool = False
    left: bool = False
    trace: Trace = field(init=False)
    bodies: BodyBudget = field(init=False)


def context_of(scope: Mapping[str, object]) -> RequestContext:
    """The context of a request, from Starlette's scope or uvicorn's."""
    return cast("RequestContext", scope[CONTEXT])
