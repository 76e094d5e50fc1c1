"""A small Redis Cluster for the tests of stores."""

from collections.abc import Iterator

import pytest

from tests.support.stores.redis_clusters import Cluster, redis_cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three masters without replicas, for the whole run: use keys of your own."""
    with redis_cluster(tmp_path_factory.mktemp("cluster") / "nodes") as started:
        yield started
