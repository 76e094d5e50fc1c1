"""Reads and validates the JSON body of a request; an error names field, value and rule.

JSON is read by orjson: NaN, Infinity, lone surrogates, invalid UTF-8 and more than 1024 levels are no JSON; of a
repeated key the last counts; integers beyond 64 bits become floats, and so break every rule that asks for an integer.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from service.api.requests.ids import NO_FIELD, NOT_A_PLAIN_ID
from service.errors import (
    BodyTooLarge,
    EncodedBody,
    MalformedBody,
    RequestLate,
    RuleBroken,
    RuleViolation,
    UnsupportedBody,
)
from service.http.request_context import context_of

_DISCARDED_BYTES = 64 << 20
_DISCARDED_S = 5.0
_MAX_RECEIVED = 120
_MAX_SHOWN_MEMBERS = 8
_MAX_REPORTED = 200
_RULES = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "finite_number": "must be a finite number",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
}
_NO_RULES = {"none_required", NOT_A_PLAIN_ID}
_ANY_BUT = "^[^"  # begin of a pattern that refuses control characters alone

Model = TypeVar("Model", bound=BaseModel)


async def read_json(request: Request) -> Any:  # noqa: ANN401 - any JSON value
    """The JSON value in the body of a request.

    Args:
        request: whose body was not read yet. A body over the limit is refused and dropped, also where its length is
            not declared.

    Raises:
        UnsupportedBody: the content type is not JSON in UTF-8.
        EncodedBody: the content encoding is not ``identity``.
        BodyTooLarge: the body is over the limit.
        BodiesFull: too many bytes of other bodies are waited for.
        RequestLate: the body did not arrive in time.
        MalformedBody: the body is not JSON.
        ClientDisconnect: the client left before its body was complete.
    """
    declared = _check_headers(request)
    limit = context_of(request.scope).bodies.largest
    if declared.isdecimal() and int(declared[:20]) > limit:
        await _discard(request, int(declared[:20]))
        raise _too_large(limit)
    body, more = await _next_part(request)
    if more or len(body) > limit:
        body = await _whole(request, body, more, limit)
    if context_of(request.scope).late:
        raise RequestLate(f"the body must arrive sooner; of {declared or 'unknown'} bytes {len(body)} came in time")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the body must be JSON; {error}, received {_shown_bytes(body)}") from None


async def read_optional_json(request: Request) -> Any:  # noqa: ANN401 - any JSON value
    """The JSON value in the body of a request to a route that needs none; ``{}`` if the body is empty or missing.

    An empty body needs no content type. Whether one in chunks is empty shows as it arrives.

    Raises:
        ServiceError: as for :func:`read_json`, where there is a body.
    """
    length = request.headers.get("content-length", "0").strip()
    if "transfer-encoding" not in request.headers and not length.strip("0"):
        return {}
    first, more = await _next_part(request)
    while more and not first:
        first, more = await _next_part(request)
    if not first and not context_of(request.scope).late:
        return {}
    parts = [{"type": "http.request", "body": first, "more_body": more}]

    async def receive() -> Message:
        return parts.pop() if parts else await request.receive()

    return await read_json(Request(request.scope, receive))


def validate(model: type[Model], value: Any) -> Model:  # noqa: ANN401 - any JSON value
    """Validate a value by a model.

    Raises:
        RuleBroken: it breaks one or more.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        if error.error_count() > _MAX_REPORTED:  # reporting tens of thousands would block the event loop
            rule = f"breaks {error.error_count()} rules, too many to tell; try a small part of it"
            raise RuleBroken([RuleViolation("body", "too much to show", rule)]) from None
        # Of an optional value the rule that it breaks, not also that it could be missing.
        details = [detail for detail in error.errors(include_url=False) if detail["type"] not in _NO_RULES]
        raise RuleBroken([_violation(detail, value) for detail in details]) from None


