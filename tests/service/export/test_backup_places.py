"""Where a backup is made from and restored to: behind Sentinels; neither of a cluster nor of an object store."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.app import app
from service.errors import BackupRefused
from tests.support.stores.backups import assert_same, make, put_back, stored
from tests.support.stores.exports import Shop, some_events
from tests.support.stores.redis_clusters import redis_cluster, redis_sentinels


def backup(*words: object) -> Result:
    return CliRunner().invoke(app, ["backup", *map(str, words)])


def refused(done: Result) -> str:
    assert isinstance(done.exception, BackupRefused), done.exception
    return str(done.exception)


@pytest.mark.parametrize("registry", ["s3://shop/bundles", "S3://shop/bundles"])
def test_a_registry_in_an_object_store_is_refused_before_redis_is_asked(registry: str, tmp_path: Path) -> None:
    nowhere = ("--redis", f"unix://{tmp_path}/none.sock", "--registry", registry)
    for words in (("create", "--to", tmp_path / "backup"), ("restore", "--from", tmp_path / "backup")):
        message = refused(backup(*words, *nowhere))
        assert message.startswith("the registry lies in an object store")
        assert "--no-registry" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster"])
def test_a_cluster_is_refused_before_anything_is_read(scheme: str, tmp_path: Path) -> None:
    nowhere = ("--redis", f"{scheme}://127.0.0.1:1,127.0.0.1:2", "--no-registry")
    for words in (("create", "--to", tmp_path / "backup"), ("restore", "--from", tmp_path / "backup")):
        message = refused(backup(*words, *nowhere))
        assert message.startswith("redis_url names a Redis Cluster")
        assert "--no-redis" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_node_of_a_cluster_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with redis_cluster(tmp_path / "nodes", masters=1) as cluster:
        url = cluster.url.replace("redis+cluster", "redis").split(",")[0]
        with pytest.raises(BackupRefused, match="Redis Cluster"):
            make(tmp_path / "backup", url, "vlm2rec")
        with pytest.raises(BackupRefused, match="Redis Cluster"):
            put_back(tmp_path / "no backup", url, "vlm2rec")
    assert [path.name for path in tmp_path.iterdir()] == ["nodes"]


@pytest.mark.slow
def test_behind_sentinels_a_backup_is_made_and_restored(tmp_path: Path) -> None:
    with redis_sentinels(tmp_path / "sentinels", replicas=0, sentinels=1) as sentinels:
        shop = Shop(sentinels.url, tmp_path / "export", "shop")
        shop.run(lambda store: store.append(some_events(20)))
        make(tmp_path / "backup", sentinels.url, "shop")
        put_back(tmp_path / "backup", sentinels.url, "again")
        master = f"redis://127.0.0.1:{sentinels.master().port}"
        assert_same(stored(master, "shop"), stored(master, "again"))
