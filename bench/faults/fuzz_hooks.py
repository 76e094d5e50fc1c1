"""Gives schemathesis known values to send (as ``SCHEMATHESIS_HOOKS``) and counts the responses.

Runs in schemathesis' own environment and imports nothing of the project. ``FUZZ_KNOWN`` names a JSON file with item
ids, field names, slot names and filters of the bundle that is served; ``FUZZ_COUNTS`` the file that gets the counts.
"""

import atexit
import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import schemathesis
from schemathesis.checks import CHECKS

_KNOWN = json.loads(Path(os.environ["FUZZ_KNOWN"]).read_text())
_statuses: dict[str, Counter[str]] = defaultdict(Counter)
_undocumented: Counter[str] = Counter()


@schemathesis.hook
def before_load_schema(_context: Any, raw_schema: dict[str, Any]) -> None:  # noqa: ANN401 - schemathesis' own
    """Add existing values to the examples of the schema, without a change of what the schema allows."""
    schemas = raw_schema["components"]["schemas"]
    bodies = [
        one["requestBody"] for path in raw_schema["paths"].values() for one in path.values() if "requestBody" in one
    ]
    for name in _named(bodies, schemas, set()):  # not the answers: they are held to their schemas
        _offer(schemas[name])
    wanted = schemas.get("Filter")
    if wanted is not None:
        schemas["AnyFilter"] = dict(wanted)
        schemas["Filter"] = {"anyOf": [{"enum": _KNOWN["filters"]}, {"$ref": "#/components/schemas/AnyFilter"}]}


def _named(part: Any, schemas: dict[str, Any], found: set[str]) -> set[str]:  # noqa: ANN401 - any JSON value
    """Names of the schemas that a part of the document refers to."""
    if isinstance(part, list):
        for member in part:
            _named(member, schemas, found)
    elif isinstance(part, dict):
        name = str(part.get("$ref", "")).rpartition("/")[2]
        if name in schemas and name not in found:
            found.add(name)
            _named(schemas[name], schemas, found)
        _named(list(part.values()), schemas, found)
    return found


def _offer(schema: dict[str, Any]) -> None:
    """Known ids, and only fields and slots that exist: the service refuses all others."""
    for name, part in schema.get("properties", {}).items():
        if name in {"item_id", "user_id"}:
            schema["properties"][name] = {"anyOf": [{"enum": _KNOWN["ids"]}, part]}
        elif name == "fields":
            _each(part, "array", lambda found: found.update(items={"enum": _KNOWN["fields"]}))
        elif name == "slot_weights":
            _each(part, "object", lambda found: found.update(propertyNames={"enum": _KNOWN["slots"]}))
        elif name in {"items", "exclude"}:
            _each(part, "array", lambda found: found.update(items={"anyOf": [{"enum": _KNOWN["ids"]}, found["items"]]}))


def _each(part: dict[str, Any], kind: str, change: Any) -> None:  # noqa: ANN401 - a function
    for found in (part, *part.get("anyOf", [])):
        if found.get("type") == kind and (kind != "array" or "items" in found):
            change(found)


@schemathesis.hook
def after_call(_context: Any, case: Any, response: Any) -> None:  # noqa: ANN401 - schemathesis' own
    """Count every answer, and separately the undocumented ones."""
    operation, status = case.operation, str(response.status_code)
    _statuses[operation.label][status] += 1
    if status not in operation.definition.raw["responses"]:
        _undocumented[f"{operation.label} {status}"] += 1


@schemathesis.hook
def after_network_error(_context: Any, case: Any, _request: Any) -> None:  # noqa: ANN401 - schemathesis' own
    """Count a request that got no answer."""
    _statuses[case.operation.label]["none"] += 1


@atexit.register
def _write() -> None:
    counts = {"statuses": _statuses, "undocumented": _undocumented, "checks": sorted(CHECKS.get_all_names())}
    Path(os.environ["FUZZ_COUNTS"]).write_text(json.dumps(counts))
