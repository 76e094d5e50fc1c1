"""Where a backup is made from and restored to: behind Sentinels; not one node of a cluster."""

from pathlib import Path

import pytest

from service.errors import BackupRefused
from tests.support.stores.backups import assert_same, make, put_back, stored
from tests.support.stores.exports import Shop, some_events
from tests.support.stores.redis_clusters import redis_cluster, redis_sentinels


@pytest.mark.slow
def test_a_node_of_a_cluster_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with redis_cluster(tmp_path / "nodes", masters=1) as cluster:
        url = cluster.url.replace("redis+cluster", "redis").split(",")[0]
        with pytest.raises(BackupRefused, match=r"one node of a Redis Cluster.*redis\+cluster://"):
            make(tmp_path / "backup", url, "vlm2rec")
        with pytest.raises(BackupRefused, match=r"one node of a Redis Cluster.*redis\+cluster://"):
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
