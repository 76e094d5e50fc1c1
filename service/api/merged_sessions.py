"""Makes requests of a session that was merged into a user requests of that user."""

import asyncio

from service.api.requests.request_models import RecommendRequest
from service.errors import HistoriesUnavailable
from service.request_trace import Trace
from service.stores.protocols import HistoryReader


def session_alone(params: RecommendRequest) -> str | None:
    """The session whose stored history a request uses without naming a user; None: there is none."""
    return None if params.user_id is not None or params.history == "ignore" else params.session_id


async def of_its_user(params: RecommendRequest, histories: HistoryReader, trace: Trace) -> RecommendRequest:
    """The request as one of the user that its session was merged into; else as it is.

    Args:
        params: the request. A request with a user stays as it is: its session may be another one's.
        histories: says whose the session is. If it does not, in time, the request stays as it is.
        trace: of the request.
    """
    session = session_alone(params)
    if session is None or trace.overloaded:
        return params
    left_s = None if params.deadline_ms is None else max(params.deadline_ms - trace.elapsed_ms, 0.0) / 1000.0
    try:
        async with asyncio.timeout(left_s):
            user = await histories.merged_into(session)
    except (HistoriesUnavailable, TimeoutError):
        return params
    return params if user is None else params.model_copy(update={"user_id": user, "session_id": None})
