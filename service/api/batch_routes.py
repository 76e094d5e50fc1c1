"""The batch route: many recommendations in one request, each with an answer or a problem of its own. No logic."""

import asyncio
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from index.bundle.bundle import Bundle
from service.api import request_models, response_models
from service.api.dependencies import Services, admit_to_data
from service.api.openapi import operation
from service.api.rendering import json_response
from service.api.request_body import read_json, validate
from service.api.request_rules import answer_body, check_fields, recommend_query
from service.api.routing import BODY_PROBLEMS, Operation, add_operations
from service.http.problems import ANSWERED_ERRORS, INTERNAL, error_body, problem_body
from service.recommend.batch_histories import BatchHistories
from service.recommend.recommender import Recommender
from service.request_trace import Trace

# Members at work at the same time: enough to fill a batch of the engine, few enough that others get their turn.
_AT_ONCE = 8
_BATCH = operation(body=request_models.BatchRequest)
_OPERATIONS = (
    Operation(
        "POST", "/recommend/batch", "recommend_batch", "recommend", response_models.BatchAnswer, BODY_PROBLEMS, _BATCH
    ),
)

_Checked = request_models.RecommendRequest | Exception


class BatchRoutes:
    """The handler.

    Args:
        services: what it works with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def register(self, app: FastAPI) -> None:
        """Add the route with its documentation."""
        add_operations(app, self, _OPERATIONS)

    async def recommend_batch(self, request: Request) -> Response:
        """Recommend for up to 256 requests at once, all from one bundle; a bad one gets its own problem."""
        trace = admit_to_data(request, self._services)
        batch = validate(request_models.BatchRequest, await read_json(request, self._services.body_limit))
        self._services.data_keys.charge(request, len(batch.requests))
        bundle = self._services.current.get()
        members = [_checked(bundle, member) for member in batch.requests]
        trace.lap("parse")
        histories = BatchHistories(self._services.histories, _users(bundle, members))
        recommender, gate = self._services.recommender.with_histories(histories), asyncio.Semaphore(_AT_ONCE)
        try:
            answers = await asyncio.gather(
                *(self._answer(bundle, member, recommender, gate, trace) for member in members)
            )
        finally:
            histories.close()
        response = json_response({"request_id": trace.request_id, "bundle": bundle.id, "answers": answers})
        trace.lap("write")
        return response

    async def _answer(
        self, bundle: Bundle, member: _Checked, recommender: Recommender, gate: asyncio.Semaphore, trace: Trace
    ) -> orjson.Fragment:
        """The answer to one member, or its problem, as JSON; whatever fails in here ends no other member."""
        async with gate:
            try:
                body = await self._recommended(bundle, member, recommender, trace)
            except ANSWERED_ERRORS as error:
                body = {"problem": error_body(error, request_id=trace.request_id)}
            except Exception:  # as in the envelope: logged, and this member gets a problem
                self._services.log.exception("failed", request_id=trace.request_id)
                detail = f"the log has the reason under request_id {trace.request_id}"
                body = {"problem": problem_body(INTERNAL, detail, request_id=trace.request_id)}
            written = orjson.Fragment(orjson.dumps(body))
            trace.lap("write")
            return written

    async def _recommended(
        self, bundle: Bundle, member: _Checked, recommender: Recommender, trace: Trace
    ) -> dict[str, Any]:
        if isinstance(member, Exception):
            raise member
        answer = await recommender.recommend(bundle, recommend_query(bundle, member), trace)
        return answer_body(self._services, bundle, member, answer, trace, wanted="sequence")


def _checked(bundle: Bundle, member: Any) -> _Checked:  # noqa: ANN401 - any JSON value
    """A member held to the rules, or how it breaks them, or what failed in here; it ends no other member."""
    try:
        wish = validate(request_models.RecommendRequest, member)
        check_fields(bundle, wish.fields)
    except Exception as error:  # noqa: BLE001 - raised again where this member is answered, and logged there
        return error
    return wish


def _users(bundle: Bundle, members: list[_Checked]) -> list[str]:
    """Whose stored histories count."""
    queries = (
        recommend_query(bundle, member) for member in members if isinstance(member, request_models.RecommendRequest)
    )
    return [query.user_id for query in queries if query.user_id is not None]
