"""Fixtures that several packages share."""

from collections.abc import Iterator

import pytest

from demo.embedded_redis import EmbeddedRedis


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a real Redis, for the whole run: use keys of your own, never flush it."""
    with EmbeddedRedis() as server:
        yield server.url
