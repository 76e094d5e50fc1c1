"""Answers the routes of users: stores events, shows histories and profiles, erases users."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from time import time
from urllib.parse import unquote

from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from index.bundle.event_types import EventTypes, Meaning
from index.errors import EncoderError
from service.access.auth import KeyRing
from service.api import response_models
from service.api.openapi import operation, path_parameter
from service.api.outcomes.arms import Arms
from service.api.rendering import json_response, samples_of
from service.api.requests import request_models
from service.api.requests.ids import Id
from service.api.requests.request_body import read_json, shown, validate
from service.api.routing import BODY_PROBLEMS, Operation, add_operations, admit_to_data
from service.bundles.active_bundle import ActiveBundle
from service.bundles.operator_state import OperatorState
from service.errors import BulkPartlyStored, RuleBroken, RuleViolation
from service.http.admission import Admission
from service.outcomes.outcomes import Outcomes
from service.recommend.contributions import ModalityProfile, profile_of
from service.recommend.recent_histories import RecentHistories
from service.recommend.stored_history import weighed
from service.request_trace import Trace
from service.runtime.bounded_executor import BoundedExecutor
from service.settings.groups import HistorySettings
from service.stores.outcomes.outcome_store import OutcomeStore
from service.stores.protocols import Event, HistoryEntry, HistoryStore, StoredIn, session_owner
from service.telemetry.metrics import Metrics

_USER_ADAPTER: TypeAdapter[str] = TypeAdapter(Id)
_SAMPLES = 12
_LARGEST_LEAD_S = 86_400
_EVENTS_OF_A_REQUEST = 64  # of a bulk: they take the service about as long as one recommendation
_STORED_IN: dict[Meaning, StoredIn] = {
    "positive": "history",
    "negative": "history",
    "impression": "impressions",
    "ignore": "stream",
}
_EVENTS = operation(body=(request_models.EventRequest, request_models.EventsRequest))
_IN_PATH = [path_parameter("user_id", "Percent-encoded, a slash too.")]
_USER = operation(parameters=_IN_PATH)
_MERGE = operation(body=request_models.MergeRequest, parameters=_IN_PATH)

_OPERATIONS = (
    Operation(
        "POST", "/events", "store_events", "users", response_models.StoredAnswer, BODY_PROBLEMS, _EVENTS, scope="events"
    ),
    Operation(
        "GET", "/users/{user_id}/history", "history", "users", response_models.HistoryAnswer, extra=_USER, scope="users"
    ),
    Operation(
        "GET",
        "/users/{user_id}/impressions",
        "impressions",
        "users",
        response_models.HistoryAnswer,
        extra=_USER,
        scope="users",
    ),
    Operation(
        "POST",
        "/users/{user_id}/merge",
        "merge",
        "users",
        response_models.MergedAnswer,
        (409, *BODY_PROBLEMS),
        _MERGE,
        scope="merge",
    ),
    Operation(
        "GET", "/users/{user_id}/profile", "profile", "users", response_models.ProfileAnswer, extra=_USER, scope="users"
    ),
    Operation("GET", "/users/samples", "samples", "users", response_models.SamplesAnswer, scope="users"),
    Operation("DELETE", "/users/{user_id}", "erase_user", "users", None, extra=_USER, scope="erase"),
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
        event_types: tells what the types of events mean for answers from a bundle.
        arms: chooses the arm of a user where an experiment runs.
        outcomes: attributes events to answers; None: none is attributed.
        outcome_store: has the answers to a user, also of the time before outcomes were switched off.
        admission: counts the requests in progress.
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
        event_types: Callable[[Bundle], EventTypes],
        arms: Arms,
        outcomes: Outcomes | None,
        outcome_store: OutcomeStore,
        admission: Admission,
    ) -> None:
        self._keys = keys
        self._active_bundle = active_bundle
        self._histories = histories
        self._operator_state = operator_state
        self._recent = recent
        self._executor = executor
        self._metrics = metrics
        self._log = log
        self._event_types = event_types
        self._arms = arms
        self._outcomes = outcomes
        self._forget_answers = outcome_store.forget if outcomes is None else outcomes.forget
        self._require_consent = retention.require_consent
        self._admission = admission

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
        weight, name = -(-len(received) // _EVENTS_OF_A_REQUEST), f"a bulk of {len(received)} events"
        with self._admission.batch(weight, name, overloaded=trace.overloaded):
            return await self._store(received, trace, whole="events" in body)

    async def _store(self, received: Sequence[request_models.EventRequest], trace: Trace, *, whole: bool) -> Response:
        now = time()
        types = self._event_types(self._active_bundle.get())
        _check_times(received, now, whole=whole)
        places = self._with_consent(received)
        events = _events([received[place] for place in places], now, types, self._arms)
        sessions = _MergedSessions(self._arms)
        try:
            new = await self._histories.append(events, sessions.of_user) if events else ()
        except BulkPartlyStored as partly:
            self._count_part(partly, received, places, sessions.resolved(events), types)
            raise partly.at(places) from partly
        trace.lap("store")
        self._attribute(sessions.resolved(events), range(len(events)), new)
        stored, duplicates, refused = len(new), len(events) - len(new), len(received) - len(events)
        unknown = _unknown_types(received, types)
        self._metrics.events(stored=stored, duplicates=duplicates, without_consent=refused, unknown_types=unknown)
        return json_response({"stored": stored, "duplicates": duplicates, "without_consent": refused})

    def _with_consent(self, received: Sequence[request_models.EventRequest]) -> Sequence[int]:
        """Positions of the events that may be stored."""
        by_default = not self._require_consent
        consents = [by_default if event.consent is None else event.consent for event in received]
        return range(len(received)) if all(consents) else [place for place, given in enumerate(consents) if given]

    def _attribute(self, events: Sequence[Event], stored: Iterable[int], new: Sequence[int]) -> None:
        """Hand stored events to the outcomes, without repeats, which could count for a later answer.

        A repeat that names its request is handed over: it counts for that answer alone, and there once. So an event
        whose first reply was lost is not missing.

        Args:
            events: that were sent to the store, those of merged sessions as their users'.
            stored: positions of those that are stored.
            new: of those that were not stored before, ascending.
        """
        if self._outcomes is None:
            return
        are_new = set(new)
        self._outcomes.happened(
            [events[place] for place in stored if place in are_new or events[place].request_id is not None]
        )

    def _count_part(
        self,
        partly: BulkPartlyStored,
        received: Sequence[request_models.EventRequest],
        places: Sequence[int],
        events: Sequence[Event],
        types: EventTypes,
    ) -> None:
        """Count all of a bulk but what was not stored, as only that is sent again.

        Args:
            partly: which events were stored.
            received: the bulk.
            places: position in it of each event that was sent to the store.
            events: these events, those of merged sessions as their users'.
            types: what the types of events mean.
        """
        again = {places[position] for position in partly.not_stored}
        unknown = _unknown_types([one for place, one in enumerate(received) if place not in again], types)
        new, refused = len(partly.new), len(received) - len(events)
        duplicates = len(partly.stored) - new
        self._metrics.events(stored=new, duplicates=duplicates, without_consent=refused, unknown_types=unknown)
        self._attribute(events, partly.stored, partly.new)

    async def history(self, request: Request) -> Response:
        """The stored history of a user, newest last."""
        return await self._listed(request, self._histories.entries)

    async def impressions(self, request: Request) -> Response:
        """The stored impressions of a user, in order of arrival; they do not shape recommendations."""
        return await self._listed(request, self._histories.impressions)

    async def _listed(self, request: Request, read: Callable[[str], Awaitable[list[HistoryEntry]]]) -> Response:
        trace = admit_to_data(request, self._keys, self._active_bundle)
        user_id = _user_id(request)
        entries = await read(user_id)
        trace.lap("history")
        return json_response({"user_id": user_id, "items": [entry._asdict() for entry in entries]})

    async def merge(self, request: Request) -> Response:
        """Move the history of an anonymous session to the user who logs in; once, and in one step."""
        trace = admit_to_data(request, self._keys, self._active_bundle)
        user_id = _user_id(request)
        session_id = validate(request_models.MergeRequest, await read_json(request)).session_id
        trace.lap("parse")
        moved = await self._histories.merge(session_id, user_id, self._forget_answers)
        trace.lap("store")
        return json_response({"user_id": user_id, "session_id": session_id, "moved": moved})

    async def profile(self, request: Request) -> Response:
        """How visual and how textual a user is: share per slot, by the items that followed in the history."""
        trace = admit_to_data(request, self._keys, self._active_bundle)
        user_id = _user_id(request)
        entries = await self._histories.entries(user_id)
        trace.lap("history")
        bundle = self._active_bundle.get()
        item_ids = weighed([entries], self._event_types(bundle)).positive
        profile = await self._profile(bundle, item_ids, trace)
        trace.lap("encode")
        return json_response(
            {"user_id": user_id, "bundle": bundle.id, "steps": profile.steps, "shares": profile.shares}
        )

    async def _profile(self, bundle: Bundle, item_ids: Sequence[str], trace: Trace) -> ModalityProfile:
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
            await self._histories.erase(user_id, self._forget_answers)
            await self._forget_answers(user_id)  # what was answered meanwhile
            await self._operator_state.announce_erasure()
        finally:
            # After the store: a history that was read before the erasure is dropped too, and none is added any more.
            self._recent.clear()
        trace.lap("erase")
        return Response(status_code=204)


class _MergedSessions:
    """Makes events of merged sessions events of their users, as the store says, and in the arms of these users.

    Args:
        arms: chooses the arm of a user.
    """

    def __init__(self, arms: Arms) -> None:
        self._arms = arms
        self._users: dict[str, str] = {}  # by the owner of the session's data

    def of_user(self, event: Event, user_id: str) -> Event:
        """The event as one of the user into whom its session was merged."""
        self._users[event.user_id] = user_id
        return replace(event, user_id=user_id, arm=self._arms.label_of(user_id))

    def resolved(self, events: Sequence[Event]) -> Sequence[Event]:
        """All events as they are stored."""
        users = self._users
        if not users:
            return events
        return [self.of_user(event, users[event.user_id]) if event.user_id in users else event for event in events]


def _unknown_types(events: Sequence[request_models.EventRequest], types: EventTypes) -> int:
    """How many events have a type that the bundle does not name."""
    kinds = [event.type for event in events]
    unknown = {kind for kind in set(kinds) if kind is not None and kind not in types.types}
    return sum(kind in unknown for kind in kinds) if unknown else 0


def _check_times(events: Sequence[request_models.EventRequest], now: float, *, whole: bool) -> None:
    """Refuse events from the future, as of a clock in another unit.

    Args:
        events: as they arrived.
        now: seconds since 1970.
        whole: whether they came as a list.

    Raises:
        RuleBroken: an event is more than a day ahead.
    """
    latest = now + _LARGEST_LEAD_S
    timestamps = [event.timestamp for event in events]
    ahead = [number for number, at in enumerate(timestamps) if at is not None and at > latest]
    if ahead:
        field = f"events[{ahead[0]}].timestamp" if whole else "timestamp"
        rule = f"must be at most a day after the service's clock, which is at {now:.0f} (seconds since 1970, UTC)"
        raise RuleBroken([RuleViolation(field, shown(timestamps[ahead[0]]), rule)])


def _events(received: Sequence[request_models.EventRequest], now: float, types: EventTypes, arms: Arms) -> list[Event]:
    """The events as they are sent to the store.

    Args:
        received: as they arrived.
        now: their time if they have none, in seconds since 1970.
        types: what the types of events mean.
        arms: chooses the arms of their users.
    """
    kinds = {kind: (_STORED_IN[types.meaning(kind)], types.outcome(kind)) for kind in {one.type for one in received}}
    among_users = arms.among_users
    events = []
    for one in received:
        sent = one.__dict__  # reading each attribute of the model takes almost twice as long
        user_id, session_id, timestamp, kind = sent["user_id"], sent["session_id"], sent["timestamp"], sent["type"]
        owner = session_owner(session_id) if user_id is None else user_id
        stored_in, outcome = kinds[kind]
        arm = arms.label_of(owner) if among_users else None
        events.append(
            Event(
                owner,
                sent["item_id"],
                now if timestamp is None else timestamp,
                kind,
                sent["event_id"],
                sent["request_id"],
                session_id,
                stored_in,
                sent["value"],
                arm,
                outcome,
                timestamp is not None,
            )
        )
    return events


def _user_id(request: Request) -> str:
    """The validated user id in the path."""
    sent: str = request.path_params["user_id"]
    try:
        return _USER_ADAPTER.validate_python(unquote(sent, errors="strict"))
    except (UnicodeDecodeError, ValidationError):
        rule = "must be 1 to 256 bytes of percent-encoded UTF-8 without control characters"
        raise RuleBroken([RuleViolation("user_id", shown(sent), rule)]) from None