def shown(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """A received value as short JSON, for a message."""
    if isinstance(value, list) and len(value) > _MAX_SHOWN_MEMBERS:
        return f"a list of {len(value)} members"
    if isinstance(value, dict) and len(value) > _MAX_SHOWN_MEMBERS:
        return f"an object of {len(value)} keys"
    if isinstance(value, str):
        value = value[: _MAX_RECEIVED + 1]
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # orjson reads 1024 levels, but writes 254
        text = _shown_by_python(value)
    return text if len(text) <= _MAX_RECEIVED else f"{text[:_MAX_RECEIVED]}…"


def _shown_by_python(value: Any) -> str:  # noqa: ANN401 - any JSON value
    try:
        return repr(value)
    except RecursionError:
        return f"{'a list' if isinstance(value, list) else 'an object'} of too many levels to show"


async def _next_part(request: Request) -> tuple[bytes, bool]:
    """The next bytes of a body, and whether more come."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _whole(request: Request, first: bytes, more: bool, limit: int) -> bytes:
    """The rest of a body that does not arrive in one piece, within the budget of all such bodies."""
    parts, size = [first], len(first)
    with context_of(request.scope).bodies.holding() as share:
        share.grow(size)
        while more and size <= limit:
            part, more = await _next_part(request)
            size += len(part)
            if size <= limit:
                share.grow(len(part))
                parts.append(part)
        if size <= limit:
            return b"".join(parts)
        parts.clear()
    if more:
        await _discard(request, 0)
    raise _too_large(limit)


async def _discard(request: Request, declared: int) -> None:
    """Read on for a while and drop what arrives: many clients read the response only when their body is sent.

    Not where the client waits for consent (``Expect``), declares more than would be read, or too many bodies are
    discarded already.
    """
    if "expect" in request.headers or declared > _DISCARDED_BYTES:
        return
    size, more = 0, True
    with context_of(request.scope).bodies.discarding() as allowed, contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARDED_S):
            while allowed and more and size <= _DISCARDED_BYTES:
                part, more = await _next_part(request)
                size += len(part)


def _check_headers(request: Request) -> str:
    """Check type and encoding of a body; its declared length, empty where none is.

    Nearly all requests have one type and no encoding, which one look at the headers tells.
    """
    content_type = length = None
    is_plain = True
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            is_plain = is_plain and content_type is None
            content_type = value
        elif name == b"content-length":
            is_plain = is_plain and length is None
            length = value
        elif name == b"content-encoding":
            is_plain = False
    if is_plain and content_type == b"application/json":
        return "" if length is None else str(length, "latin-1")
    _check_content_type(request.headers.get("content-type"))
    _check_content_encoding(request.headers.getlist("content-encoding"))
    return request.headers.get("content-length", "")


def _check_content_type(content_type: str | None) -> None:
    media_type, _, parameters = (content_type or "").partition(";")
    kind = media_type.strip().lower()
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    charset = parameters.lower().partition("charset=")[2].split(";")[0].strip(' "')
    if not is_json or charset not in {"", "utf-8", "utf8"}:
        received = "nothing" if content_type is None else shown(content_type)
        raise UnsupportedBody(f"content-type must be application/json in UTF-8; received {received}")


def _check_content_encoding(sent: list[str]) -> None:
    codings = [coding.strip().lower() for value in sent for coding in value.split(",")]
    if not all(coding in {"", "identity"} for coding in codings):
        raise EncodedBody(
            f"content-encoding must be identity: send the body as it is; received {shown(', '.join(sent))}"
        )


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body must have at most {limit} bytes; send fewer items or events at once")


def _shown_bytes(body: bytes) -> str:
    return shown(body[:60].decode("utf-8", "replace")) if body else "nothing"


def _violation(detail: ErrorDetails, body: Any) -> RuleViolation:  # noqa: ANN401 - any JSON value
    context = detail.get("ctx", {})
    if detail["type"] == "rule":
        return RuleViolation(context["field"], shown(context["received"]), context["rule"])
    field = _path(detail["loc"], body) or "body"
    received = "nothing" if detail["type"] == "missing" else shown(detail["input"])
    return RuleViolation(field, received, _rule(detail))


def _path(location: Iterable[str | int], body: Any) -> str:  # noqa: ANN401 - any JSON value
    """The path of a field as a client would write it, without pydantic's names of union members."""
    path, value = "", body
    location = [part for part in location if part != NO_FIELD]
    for depth, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
            value = value[part] if isinstance(value, list) and part < len(value) else None
        elif isinstance(value, dict) and (part in value or depth == len(location) - 1):
            path += f".{part[:60]}" if path else part[:60]
            value = value.get(part)
    return path


def _rule(detail: ErrorDetails) -> str:
    known = _RULES.get(detail["type"])
    if known is not None and not detail["msg"].startswith(known):  # of our own rules the message says more
        return known
    if detail["type"] == "string_pattern_mismatch":
        pattern = detail["ctx"]["pattern"]
        return "must not hold control characters" if pattern.startswith(_ANY_BUT) else f"must match {pattern}"
    message = detail["msg"].replace(" after validation", "")
    for start in ("Input should ", "List should ", "String should ", "Dictionary should ", "Value should "):
        message = message.replace(start, "must ")
    return message.replace("must be less than or equal to", "must be at most").replace(
        "must be greater than or equal to", "must be at least"
    )
