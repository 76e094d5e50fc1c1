"""Admin routes: what operators do to all replicas: swap bundles, hide items. No logic."""

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from service.api import request_models, response_models
from service.api.dependencies import Services, admit, item_id_of
from service.api.openapi import operation, path_parameter
from service.api.rendering import json_response
from service.api.request_body import has_body, read_json, shown, validate
from service.api.routing import BODY_PROBLEMS, KEY_PROBLEMS, Operation, add_operations
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
    """The handlers.

    Args:
        services: what they work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def register(self, app: FastAPI) -> None:
        """Add all routes with their documentation."""
        add_operations(app, self, _OPERATIONS)

    async def set_availability(self, request: Request) -> Response:
        """Hide an item from every answer of every replica, or show it again."""
        admit(request, self._services.admin_keys)
        self._services.current.admit()
        body = await read_json(request, self._services.body_limit)
        available = validate(request_models.AvailabilityRequest, body).available
        bundle, directives = self._services.current.get(), self._services.directives
        item_id = item_id_of(request)
        if item_id not in bundle.ids and not (available and item_id in directives.hidden):
            raise UnknownItem(f"item_id must be in bundle {bundle.id}; received {shown(item_id)}")
        await directives.set_available(item_id, available)
        self._services.log.info("availability set", item_id=item_id, available=available)
        return Response(status_code=204)

    async def reload(self, request: Request) -> Response:
        """Clear the pin and let the bundle that the registry points to answer, tried again if it was refused."""
        admit(request, self._services.admin_keys)
        return self._swapped(await self._services.watcher.reload())

    async def roll_back(self, request: Request) -> Response:
        """Pin the bundle before, or a named one, for all replicas."""
        admit(request, self._services.admin_keys)
        body = await read_json(request, self._services.body_limit) if has_body(request) else {}
        return self._swapped(
            await self._services.watcher.roll_back(validate(request_models.RollbackRequest, body).bundle)
        )

    def _swapped(self, swapped: bool) -> Response:
        bundle = self._services.current.get()
        return json_response({"bundle": bundle.id, "swapped": swapped, "pin": self._services.directives.pin})
