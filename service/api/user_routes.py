"""Routes of users: what they did, what is kept of them, and its erasure. No logic."""

from functools import partial
from time import time
from urllib.parse import unquote

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from index.bundle.bundle import Bundle
from index.errors import EncoderError
from service.api import request_models, response_models
from service.api.dependencies import Services, admit_to_data
from service.api.openapi import operation, path_parameter
from service.api.rendering import json_response, samples_of
from service.api.request_body import read_json, shown, validate
from service.api.routing import BODY_PROBLEMS, Operation, add_operations
from service.errors import RuleBroken, Violation
from service.recommend.modality_profile import ModalityProfile, profile_of
from service.request_trace import Trace
from service.stores.protocols import Event

_USER_ADAPTER: TypeAdapter[str] = TypeAdapter(request_models.Id)
_SAMPLES = 12
_EVENTS = operation(body=(request_models.EventRequest, request_models.EventsRequest))
_USER = operation(parameters=[path_parameter("user_id", "Percent-encoded, a slash too.")])

_OPERATIONS = (
    Operation("POST", "/events", "store_events", "users", response_models.StoredAnswer, BODY_PROBLEMS, _EVENTS),
    Operation("GET", "/users/{user_id}/history", "history", "users", response_models.HistoryAnswer, extra=_USER),
    Operation("GET", "/users/{user_id}/profile", "profile", "users", response_models.ProfileAnswer, extra=_USER),
    Operation("GET", "/users/samples", "samples", "users", response_models.SamplesAnswer),
    Operation("DELETE", "/users/{user_id}", "erase_user", "users", None, extra=_USER),
)


class UserRoutes:
    """The handlers.

    Args:
        services: what they work with.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def register(self, app: FastAPI) -> None:
        """Add all routes with their documentation."""
        add_operations(app, self, _OPERATIONS)

    async def store_events(self, request: Request) -> Response:
        """Store one event, or up to 1000, all or none; what is answered as stored is in Redis.

        Events of users without consent are held to the same rules, counted, and not kept in any form.
        """
        trace = admit_to_data(request, self._services)
        body = await read_json(request, self._services.body_limit)
        if isinstance(body, dict) and "events" in body:
            received = validate(request_models.EventsRequest, body).events
        else:
            received = [validate(request_models.EventRequest, body)]
        trace.lap("parse")
        now = time()
        unsaid = not self._services.require_consent
        events = [_event(event, now) for event in received if (unsaid if event.consent is None else event.consent)]
        stored = await self._services.histories.append(events) if events else 0
        trace.lap("store")
        duplicates, refused = len(events) - stored, len(received) - len(events)
        self._services.metrics.events(stored=stored, duplicates=duplicates, without_consent=refused)
        return json_response({"stored": stored, "duplicates": duplicates, "without_consent": refused})

    async def history(self, request: Request) -> Response:
        """The kept history of a user, newest last."""
        trace = admit_to_data(request, self._services)
        user_id = _user_id(request)
        entries = await self._services.histories.entries(user_id)
        trace.lap("history")
        steps = [{"item_id": entry.item_id, "timestamp": entry.timestamp, "type": entry.type} for entry in entries]
        return json_response({"user_id": user_id, "items": steps})

    async def profile(self, request: Request) -> Response:
        """How visual, how textual: share per slot of what the user really took next."""
        trace = admit_to_data(request, self._services)
        user_id = _user_id(request)
        item_ids = await self._services.histories.recent(user_id)
        trace.lap("history")
        bundle = self._services.current.get()
        profile = await self._profile(bundle, item_ids, trace)
        trace.lap("encode")
        return json_response(
            {"user_id": user_id, "bundle": bundle.id, "steps": profile.steps, "shares": profile.shares}
        )

    async def _profile(self, bundle: Bundle, item_ids: list[str], trace: Trace) -> ModalityProfile:
        work = partial(profile_of, bundle, item_ids)
        try:
            return work() if self._services.one_thread else await self._services.slow_lane.run(work)
        except EncoderError as error:
            trouble = str(error)
        self._services.log.error("encoder failed", request_id=trace.request_id, reason=trouble)
        return ModalityProfile(0, None)

    async def samples(self, request: Request) -> Response:
        """A few held-out histories of users without a name, and what they really took next."""
        admit_to_data(request, self._services)
        bundle = self._services.current.get()
        return json_response({"bundle": bundle.id, "samples": samples_of(bundle, _SAMPLES)})

    async def erase_user(self, request: Request) -> Response:
        """Erase all that is kept of a user; one that was never seen is no error."""
        trace = admit_to_data(request, self._services)
        user_id = _user_id(request)
        try:
            await self._services.histories.erase(user_id)
            await self._services.directives.announce_erasure()
        finally:
            # After the store: a history that was read before it was erased is then forgotten, or not taken any more.
            self._services.recent.clear()
        trace.lap("erase")
        return Response(status_code=204)


def _event(event: request_models.EventRequest, now: float) -> Event:
    return Event(
        event.user_id,
        event.item_id,
        now if event.timestamp is None else event.timestamp,
        event.type,
        event.event_id,
        event.request_id,
    )


def _user_id(request: Request) -> str:
    """The user id in the path, held to the rule for ids."""
    sent: str = request.path_params["user_id"]
    try:
        return _USER_ADAPTER.validate_python(unquote(sent, errors="strict"))
    except (UnicodeDecodeError, ValidationError):
        rule = "must be 1 to 256 bytes of percent-encoded UTF-8 without control characters"
        raise RuleBroken([Violation("user_id", shown(sent), rule)]) from None
