"""Data sets on the S3 server of TEST_S3_ENDPOINT with its bucket ``shop``, else on moto's where it is installed."""

import contextlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from tests.support.shops import eventually
from tests.support.stores.redis_servers import free_port
from training.data.dataset import load_dataset
from training.data_check.check import check_dataset
from training.embedding.content_hashes import read_contents
from training.errors import DatasetError

NAMES = ("plain.png", "grün 1#.png", "a%20b.png", "[x]~{y}.png", "a+b&c?.png", "day=1/x y.png")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[str]:
    """The address of a server."""
    assert not cache.exists()
    endpoint = os.environ.get("TEST_S3_ENDPOINT")
    for name, value in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_REGION", "us-east-1")):
        if endpoint is None:
            monkeypatch.setenv(name, value)
    with contextlib.ExitStack() as stack:
        if endpoint is None:
            pytest.importorskip("moto", reason="set TEST_S3_ENDPOINT, or install the extra dev")
            port = free_port()
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
            )
            stack.callback(process.terminate)
            endpoint = f"http://127.0.0.1:{port}"
            eventually(lambda: _made_bucket(f"{endpoint}/shop"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield endpoint


def _made_bucket(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT")):
            return True
    except OSError:
        return False


def _upload(directory: Path) -> None:
    from index.bundle.store.object_store import ObjectStore

    store = ObjectStore("s3://shop/made/data")
    for path in directory.rglob("*"):
        if path.is_file():
            store.write(path.relative_to(directory).as_posix(), path)


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_tables_of_many_files_and_pictures_of_any_name(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for row, name in enumerate(NAMES):
        path = data / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (40 * row, 0, 0)).save(path)
        part = data / "items" / f"kind={row % 2}" / f"part-{row}.parquet"
        part.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame({"item_id": [f"i{row}"], "title": [name], "image": [f"pictures/{name}"]}).write_parquet(part)
    users = [f"u{row % 4}" for row in range(24)]
    ids = [f"i{row % 6}" for row in range(24)]
    events = pl.DataFrame({"user_id": users, "item_id": ids, "timestamp": range(24)})
    events.write_parquet(data / "interactions.parquet")
    _upload(data)
    local, stored = load_dataset(data), load_dataset("s3://shop/made/data")
    assert stored.items.equals(local.items)
    assert stored.items["kind"].to_list() == [0, 0, 0, 1, 1, 1]
    assert stored.interactions.equals(local.interactions)
    columns = ("item_id", "text", "picture", "image", "size")
    found, expected = read_contents(stored).frame.select(columns), read_contents(local).frame.select(columns)
    assert found.equals(expected)
    assert found["picture"].null_count() == 0
    assert check_dataset("s3://shop/made/data").ok


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_bucket_that_is_gone_is_named() -> None:
    with pytest.raises(DatasetError, match=r"s3://no-such-bucket-here/data/.*check the name of the bucket"):
        load_dataset("s3://no-such-bucket-here/data")
