"""A service's event streams with a directory to export them to."""

from pathlib import Path

import pytest

from tests.support.stores.exports import Shop


@pytest.fixture
def shop(redis_url: str, tmp_path: Path) -> Shop:
    return Shop(redis_url, tmp_path / "export")
