"""Answers the routes of the active bundle, health and metrics."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from index.bundle.bundle import Bundle
from index.bundle.gate import licences_of
from index.bundle.unused_modalities import REMEDY
from service.access.auth import KeyRing
from service.api import response_models
from service.api.rendering import age_s, json_response, report_in
from service.api.routing import NamedRoute, Operation, add_operations, admit_to_data
from service.bundles.active_bundle import ActiveBundle
from service.bundles.watcher import Watcher
from service.errors import FilesUnavailable
from service.runtime.file_calls import FileCalls
from service.stores.protocols import HistoryStore
from service.stores.redis_faults import RedisFaults
from service.telemetry.metrics import CONTENT_TYPE
from service.telemetry.metrics_page import MetricsPage

_OPERATIONS = (
    Operation("GET", "/bundle", "bundle", "catalogue", response_models.BundleAnswer, scope="catalogue"),
    Operation("GET", "/livez", "live", "operations", response_models.Health, ()),
    Operation("GET", "/readyz", "ready", "operations", response_models.Health, (503,)),
)

_REPORT_LIMIT_S: Final = 1.0


class OperationsRoutes:
    """Handlers of the active bundle, health and metrics.

    Args:
        keys: of the data routes.
        metrics_keys: of the metrics.
        active_bundle: the bundle that answers.
        watcher: swaps bundles.
        files: reads the report of the bundle.
        check_ready: raises NotReady unless requests should be sent to this service.
        histories: the stored histories.
        redis_faults: the faults of Redis at the moment.
        metrics_page: the text of the metrics.
    """

    def __init__(
        self,
        *,
        keys: KeyRing,
        metrics_keys: KeyRing,
        active_bundle: ActiveBundle,
        watcher: Watcher,
        files: FileCalls,
        check_ready: Callable[[], None],
        histories: HistoryStore,
        redis_faults: RedisFaults,
        metrics_page: MetricsPage,
    ) -> None:
        self._keys = keys
        self._metrics_keys = metrics_keys
        self._active_bundle = active_bundle
        self._watcher = watcher
        self._files = files
        self._check_ready = check_ready
        self._histories = histories
        self._redis_faults = redis_faults
        self._metrics_page = metrics_page

    def register(self, app: FastAPI) -> None:
        """Add all routes; /metrics is not documented."""
        add_operations(app, self, _OPERATIONS)
        app.router.routes.append(NamedRoute("/metrics", self.metrics))

    async def bundle(self, request: Request) -> Response:
        """What answers now: manifest, report and age of the bundle; and what this replica does about others."""
        admit_to_data(request, self._keys, self._active_bundle)
        bundle = self._active_bundle.get()
        return json_response(
            {
                "bundle": bundle.id,
                "age_seconds": age_s(bundle),
                "items": len(bundle),
                "slots": {slot.name: slot.dim for slot in bundle.layout.slots},
                "max_history": bundle.max_history,
                "warnings": [f"{unused}; {REMEDY}" for unused in bundle.manifest.unused_modalities],
                "licences": list(licences_of(bundle.manifest.model)),
                "manifest": bundle.manifest.model_dump(mode="json"),
                "report": await self._report(bundle),
                "swap": self._watcher.status(),
            }
        )

    async def _report(self, bundle: Bundle) -> Any:  # noqa: ANN401 - any JSON value
        """The report of a bundle; None if it was pruned since, or its file system does not answer."""
        try:
            return await self._files.run(partial(report_in, bundle.path), patience_s=_REPORT_LIMIT_S)
        except FilesUnavailable:
            return None

    async def live(self, _request: Request) -> Response:
        """Whether the process is up."""
        return json_response({"status": "up"})

    async def ready(self, _request: Request) -> Response:
        """Whether a bundle is loaded and warm and others are watched for; with Redis down it is ready but degraded."""
        self._check_ready()
        bundle = self._active_bundle.get()
        redis = "up" if await self._histories.alive() else "down"
        faults = self._redis_faults.current
        more = {"redis_troubles": faults} if faults else {}
        return json_response({"status": "ready", "bundle": bundle.id, "redis": redis, **more})

    async def metrics(self, request: Request) -> Response:
        """Metrics in Prometheus' text format."""
        self._metrics_keys.admit(request)
        return Response(await self._metrics_page.content(), media_type=CONTENT_TYPE)
