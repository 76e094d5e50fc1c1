"""Answers the admin routes, which swap bundles and hide items on all replicas, and keeps the audit log."""

from time import time
from typing import Any, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from structlog.typing import FilteringBoundLogger

from service.access.auth import KeyRing
from service.api import response_models
from service.api.openapi import operation, path_parameter
from service.api.rendering import json_response
from service.api.requests import request_models
from service.api.requests.request_body import read_json, read_optional_json, shown, validate
from service.api.routing import BODY_PROBLEMS, KEY_PROBLEMS, Operation, add_operations, admit, item_id_of
from service.bundles.active_bundle import ActiveBundle
from service.bundles.operator_state import OperatorState
from service.bundles.watcher import Watcher
from service.errors import UnknownItem
from service.http.request_context import context_of

_KEY_DIGITS: Final = 8
_AVAILABILITY = operation(
    body=request_models.AvailabilityRequest, parameters=[path_parameter("item_id", "Percent-encoded, a slash too.")]
)
_ROLLBACK = operation(body=request_models.RollbackRequest, body_is_needed=False)

_OPERATIONS = (
    Operation(
        "PUT", "/items/{item_id}/availability", "set_availability", "admin", None, (404, *BODY_PROBLEMS), _AVAILABILITY
    ),
    Operation("GET", "/audit", "audit", "admin", response_models.AuditAnswer),
    Operation("POST", "/bundle/reload", "reload", "admin", response_models.SwapAnswer, (409, *KEY_PROBLEMS)),
    Operation(
        "POST", "/bundle/rollback", "roll_back", "admin", response_models.SwapAnswer, (409, *BODY_PROBLEMS), _ROLLBACK
    ),
)


class AuditLog:
    """Notes who changes what, before it is changed, so that no change is without its entry.

    A key is named by the first eight digits of its SHA-256, and by its name where it has one.

    Args:
        keys: of the admin routes.
        operator_state: has the log of all replicas.
    """

    def __init__(self, keys: KeyRing, operator_state: OperatorState) -> None:
        self._keys = keys
        self._operator_state = operator_state

    async def note(self, request: Request, action: str, target: str | None) -> None:
        """Note that a change is about to be made.

        Args:
            request: admitted before.
            action: what is done, one of a few words.
            target: to which bundle, item or experiment; None: to that which the service finds.

        Raises:
            OperatorStateUnavailable: the log cannot be written; nothing may be changed.
        """
        digest = self._keys.check(request.headers) or b""
        await self._operator_state.log_change(
            {
                "at": round(time(), 3),
                "key": digest.hex()[:_KEY_DIGITS],
                "name": self._keys.name_of(digest),
                "action": action,
                "target": target,
                "request_id": context_of(request.scope).trace.request_id,
            }
        )

    async def entries(self) -> list[dict[str, Any]]:
        """The newest 1000 entries, newest first; raises as :meth:`note`."""
        return await self._operator_state.logged_changes()


class AdminRoutes:
    """Handlers of the admin routes.

    Args:
        keys: of the admin routes.
        active_bundle: the bundle that answers.
        operator_state: pin and hidden items.
        watcher: swaps bundles.
        audit: gets an entry for every change.
        log: the service's logger.
    """

    def __init__(
        self,
        *,
        keys: KeyRing,
        active_bundle: ActiveBundle,
        operator_state: OperatorState,
        watcher: Watcher,
        audit: AuditLog,
        log: FilteringBoundLogger,
    ) -> None:
        self._keys = keys
        self._active_bundle = active_bundle
        self._operator_state = operator_state
        self._watcher = watcher
        self._audit = audit
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
        item_id = item_id_of(request, bundle.id)
        known = any(item_id in held.ids for held in self._active_bundle.in_memory)
        if not known and not (available and item_id in operator_state.hidden):
            raise UnknownItem(f"item_id must be in bundle {bundle.id}; received {shown(item_id)}")
        await self._audit.note(request, "show item" if available else "hide item", item_id)
        await operator_state.set_available(item_id, available)
        self._log.info("availability set", item_id=item_id, available=available)
        return Response(status_code=204)

    async def reload(self, request: Request) -> Response:
        """Clear the pin and let the bundle that the registry points to answer, tried again if it was refused."""
        admit(request, self._keys)
        await self._audit.note(request, "reload", None)
        return self._swapped(await self._watcher.reload())

    async def roll_back(self, request: Request) -> Response:
        """Pin the bundle before, or a named one, for all replicas."""
        admit(request, self._keys)
        bundle = validate(request_models.RollbackRequest, await read_optional_json(request)).bundle
        await self._audit.note(request, "roll back", bundle)
        return self._swapped(await self._watcher.roll_back(bundle))

    async def audit(self, request: Request) -> Response:
        """What administrators changed, or tried to change, by the key that they used; newest first."""
        admit(request, self._keys)
        return json_response({"changes": await self._audit.entries()})

    def _swapped(self, swapped: bool) -> Response:
        bundle = self._active_bundle.get()
        return json_response({"bundle": bundle.id, "swapped": swapped, "pin": self._operator_state.pin})
