"""Answers the admin routes, which swap bundles and hide items on all replicas."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from structlog.typing import FilteringBoundLogger

from service.access.auth import KeyRing
from service.api import request_models, response_models
from service.api.openapi import operation, path_parameter
from service.api.rendering import json_response
from service.api.request_body import has_body, read_json, shown, validate
from service.api.routing import BODY_PROBLEMS, KEY_PROBLEMS, Operation, add_operations, admit, item_id_of
from service.bundles.active_bundle import ActiveBundle
from service.bundles.operator_state import OperatorState
from service.bundles.watcher import Watcher
from service.errors import UnknownItem

_AVAILABILITY = operation(
    body=request_models.AvailabilityRequest, parameters=[path_parameter("item_id", "Percent-encoded, a slash too.")]
)
_ROLLBACK = operation(body=request_models.RollbackRequest, body_is_needed=False)

_OPERATIONS = (
    Operation(
        "PUT", "/items/{item_id}/availability", "set_availability", "admin", None, (404, *BODY_PROBLEMS), _AVAILABILITY
    ),
    Operation("POST", "/bundle/reload", "reload", "admin", response_models.SwapAnswer, (409, *KEY_PROBLEMS)),
    Operation(
        "POST", "/bundle/rollback", "roll_back", "admin", response_models.SwapAnswer, (409, *BODY_PROBLEMS), _ROLLBACK
    ),
)


class AdminRoutes:
    """Handlers of the admin routes.

    Args:
        keys: of the admin routes.
        active_bundle: the bundle that answers.
        operator_state: pin and hidden items.
        watcher: swaps bundles.
        log: the service's logger.
    """

    def __init__(
        self,
        *,
        keys: KeyRing,
        active_bundle: ActiveBundle,
        operator_state: OperatorState,
        watcher: Watcher,
        log: FilteringBoundLogger,
    ) -> None:
        self._keys = keys
        self._active_bundle = active_bundle
        self._operator_state = operator_state
        self._watcher = watcher
        self._log = log

    def register(self, app: FastAPI) -> None:
        """Add all routes with their documentation."""
        add_operations(app, self, _OPERATIONS)

    async def set_availability(self, request: Request) -> Response:
        """Hide an item from every answer of every replica, or show it again."""
        admit(request, self._keys)
        self._active_bundle.admit()
        body = await read_json(request)
        available = validate(request_models.AvailabilityRequest, body).available
        bundle, operator_state = self._active_bundle.get(), self._operator_state
        item_id = item_id_of(request)
        if item_id not in bundle.ids and not (available and item_id in operator_state.hidden):
            raise UnknownItem(f"item_id must be in bundle {bundle.id}; received {shown(item_id)}")
        await operator_state.set_available(item_id, available)
        self._log.info("availability set", item_id=item_id, available=available)
        return Response(status_code=204)

    async def reload(self, request: Request) -> Response:
        """Clear the pin and let the bundle that the registry points to answer, tried again if it was refused."""
        admit(request, self._keys)
        return self._swapped(await self._watcher.reload())

    async def roll_back(self, request: Request) -> Response:
        """Pin the bundle before, or a named one, for all replicas."""
        admit(request, self._keys)
        body = await read_json(request) if has_body(request) else {}
        return self._swapped(await self._watcher.roll_back(validate(request_models.RollbackRequest, body).bundle))

    def _swapped(self, swapped: bool) -> Response:
        bundle = self._active_bundle.get()
        return json_response({"bundle": bundle.id, "swapped": swapped, "pin": self._operator_state.pin})
