"""Turns errors into RFC 9457 problem details; no other module chooses the HTTP status of an error."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from starlette.responses import Response

from index.errors import FilterError
from service import errors

MEDIA_TYPE = "application/problem+json"
_TYPE_PREFIX = "urn:vlm2rec:problem:"
_MAX_VIOLATIONS = 20


@dataclass(frozen=True)
class ProblemKind:
    """A kind of problem; clients may rely on its name and status.

    Attributes:
        name: end of the ``type`` URI; never changes once released.
        status: HTTP status code.
        title: what this kind means, the same for every occurrence.
    """

    name: str
    status: int
    title: str

    @property
    def type(self) -> str:
        """The stable ``type`` URI."""
        return _TYPE_PREFIX + self.name


class RequestRefusal(NamedTuple):
    """A problem that is answered without asking the application.

    Attributes:
        kind: of the problem.
        detail: this occurrence: field, value received, rule.
    """

    kind: ProblemKind
    detail: str


NOT_HTTP = ProblemKind("not-http", 400, "This is not HTTP")
INVALID_HEAD = ProblemKind("invalid-head", 400, "The head of the request breaks a rule of HTTP/1.1")
MALFORMED_JSON = ProblemKind("malformed-json", 400, "The body is not JSON")
KEY_MISSING = ProblemKind("key-missing", 401, "An API key is needed")
KEY_REFUSED = ProblemKind("key-refused", 403, "The API key does not open this route")
UNKNOWN_PATH = ProblemKind("unknown-path", 404, "There is nothing at this path")
NO_PICTURE = ProblemKind("no-picture", 404, "The current bundle has no picture of this item")
UNKNOWN_ITEM = ProblemKind("unknown-item", 404, "The current bundle does not have this item")
UNKNOWN_EXPERIMENT = ProblemKind("unknown-experiment", 404, "There is no experiment of this name")
CONFLICT = ProblemKind("conflict", 409, "The request contradicts the state of the service")
BUNDLE_REFUSED = ProblemKind("bundle-refused", 409, "The bundle may not serve")
SESSION_MERGED = ProblemKind("session-merged", 409, "The session belongs to another user")
METHOD_NOT_ALLOWED = ProblemKind("method-not-allowed", 405, "The path does not take this method")
REQUEST_LATE = ProblemKind("request-late", 408, "The request did not arrive in time")
CATALOGUE_CHANGED = ProblemKind("catalogue-changed", 410, "The catalogue is another one than the cursor's")
BODY_TOO_LARGE = ProblemKind("body-too-large", 413, "The body is over the limit")
UNSUPPORTED_MEDIA_TYPE = ProblemKind("unsupported-media-type", 415, "The body must be JSON")
RULE_BROKEN = ProblemKind("rule-broken", 422, "A field breaks a rule")
RATE_EXCEEDED = ProblemKind("rate-exceeded", 429, "Too many requests of one key or address")
HEAD_TOO_LARGE = ProblemKind("head-too-large", 431, "Address and headers are over the limit")
REQUEST_REFUSED = ProblemKind("request-refused", 400, "The request cannot be answered")
QUEUE_FULL = ProblemKind("queue-full", 429, "More requests wait than may")
INTERNAL = ProblemKind("internal", 500, "Something went wrong inside")
NOT_IMPLEMENTED = ProblemKind("not-implemented", 501, "This part of HTTP is not implemented")
NOT_READY = ProblemKind("not-ready", 503, "Not ready to answer")
CROWDED = ProblemKind("crowded", 503, "Too many clients at once")
SESSIONS_UNAVAILABLE = ProblemKind("sessions-unavailable", 503, "Histories cannot be reached")
OPERATOR_STATE_UNAVAILABLE = ProblemKind("directives-unavailable", 503, "Pin and hidden items cannot be reached")
OUTCOMES_UNAVAILABLE = ProblemKind("outcomes-unavailable", 503, "Answers and outcomes cannot be reached")

KINDS = (
    NOT_HTTP,
    INVALID_HEAD,
    MALFORMED_JSON,
    KEY_MISSING,
    KEY_REFUSED,
    UNKNOWN_PATH,
    NO_PICTURE,
    UNKNOWN_ITEM,
    UNKNOWN_EXPERIMENT,
    METHOD_NOT_ALLOWED,
    REQUEST_LATE,
    BUNDLE_REFUSED,
    CONFLICT,
    CATALOGUE_CHANGED,
    SESSION_MERGED,
    BODY_TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    RULE_BROKEN,
    RATE_EXCEEDED,
    HEAD_TOO_LARGE,
    REQUEST_REFUSED,
    QUEUE_FULL,
    INTERNAL,
    NOT_IMPLEMENTED,
    NOT_READY,
    CROWDED,
    SESSIONS_UNAVAILABLE,
    OPERATOR_STATE_UNAVAILABLE,
    OUTCOMES_UNAVAILABLE,
)

_BY_ERROR: dict[type[Exception], ProblemKind] = {
    errors.MalformedBody: MALFORMED_JSON,
    errors.KeyMissing: KEY_MISSING,
    errors.KeyRefused: KEY_REFUSED,
    errors.NoPicture: NO_PICTURE,
    errors.UnknownItem: UNKNOWN_ITEM,
    errors.UnknownExperiment: UNKNOWN_EXPERIMENT,
    errors.Conflict: CONFLICT,
    errors.CatalogueChanged: CATALOGUE_CHANGED,
    errors.SessionMerged: SESSION_MERGED,
    errors.RateExceeded: RATE_EXCEEDED,
    errors.RequestLate: REQUEST_LATE,
    errors.BodiesFull: CROWDED,
    errors.BodyTooLarge: BODY_TOO_LARGE,
    errors.UnsupportedBody: UNSUPPORTED_MEDIA_TYPE,
    errors.EncodedBody: UNSUPPORTED_MEDIA_TYPE,
    errors.RuleBroken: RULE_BROKEN,
    errors.HistoriesUnavailable: SESSIONS_UNAVAILABLE,
    errors.BulkPartlyStored: SESSIONS_UNAVAILABLE,
    errors.OperatorStateUnavailable: OPERATOR_STATE_UNAVAILABLE,
    errors.OutcomesUnavailable: OUTCOMES_UNAVAILABLE,
    errors.QueueFull: QUEUE_FULL,
    errors.NotReady: NOT_READY,
    errors.BundleRefused: BUNDLE_REFUSED,
    FilterError: RULE_BROKEN,
}
ANSWERED_ERRORS = tuple(_BY_ERROR)


def problem_response(
    kind: ProblemKind,
    detail: str,
    *,
    request_id: str,
    violations: tuple[errors.RuleViolation, ...] = (),
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Response:
    """A response in ``application/problem+json``.

    Args:
        kind: which problem.
        detail: this occurrence, for a person: field, value received, rule. Never a stack trace.
        request_id: also in the body, so that a copied response can be found in the log.
        violations: every broken rule; the first twenty are listed.
        headers: further headers.
        more: further members.
    """
    body = {**problem_body(kind, detail, request_id=request_id, violations=violations), **(more or {})}
    return Response(orjson.dumps(body), kind.status, dict(headers or {}), MEDIA_TYPE)


def problem_body(
    kind: ProblemKind, detail: str, *, request_id: str, violations: tuple[errors.RuleViolation, ...] = ()
) -> dict[str, Any]:
    """The problem document, as a whole body or as a member of a batch; arguments as in :func:`problem_response`."""
    body: dict[str, Any] = {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "request_id": request_id,
    }
    if violations:
        body["errors"] = [violation._asdict() for violation in violations[:_MAX_VIOLATIONS]]
    return body


def error_body(error: Exception, *, request_id: str) -> dict[str, Any]:
    """The problem document of an error of :data:`ANSWERED_ERRORS`."""
    return problem_body(_BY_ERROR[type(error)], str(error), request_id=request_id, violations=_violations(error))


def internal_problem(request_id: str) -> Response:
    """The response to an unexpected error; only the log has the reason."""
    detail = f"the log has the reason under request_id {request_id}"
    return problem_response(INTERNAL, detail, request_id=request_id)


def answer_error(error: Exception, *, request_id: str, retry_after_s: int) -> Response:
    """The response to an error of :data:`ANSWERED_ERRORS`.

    Args:
        error: as raised.
        request_id: of the request.
        retry_after_s: seconds, sent with every 429 and 503.
    """
    kind = _BY_ERROR[type(error)]
    headers: dict[str, str] = {}
    if kind.status in {NOT_READY.status, QUEUE_FULL.status}:
        headers["Retry-After"] = str(retry_after_s)
    if isinstance(error, errors.RateExceeded):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, errors.EncodedBody):
        headers["Accept-Encoding"] = "identity"  # tells it apart from a wrong media type (RFC 9110, 15.5.16)
    if kind is KEY_MISSING:
        headers["WWW-Authenticate"] = "Bearer"
    more = {}
    if isinstance(error, errors.BulkPartlyStored):
        more = {"stored": list(error.stored), "not_stored": list(error.not_stored)}
    violations = _violations(error)
    return problem_response(kind, str(error), request_id=request_id, violations=violations, headers=headers, more=more)


def _violations(error: Exception) -> tuple[errors.RuleViolation, ...]:
    if isinstance(error, errors.RuleBroken):
        return error.violations
    if isinstance(error, FilterError):
        return (errors.RuleViolation("filter", f"a clause on {error.field!r}", str(error)),)
    return ()
