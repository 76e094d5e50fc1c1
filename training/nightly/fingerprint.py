"""Fingerprints of plain values, to tell whether something was made from the same."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping


def digest_of(value: object) -> str:
    """16 hex digits over a value: dataclasses by their fields, mappings by their keys, whatever else by its repr."""
    return hashlib.sha256(json.dumps(_plain(value), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: object) -> object:
    """Values as JSON has them: a specification by its fields, whatever mapping by its keys."""
    if dataclasses.is_dataclass(value):
        return {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)
