"""`vlm2rec embed --engine ray` with data sets and shards in an object store."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from index.bundle.store.object_store import ObjectStore
from tests.support.processes.ray_jobs import ended, killed, start, vectors
from tests.support.stores.moto_server import moto_server
from tests.support.stores.s3_server import S3Server
from tests.support.stores.stored_data import URL, upload

if TYPE_CHECKING:
    from tests.support.processes.ray_clusters import Cluster

pytestmark = pytest.mark.usefixtures("prompt_workers")


@pytest.mark.slow
def test_workers_read_a_data_set_in_an_object_store(
    home: Path,
    expected: dict[str, bytes],
    s3: S3Server,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload(s3, home / "data")
    shutil.rmtree(home / "data")
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(home / "cache"))
    cluster: Cluster = request.getfixturevalue("cluster")  # its machines inherit the variables of the store
    ended(start(home, "run", "--engine", "ray", "--ray-address", cluster.address, data=URL))
    assert vectors(home, "run") == expected


@pytest.mark.slow
def test_machines_without_a_shared_disk_read_and_write_an_object_store_while_one_is_killed(
    large: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data set, model and shards pass through the S3 server of moto; test_shard_storage.py hides the run as well."""
    ended(start(large, "alone"))
    monkeypatch.setenv("VLM2REC_DATA_CACHE", str(large / "cache"))
    with moto_server(monkeypatch, "shop"):
        objects = ObjectStore(URL)
        for path in (large / "data").rglob("*"):
            if path.is_file():
                objects.write(path.relative_to(large / "data").as_posix(), path)
        (large / "data").rename(large / "hidden")
        cluster: Cluster = request.getfixturevalue("cluster")  # its machines inherit the variables of the store
        machines = [cluster.add() for _ in range(3)]
        options = ("--engine", "ray", "--ray-address", cluster.address, "--ray-storage", "s3://shop/jobs")
        job = start(large, "run", *options, data=URL)
        killed(large, 10, lambda: cluster.kill(machines[0]))
        ended(job)
        assert vectors(large, "run") == vectors(large, "alone")
        assert ObjectStore("s3://shop/jobs").objects("") == []
