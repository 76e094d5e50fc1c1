"""Answers the routes of recommendations."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from index.bundle.bundle import Bundle
from service.access.auth import KeyRing
from service.api import response_models
from service.api.merged_sessions import of_its_user, session_alone
from service.api.openapi import operation
from service.api.outcomes.arms import Arms, InterleavedArms
from service.api.outcomes.interleaved_answers import InterleavedAnswers
from service.api.outcomes.kept_answers import KeptAnswers
from service.api.queries import check_fields, recommend_query, similar_query
from service.api.rendering import ResponseBodies, json_response
from service.api.requests import request_models
from service.api.requests.request_body import read_json, validate
from service.api.routing import BODY_PROBLEMS, Operation, add_operations, admit_to_data
from service.bundles.active_bundle import ActiveBundle
from service.recommend.batch_histories import BatchHistories
from service.recommend.query import Recommendations, Strategy
from service.recommend.recommender import Recommender
from service.request_trace import Trace
from service.stores.protocols import session_owner

_RECOMMEND = operation(body=request_models.RecommendRequest)
_SIMILAR = operation(body=request_models.SimilarRequest)

_OPERATIONS = (
    Operation(
        "POST",
        "/recommend",
        "recommend",
        "recommend",
        response_models.RecommendAnswer,
        BODY_PROBLEMS,
        _RECOMMEND,
        scope="recommend",
    ),
    Operation(
        "POST",
        "/similar",
        "similar",
        "recommend",
        response_models.RecommendAnswer,
        (404, *BODY_PROBLEMS),
        _SIMILAR,
        scope="recommend",
    ),
)


class RecommendRoutes:
    """Handlers of recommendations; each reads the active bundle once.

    Args:
        keys: of the data routes.
        active_bundle: the bundle that answers.
        recommender: finds items.
        bodies: builds the bodies of the responses.
        kept: keeps answers for their outcomes.
        arms: chooses the arm of a user where an experiment runs.
        interleaved: answers where both arms give items.
    """

    def __init__(
        self,
        *,
        keys: KeyRing,
        active_bundle: ActiveBundle,
        recommender: Recommender,
        bodies: ResponseBodies,
        kept: KeptAnswers,
        arms: Arms,
        interleaved: InterleavedAnswers,
    ) -> None:
        self._keys = keys
        self._active_bundle = active_bundle
        self._recommender = recommender
        self._bodies = bodies
        self._kept = kept
        self._arms = arms
        self._interleaved = interleaved

    def register(self, app: FastAPI) -> None:
        """Add all routes with their documentation."""
        add_operations(app, self, _OPERATIONS)

    async def recommend(self, request: Request) -> Response:
        """Recommend items to a user, or for a list of items, oldest first."""
        trace = admit_to_data(request, self._keys, self._active_bundle)
        params = validate(request_models.RecommendRequest, await read_json(request))
        session = session_alone(params)
        if session is None or trace.overloaded:
            return await self._recommend(params, self._recommender, trace)
        trace.lap("parse")
        # The history and the user of the session are read in one round trip.
        histories = BatchHistories(self._recommender.histories, [session_owner(session)], None, [session])
        recommender = self._recommender.with_histories(histories)
        try:
            params = await of_its_user(params, histories, trace)
            trace.lap("history")
            return await self._recommend(params, recommender, trace)
        finally:
            histories.close()

    async def _recommend(
        self, params: request_models.RecommendRequest, recommender: Recommender, trace: Trace
    ) -> Response:
        bundle, arm = self._active_bundle.get(), self._arms.of(params.owner)
        if isinstance(arm, InterleavedArms):
            return await self._interleaved.recommend(arm, params, recommender, trace)
        if arm is not None:
            bundle, params = arm.bundle, arm.applied(params)
        check_fields(bundle, params.fields)
        trace.lap("parse")
        keeps = self._kept.wanted(params, trace)
        query = recommend_query(bundle, params, contributions_later=keeps)
        answer = await recommender.recommend(bundle, query, trace)
        return self._recommended(
            bundle, params, answer, trace, wanted="sequence", keeps=keeps, arm=None if arm is None else arm.label
        )

    async def similar(self, request: Request) -> Response:
        """Find the neighbours of an item, or of several; the order of the items has no part in it."""
        trace = admit_to_data(request, self._keys, self._active_bundle)
        params = validate(request_models.SimilarRequest, await read_json(request))
        bundle = self._active_bundle.get()
        check_fields(bundle, params.fields)
        keeps = self._kept.wanted(params, trace)
        query = similar_query(bundle, params, contributions_later=keeps)
        trace.lap("parse")
        answer = await self._recommender.similar(bundle, query, trace)
        return self._recommended(bundle, params, answer, trace, wanted="similar", keeps=keeps)

    def _recommended(
        self,
        bundle: Bundle,
        params: request_models.RetrievalRequest,
        answer: Recommendations,
        trace: Trace,
        *,
        wanted: Strategy,
        keeps: bool,
        arm: str | None = None,
    ) -> Response:
        body = self._bodies.body(bundle, params, answer, trace, wanted=wanted)
        if arm is not None:
            body["arm"] = arm
        response = json_response(body)
        trace.lap("write")
        self._kept.keep(bundle, params, answer, body, trace, wanted=keeps)
        return response
