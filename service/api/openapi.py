"""Writes the OpenAPI document; it adds the schemas of bodies, which FastAPI does not know."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.outcomes.experiment_models import EXPERIMENT_REQUESTS, EXPERIMENT_RESPONSES
from service.api.requests.request_models import REQUESTS, RecommendRequest
from service.api.response_models import RESPONSES, Problem
from service.http.problems import KINDS, MEDIA_TYPE

_REF = "#/components/schemas/{model}"
_EVERYWHERE = (400, 405, 431, 500, 501)
_NO_CONTENT = 204
_HEADERS = {
    "X-Request-ID": {"description": "The one sent, or a new one.", "required": True, "schema": {"type": "string"}},
    "Server-Timing": {"description": "Milliseconds by stage.", "required": True, "schema": {"type": "string"}},
}
_RETRY_AFTER = {
    "Retry-After": {
        "description": "Seconds until it is worth trying again.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}
_FURTHER_HEADERS: dict[int, dict[str, Any]] = {
    401: {
        "WWW-Authenticate": {"description": "How to send a key.", "required": True, "schema": {"const": "Bearer"}},
    },
    405: {
        "Allow": {"description": "What the path takes.", "required": True, "schema": {"type": "string"}},
    },
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
_BY_KEY: list[dict[str, list[str]]] = [{"bearer": []}, {"key": []}]


def operation(
    *,
    body: type[BaseModel] | tuple[type[BaseModel], ...] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    body_is_needed: bool = True,
) -> dict[str, Any]:
    """Body and parameters of an operation, for its ``openapi_extra``; FastAPI does not know them.

    Args:
        body: model of the JSON body; several: any one of them.
        parameters: path and query parameters.
        body_is_needed: whether a request without a body is refused.
    """
    extra: dict[str, Any] = {}
    if parameters:
        extra["parameters"] = parameters
    if body is not None:
        models = body if isinstance(body, tuple) else (body,)
        refs = [_reference(model) for model in models]
        schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
        extra["requestBody"] = {"required": body_is_needed, "content": {"application/json": {"schema": schema}}}
    return extra


def responses(model: type[BaseModel] | None, *problems: int) -> dict[int | str, dict[str, Any]]:
    """The documented responses of an operation, for its ``responses``.

    Args:
        model: of the response; None: 204 without a body.
        problems: statuses of the problems that it can answer besides those of every route.
    """
    success: dict[str, Any] = {"description": "Answered." if model else "Done.", "headers": _HEADERS}
    if model is not None:
        success["content"] = {"application/json": {"schema": _reference(model)}}
    documented: dict[int | str, dict[str, Any]] = {204 if model is None else 200: success}
    for problem in sorted({*problems, *_EVERYWHERE}):
        titles = dict.fromkeys(kind.title for kind in KINDS if kind.status == problem)
        documented[problem] = {
            "description": "; or: ".join(titles) + ".",
            "headers": _HEADERS | _FURTHER_HEADERS.get(problem, {}),
            "content": {MEDIA_TYPE: {"schema": _reference(Problem)}},
        }
    return documented


def tagged_responses(media_type: str, *problems: int) -> dict[int | str, dict[str, Any]]:
    """The documented responses of an operation that returns bytes with an entity tag.

    Args:
        media_type: of the bytes.
        problems: as for :func:`responses`.
    """
    headers = _HEADERS | {name: {"schema": {"type": "string"}} for name in ("ETag", "Cache-Control")}
    found = {
        "description": "Found.",
        "headers": headers,
        "content": {media_type: {"schema": {"type": "string", "contentMediaType": media_type}}},
    }
    unchanged = {"description": "What If-None-Match names is still right.", "headers": headers}
    failed = {status: answer for status, answer in responses(None, *problems).items() if status != _NO_CONTENT}
    return {200: found, 304: unchanged, **failed}


def path_parameter(name: str, description: str) -> dict[str, Any]:
    """A path parameter that holds an id, percent-encoded."""
    schema = {"type": "string", "minLength": 1, "maxLength": 256}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """The query parameters that a model of plain fields describes."""
    properties = model.model_json_schema()["properties"]
    return [
        {"name": name, "in": "query", "description": schema.pop("description", ""), "schema": schema}
        for name, schema in properties.items()
    ]


def document(app: FastAPI, routes: list[APIRoute], *, keyed: bool, root_path: str) -> dict[str, Any]:
    """The whole document, made once and cached by the application.

    Args:
        app: keeps the document, and has title, version and description.
        routes: documented ones.
        keyed: whether the data routes need a key; the admin routes always do.
        root_path: prefix that a proxy puts before every path; empty: none.
    """
    if app.openapi_schema:
        return app.openapi_schema
    servers = [{"url": root_path}] if root_path else None
    schema = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=routes, servers=servers
    )
    models = [(model, "validation") for model in (*REQUESTS, *EXPERIMENT_REQUESTS)]
    models += [(model, "serialization") for model in (*RESPONSES, *EXPERIMENT_RESPONSES)]
    _, definitions = models_json_schema(models, ref_template=_REF)  # type: ignore[arg-type]
    # Pydantic inlines this model, as the members of a batch are validated apart; a client needs the reference.
    definitions["$defs"]["BatchRequest"]["properties"]["requests"]["items"] = {
        "anyOf": [_reference(RecommendRequest), {}]
    }
    schema["components"] = {
        "schemas": definitions["$defs"],
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        },
    }
    schema["security"] = _BY_KEY if keyed else [{}, *_BY_KEY]
    for operations in schema["paths"].values():
        for found in operations.values():
            if found["tags"] == ["admin"]:
                found["security"] = _BY_KEY
            elif found["tags"] == ["operations"]:
                found["security"] = []
    app.openapi_schema = schema
    return schema


def _reference(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model.__name__)}
