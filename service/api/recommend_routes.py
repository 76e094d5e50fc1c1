"""Routes of recommendations, of the bundle and of operations: from wire types to the recommender and back. No logic."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from index.bundle.bundle import Bundle
from service.api import request_models, response_models
from service.api.dependencies import Services, admit_to_data
from service.api.openapi import operation
from service.api.rendering import age_s, json_response, report_of
from service.api.request_body import read_json, validate
from service.api.request_rules import answer_body, check_fields, recommend_query, similar_query
from service.api.routing import BODY_PROBLEMS, NamedRoute, Operation, add_operations
from service.errors import NotReady
from service.recommend.query import Recommendations, Strategy
from service.request_trace import Trace
from service.telemetry.metrics import CONTENT_TYPE

_RECOMMEND = operation(body=request_models.RecommendRequest)
_SIMILAR = operation(body=request_models.SimilarRequest)

_OPERATIONS = (
    Operation(
        "POST", "/recommend", "recommend", "recommend", response_models.RecommendAnswer, BODY_PROBLEMS, _RECOMMEND
    ),
    Operation(
        "POST", "/similar", "similar", "recommend", response_models.RecommendAnswer, (404, *BODY_PROBLEMS), _SIMILAR
    ),
    Operation("GET", "/bundle", "bundle", "catalogue", response_models.BundleAnswer),
    Operation("GET", "/livez", "live", "operations", response_models.Health, ()),
    Operation("GET", "/readyz", "ready", "operations", response_models.Health, (503,)),
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
        add_operations(app, self, _OPERATIONS)
        app.router.routes.append(NamedRoute("/metrics", self.metrics))

    async def recommend(self, request: Request) -> Response:
        """Recommend items to a user, or for a list of items, oldest first."""
        trace = admit_to_data(request, self._services)
        wish = validate(request_models.RecommendRequest, await read_json(request, self._services.body_limit))
        bundle = self._services.current.get()
        check_fields(bundle, wish.fields)
        trace.lap("parse")
        answer = await self._services.recommender.recommend(bundle, recommend_query(bundle, wish), trace)
        return self._recommended(bundle, wish, answer, trace, wanted="sequence")

    async def similar(self, request: Request) -> Response:
        """Find the neighbours of an item, or of several; the order of the items has no part in it."""
        trace = admit_to_data(request, self._services)
        wish = validate(request_models.SimilarRequest, await read_json(request, self._services.body_limit))
        bundle = self._services.current.get()
        check_fields(bundle, wish.fields)
        query = similar_query(bundle, wish)
        trace.lap("parse")
        answer = await self._services.recommender.similar(bundle, query, trace)
        return self._recommended(bundle, wish, answer, trace, wanted="similar")

    async def bundle(self, request: Request) -> Response:
        """What answers now: manifest, report and age of the bundle; and what this replica does about others."""
        admit_to_data(request, self._services)
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
        if not self._services.batcher.alive:
            raise NotReady("the engine's threads keep dying; start this process again")
        redis = "up" if await self._services.histories.alive() else "down"
        troubles = self._services.redis_troubles.current
        more = {"redis_troubles": troubles} if troubles else {}
        return json_response({"status": "ready", "bundle": bundle.id, "redis": redis, **more})

    async def metrics(self, request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        self._services.metrics_keys.admit(request)
        return Response(await self._services.metrics_page.content(), media_type=CONTENT_TYPE)

    def _recommended(
        self, bundle: Bundle, wish: request_models.Wish, answer: Recommendations, trace: Trace, *, wanted: Strategy
    ) -> Response:
        response = json_response(answer_body(self._services, bundle, wish, answer, trace, wanted=wanted))
        trace.lap("write")
        return response
