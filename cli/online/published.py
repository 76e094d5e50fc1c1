"""Opens the registry that a command names."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from index.bundle.registries import AnyRegistry

RegistryOption = Annotated[
    str, typer.Option("--registry", help="Directory of published bundles, its file:// URL, or s3://bucket/prefix.")
]

_CACHE, _CACHE_MB = "VLM2REC_REGISTRY_CACHE", "VLM2REC_REGISTRY_CACHE_MB"


def published_at(place: str) -> "AnyRegistry":
    """The registry at a path or URL; where its copies lie and how large they get is said by a service's variables.

    Raises:
        RegistryError: the place has another form, or a variable is no number.
    """
    from index.bundle.registries import open_registry
    from index.errors import RegistryError

    cache, size = os.environ.get(_CACHE), os.environ.get(_CACHE_MB)
    if size is not None and not (size.isascii() and size.isdigit() and int(size)):
        raise RegistryError(f"{_CACHE_MB} must be a number of MiB, at least 1, got {size[:40]!r}")
    return open_registry(place, Path(cache) if cache else None, None if size is None else int(size) << 20)
