"""Opens a registry in an object store, as on several machines."""

from collections.abc import Callable
from pathlib import Path

import pytest

from index.bundle.registries import open_registry
from index.bundle.store.store_registry import StoreRegistry
from tests.support.stores.s3_server import S3Server

URL = "s3://shop/live/registry"
Opened = Callable[..., StoreRegistry]


@pytest.fixture
def opened(s3: S3Server, tmp_path: Path) -> Opened:
    """Open the registry as on a machine of that name, each with a cache of its own."""

    def open_on(machine: str = "a", cache_bytes: int | None = None) -> StoreRegistry:
        registry = open_registry(URL, tmp_path / "cache" / machine, cache_bytes)
        assert isinstance(registry, StoreRegistry)
        return registry

    return open_on
