"""Answers up to 256 recommendations in one request, each with a response or a problem of its own."""

import asyncio
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from service.access.auth import KeyRing
from service.api import response_models
from service.api.merged_sessions import of_its_user, session_alone
from service.api.openapi import operation
from service.api.outcomes.kept_answers import KeptAnswers
from service.api.queries import check_fields, recommend_query
from service.api.rendering import ResponseBodies, json_response
from service.api.requests import request_models
from service.api.requests.request_body import read_json, validate
from service.api.routing import BODY_PROBLEMS, Operation, add_operations, admit_to_data
from service.bundles.active_bundle import ActiveBundle
from service.http.admission import Admission
from service.http.problems import ANSWERED_ERRORS, INTERNAL, error_body, problem_body
from service.http.request_context import context_of
from service.recommend.batch_histories import MOST_READS, BatchHistories
from service.recommend.recommender import Recommender
from service.request_trace import Trace
from service.stores.protocols import HistoryStore

# Members in progress at the same time: enough to fill a batch of the engine, few enough to let other requests in.
_CONCURRENT = 8
_BATCH = operation(body=request_models.BatchRequest)
_OPERATIONS = (
    Operation(
        "POST",
        "/recommend/batch",
        "recommend_batch",
        "recommend",
        response_models.BatchAnswer,
        BODY_PROBLEMS,
        _BATCH,
        scope="recommend",
    ),
)

_NOT_ANSWERED = orjson.Fragment(b"null")  # nobody reads it

_Checked = request_models.RecommendRequest | Exception


class BatchRoutes:
    """Handler of the batch route.

    Args:
        keys: of the data routes.
        active_bundle: the bundle that answers.
        histories: store of histories and events.
        recommender: finds items.
        bodies: builds the bodies of the responses.
        kept: keeps answers for their outcomes.
        admission: counts the requests in progress.
        log: the service's logger.
    """

    def __init__(
        self,
        *,
        keys: KeyRing,
        active_bundle: ActiveBundle,
        histories: HistoryStore,
        recommender: Recommender,
        bodies: ResponseBodies,
        kept: KeptAnswers,
        admission: Admission,
        log: FilteringBoundLogger,
    ) -> None:
        self._keys = keys
        self._active_bundle = active_bundle
        self._histories = histories
        self._recommender = recommender
        self._bodies = bodies
        self._kept = kept
        self._admission = admission
        self._log = log
        self._turns = asyncio.Semaphore(MOST_READS)

    def register(self, app: FastAPI) -> None:
        """Add the route with its documentation."""
        add_operations(app, self, _OPERATIONS)

    async def recommend_batch(self, request: Request) -> Response:
        """Recommend for up to 256 requests at once, all from one bundle; a bad one gets its own problem."""
        trace = admit_to_data(request, self._keys, self._active_bundle)
        batch = validate(request_models.BatchRequest, await read_json(request))
        members = len(batch.requests)
        with self._admission.batch(members, f"a batch of {members} requests", overloaded=trace.overloaded):
            self._keys.charge(request, members)
            return await self._answered(request, batch.requests, trace)

    async def _answered(self, request: Request, requests: list[Any], trace: Trace) -> Response:
        bundle = self._active_bundle.get()
        members = [_checked(bundle, member) for member in requests]
        trace.lap("parse")
        read = [] if trace.overloaded else members  # under overload no history is used
        histories = BatchHistories(self._histories, _owners(bundle, read), self._turns, _sessions_alone(read))
        recommender, gate = self._recommender.with_histories(histories), asyncio.Semaphore(_CONCURRENT)
        try:
            answers = await asyncio.gather(
                *(self._answer(bundle, member, recommender, gate, request) for member in members)
            )
        finally:
            histories.close()
        response = json_response({"request_id": trace.request_id, "bundle": bundle.id, "answers": answers})
        trace.lap("write")
        return response

    async def _answer(
        self, bundle: Bundle, member: _Checked, recommender: Recommender, gate: asyncio.Semaphore, request: Request
    ) -> orjson.Fragment:
        """The response to one member, or its problem, as JSON; a failure ends no other member."""
        context = context_of(request.scope)
        trace = context.trace
        async with gate:
            if context.left:
                return _NOT_ANSWERED
            try:
                body = await self._recommended(bundle, member, recommender, trace)
            except ANSWERED_ERRORS as error:
                body = {"problem": error_body(error, request_id=trace.request_id)}
            except Exception:  # noqa: BLE001 - unexpected: logged, and this member gets a problem
                self._log.exception("failed", request_id=trace.request_id)
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
        member = await of_its_user(member, recommender.histories, trace)
        keeps = self._kept.wanted(member, trace)
        answer = await recommender.recommend(bundle, recommend_query(bundle, member, contributions_later=keeps), trace)
        body = self._bodies.body(bundle, member, answer, trace, wanted="sequence")
        self._kept.keep(bundle, member, answer, body, trace, wanted=keeps)
        return body


def _checked(bundle: Bundle, member: Any) -> _Checked:  # noqa: ANN401 - any JSON value
    """A validated member, or the error of its validation; it ends no other member."""
    try:
        params = validate(request_models.RecommendRequest, member)
        check_fields(bundle, params.fields)
    except Exception as error:  # noqa: BLE001 - raised again and logged where this member is answered
        return error
    return params


def _owners(bundle: Bundle, members: list[_Checked]) -> list[str]:
    """The users and sessions whose stored histories are read."""
    queries = (
        recommend_query(bundle, member) for member in members if isinstance(member, request_models.RecommendRequest)
    )
    return [owner for query in queries for owner in query.owners]


def _sessions_alone(members: list[_Checked]) -> list[str]:
    """The sessions that are named without a user, which may have been merged into one."""
    named = (session_alone(member) for member in members if isinstance(member, request_models.RecommendRequest))
    return [session for session in named if session is not None]
