"""Answers the routes of users: stores events, shows histories and profiles, erases users."""

from functools import partial
from time import time
from urllib.parse import unquote

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from index.errors import EncoderError
from service.access.auth import KeyRing
from service.api import request_models, response_models
from service.api.openapi import operation, path_parameter
from service.api.rendering import json_response, samples_of
from service.api.request_body import read_json, shown, validate
from service.api.routing import BODY_PROBLEMS, Operation, add_operations, admit_to_data
from service.bundles.active_bundle import ActiveBundle
from service.bundles.operator_state import OperatorState
from service.errors import RuleBroken, RuleViolation
from service.recommend.modality_profile import ModalityProfile, profile_of
from service.recommend.recent_histories import RecentHistories
from service.request_trace import Trace
from service.runtime.bounded_executor import BoundedExecutor
from service.settings.groups import HistorySettings
from service.stores.protocols import Event, HistoryStore
from service.telemetry.metrics import Metrics

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
    """Handlers of the users' routes.

    Args:
        keys: of the data routes.
        active_bundle: the bundle that answers.
        histories: store of histories and events.
        operator_state: announces an erasure to all replicas.
        recent: histories of recent requests; an erasure clears them.
        executor: runs the encoder for a profile; None: the event loop does, as on a GPU.
        metrics: counts events.
        log: the service's logger.
        retention: what is stored of users.
    """

    def __init__(
        self,
        *,
        keys: KeyRing,
        active_bundle: ActiveBundle,
        histories: HistoryStore,
        operator_state: OperatorState,
        recent: RecentHistories,
        executor: BoundedExecutor | None,
        metrics: Metrics,
        log: FilteringBoundLogger,
        retention: HistorySettings,
    ) -> None:
        self._keys = keys
        self._active_bundle = active_bundle
        self._histories = histories
        self._operator_state = operator_state
        self._recent = recent
        self._executor = executor
        self._metrics = metrics
        self._log = log
        self._require_consent = retention.require_consent

    def register(self, app: FastAPI) -> None:
        """Add all routes with their documentation."""
        add_operations(app, self, _OPERATIONS)

    async def store_events(self, request: Request) -> Response:
        """Store one event, or up to 1000, all or none; an event that is answered as stored is in Redis.

        Events of users without consent are validated and counted, and not stored.
        """
        trace = admit_to_data(request, self._keys, self._active_bundle)
        body = await read_json(request)
        if isinstance(body, dict) and "events" in body:
            received = validate(request_models.EventsRequest, body).events
        else:
            received = [validate(request_models.EventRequest, body)]
        trace.lap("parse")
        now = time()
        by_default = not self._require_consent
        events = [_event(event, now) for event in received if (by_default if event.consent is None else event.consent)]
        stored = await self._histories.append(events) if events else 0
        trace.lap("store")
        duplicates, refused = len(events) - stored, len(received) - len(events)
        self._metrics.events(stored=stored, duplicates=duplicates, without_consent=refused)
        return json_response({"stored": stored, "duplicates": duplicates, "without_consent": refused})

    async def history(self, request: Request) -> Response:
        """The stored history of a user, newest last."""
        trace = admit_to_data(request, self._keys, self._active_bundle)
        user_id = _user_id(request)
        entries = await self._histories.entries(user_id)
        trace.lap("history")
        steps = [{"item_id": entry.item_id, "timestamp": entry.timestamp, "type": entry.type} for entry in entries]
        return json_response({"user_id": user_id, "items": steps})

    async def profile(self, request: Request) -> Response:
        """How visual and how textual a user is: share per slot, by the items that followed in the history."""
        trace = admit_to_data(request, self._keys, self._active_bundle)
        user_id = _user_id(request)
        item_ids = await self._histories.recent(user_id)
        trace.lap("history")
        bundle = self._active_bundle.get()
        profile = await self._profile(bundle, item_ids, trace)
        trace.lap("encode")
        return json_response(
            {"user_id": user_id, "bundle": bundle.id, "steps": profile.steps, "shares": profile.shares}
        )

    async def _profile(self, bundle: Bundle, item_ids: list[str], trace: Trace) -> ModalityProfile:
        work = partial(profile_of, bundle, item_ids)
        try:
            return work() if self._executor is None else await self._executor.run(work)
        except EncoderError as error:
            reason = str(error)
        self._log.error("encoder failed", request_id=trace.request_id, reason=reason)
        return ModalityProfile(0, None)

    async def samples(self, request: Request) -> Response:
        """A few held-out histories of anonymous users, each with the item that followed."""
        admit_to_data(request, self._keys, self._active_bundle)
        bundle = self._active_bundle.get()
        return json_response({"bundle": bundle.id, "samples": samples_of(bundle, _SAMPLES)})

    async def erase_user(self, request: Request) -> Response:
        """Erase all data of a user; an unknown user is no error."""
        trace = admit_to_data(request, self._keys, self._active_bundle)
        user_id = _user_id(request)
        try:
            await self._histories.erase(user_id)
            await self._operator_state.announce_erasure()
        finally:
            # After the store: a history that was read before the erasure is dropped too, and none is added any more.
            self._recent.clear()
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
    """The validated user id in the path."""
    sent: str = request.path_params["user_id"]
    try:
        return _USER_ADAPTER.validate_python(unquote(sent, errors="strict"))
    except (UnicodeDecodeError, ValidationError):
        rule = "must be 1 to 256 bytes of percent-encoded UTF-8 without control characters"
        raise RuleBroken([RuleViolation("user_id", shown(sent), rule)]) from None
