"""Answers the route of outcomes: what answers brought, by one dimension."""

from time import time
from typing import Annotated, Literal

from fastapi import FastAPI
from pydantic import ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from service.access.auth import KeyRing
from service.api import response_models
from service.api.openapi import operation, query_parameters
from service.api.rendering import json_response
from service.api.requests.request_body import validate
from service.api.requests.request_models import MAX_TIMESTAMP
from service.api.routing import KEY_PROBLEMS, Operation, add_operations, admit_to_data
from service.bundles.active_bundle import ActiveBundle
from service.errors import Conflict, RuleBroken, RuleViolation
from service.outcomes.breakdown import LONGEST_S, Period, breakdown, left_out
from service.settings.plain_numbers import PlainNumbers
from service.stores.outcomes.outcome_store import OutcomeStore

OFF = "outcomes are off here: set VLM2REC_OUTCOMES=true to keep answers and to count what they bring"
"""Detail of the conflict with a request that needs outcomes."""

_DAY_S = 86_400.0


class OutcomesQuery(PlainNumbers):
    """Query parameters of ``GET /outcomes``."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    from_: Annotated[float, Field(ge=0, le=MAX_TIMESTAMP)] | SkipJsonSchema[None] = Field(
        None, alias="from", description="Seconds since 1970, UTC; its hour is the first. Missing: a day before `to`."
    )
    to: Annotated[float, Field(ge=0, le=MAX_TIMESTAMP)] | SkipJsonSchema[None] = Field(
        None, description="Seconds since 1970, UTC; at most 31 days after `from`. Missing: now."
    )
    by: Literal["position", "bundle", "arm", "strategy", "slot"] = Field(
        "position", description="The dimension by which is counted."
    )


_OUTCOMES = operation(parameters=query_parameters(OutcomesQuery))
_OPERATIONS = (
    Operation(
        "GET",
        "/outcomes",
        "outcomes",
        "outcomes",
        response_models.OutcomesAnswer,
        (409, *KEY_PROBLEMS),
        _OUTCOMES,
        scope="outcomes",
    ),
)


class OutcomeRoutes:
    """Handler of outcomes.

    Args:
        keys: of the data routes.
        active_bundle: the bundle that answers.
        store: has the counts; None: outcomes are off.
    """

    def __init__(self, *, keys: KeyRing, active_bundle: ActiveBundle, store: OutcomeStore | None) -> None:
        self._keys = keys
        self._active_bundle = active_bundle
        self._store = store

    def register(self, app: FastAPI) -> None:
        """Add the route with its documentation."""
        add_operations(app, self, _OPERATIONS)

    async def outcomes(self, request: Request) -> Response:
        """What the answers of a period brought, by position, bundle, arm, strategy or dominant slot."""
        trace = admit_to_data(request, self._keys, self._active_bundle, takes_query=True)
        asked = validate(OutcomesQuery, dict(request.query_params))
        if self._store is None:
            raise Conflict(OFF)
        period = _period(asked)
        entries = await breakdown(self._store, period, asked.by)
        missing = await left_out(self._store, period)
        trace.lap("count")
        answer = {"from": period.start, "to": period.end, "by": asked.by, "outcomes": entries, "left_out": missing}
        return json_response(answer)


def _period(asked: OutcomesQuery) -> Period:
    """The whole hours that were asked for; by default the last day.

    Raises:
        RuleBroken: the end is not after the start, or the period is too long.
    """
    end = time() if asked.to is None else asked.to
    start = max(0.0, end - _DAY_S) if asked.from_ is None else asked.from_
    if start >= end:
        raise RuleBroken([RuleViolation("to", f"{end:.0f}", f"must be after from, which is {start:.0f}")])
    if end - start > LONGEST_S:
        days = LONGEST_S // 86_400
        if asked.to is None:
            raise RuleBroken([RuleViolation("from", f"{start:.0f}", f"must be at most {days} days ago without to")])
        raise RuleBroken([RuleViolation("to", f"{end:.0f}", f"must be at most {days} days after from")])
    return Period.of(start, end)
