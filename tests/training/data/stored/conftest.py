"""A data set in an object store."""

from pathlib import Path

import pytest

from tests.support.stores.s3_server import S3Server
from tests.support.stores.stored_data import upload


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of copies."""
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def stored(s3: S3Server, shop_directory: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The shop in the store; a request is not tried again."""
    monkeypatch.setattr("training.data.stored.data_store.PATIENCE_S", 2)
    assert not cache.exists()
    upload(s3, shop_directory)
    return s3
