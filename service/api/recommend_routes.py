"""Answers the routes of recommendations."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from index.bundle.bundle import Bundle
from service.access.auth import KeyRing
from service.api import request_models, response_models
from service.api.openapi import operation
from service.api.queries import check_fields, recommend_query, similar_query
from service.api.rendering import ResponseBodies, json_response
from service.api.request_body import read_json, validate
from service.api.routing import BODY_PROBLEMS, Operation, add_operations, admit_to_data
from service.bundles.active_bundle import ActiveBundle
from service.recommend.query import Recommendations, Strategy
from service.recommend.recommender import Recommender
from service.request_trace import Trace

_RECOMMEND = operation(body=request_models.RecommendRequest)
_SIMILAR = operation(body=request_models.SimilarRequest)

_OPERATIONS = (
    Operation(
        "POST", "/recommend", "recommend", "recommend", response_models.RecommendAnswer, BODY_PROBLEMS, _RECOMMEND
    ),
    Operation(
        "POST", "/similar", "similar", "recommend", response_models.RecommendAnswer, (404, *BODY_PROBLEMS), _SIMILAR
    ),
)


class RecommendRoutes:
    """Handlers of recommendations; each reads the active bundle once.

    Args:
        keys: of the data routes.
        active_bundle: the bundle that answers.
        recommender: finds items.
        bodies: builds the bodies of the responses.
    """

    def __init__(
        self,
        *,
        keys: KeyRing,
        active_bundle: ActiveBundle,
        recommender: Recommender,
        bodies: ResponseBodies,
    ) -> None:
        self._keys = keys
        self._active_bundle = active_bundle
        self._recommender = recommender
        self._bodies = bodies

    def register(self, app: FastAPI) -> None:
        """Add all routes with their documentation."""
        add_operations(app, self, _OPERATIONS)

    async def recommend(self, request: Request) -> Response:
        """Recommend items to a user, or for a list of items, oldest first."""
        trace = admit_to_data(request, self._keys, self._active_bundle)
        params = validate(request_models.RecommendRequest, await read_json(request))
        bundle = self._active_bundle.get()
        check_fields(bundle, params.fields)
        trace.lap("parse")
        answer = await self._recommender.recommend(bundle, recommend_query(bundle, params), trace)
        return self._recommended(bundle, params, answer, trace, wanted="sequence")

    async def similar(self, request: Request) -> Response:
        """Find the neighbours of an item, or of several; the order of the items has no part in it."""
        trace = admit_to_data(request, self._keys, self._active_bundle)
        params = validate(request_models.SimilarRequest, await read_json(request))
        bundle = self._active_bundle.get()
        check_fields(bundle, params.fields)
        query = similar_query(bundle, params)
        trace.lap("parse")
        answer = await self._recommender.similar(bundle, query, trace)
        return self._recommended(bundle, params, answer, trace, wanted="similar")

    def _recommended(
        self,
        bundle: Bundle,
        params: request_models.RetrievalRequest,
        answer: Recommendations,
        trace: Trace,
        *,
        wanted: Strategy,
    ) -> Response:
        response = json_response(self._bodies.body(bundle, params, answer, trace, wanted=wanted))
        trace.lap("write")
        return response
