"""Three replicas behind nginx and HAProxy, by the configurations of ops/: what fails in one reaches no client."""

import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.bundle.registry import Registry
from index.items.item_table import ItemTable
from tests.support.proxies.configurations import HAPROXY, NGINX, Proxy
from tests.support.proxies.nginx import free_port
from tests.support.replicas import Answer, ProxyClient, Replicas
from tests.support.shops import eventually, other_bundle

USERS = [f"reader-{number}" for number in range(4)]
ASKED: list[dict[str, Any]] = [
    *({"user_id": user, "k": 7} for user in USERS),
    *({"items": [f"i{row}", f"i{row + 9}"], "k": 5} for row in range(10, 16)),
]
WRITTEN = [{"user_id": f"writer-{number}", "item_id": f"i{number % 9}"} for number in range(200)]

pytestmark = pytest.mark.slow


@dataclass
class Site:
    """Replicas, a proxy in front of them, and clients that load it."""

    replicas: Replicas
    registry: Registry
    readers: list[ProxyClient]
    writer: ProxyClient

    @property
    def answers(self) -> list[Answer]:
        return [answer for client in [*self.readers, self.writer] for answer in client.answers]

    def go_on(self, count: int = 150) -> list[Answer]:
        """Wait until the readers have so many answers more; these."""
        before = [len(reader.answers) for reader in self.readers]
        eventually(lambda: sum(len(reader.answers) for reader in self.readers) >= sum(before) + count)
        return [answer for n, reader in zip(before, self.readers, strict=True) for answer in reader.answers[n:]]

    def history(self, user_id: str) -> list[dict[str, Any]]:
        status, found, _ = self.replicas.running[0].call("GET", f"/users/{user_id}/history")
        assert status == 200
        return list(found["items"])

    def bundles(self) -> set[str]:
        return {answer.body["bundle"] for answer in self.go_on(60) if answer.status == 200}


@pytest.fixture(
    params=[
        pytest.param(NGINX, id="nginx", marks=pytest.mark.program("nginx")),
        pytest.param(HAPROXY, id="haproxy", marks=pytest.mark.program("haproxy")),
    ]
)
def site(request: pytest.FixtureRequest, tmp_path: Path, small_bundle: Path, redis_url: str) -> Iterator[Site]:
    proxy: Proxy = request.param
    registry = Registry(tmp_path / "registry")
    registry.publish(small_bundle)
    replicas = Replicas(registry.root, redis_url, f"replicas-{uuid.uuid4().hex}")
    port = free_port()
    clients = [
        *(ProxyClient(port, "/recommend", ASKED) for _ in range(3)),
        ProxyClient(port, "/events", WRITTEN),
    ]
    try:
        configuration = proxy.configuration(port, replicas.ports)
        for number, user in enumerate(USERS):
            for row in range(number, number + 4):
                stored = replicas.running[0].call("POST", "/events", {"user_id": user, "item_id": f"i{row}"})
                assert stored[0] == 200
        with proxy.run(tmp_path, configuration, port):
            for client in clients:
                client.start()
            yield Site(replicas, registry, clients[:-1], clients[-1])
            for client in clients:
                client.end()
    finally:
        replicas.end()


def test_no_fault_of_one_replica_reaches_a_client(
    site: Site, small_table: ItemTable, small_encoder: Path, tmp_path: Path
) -> None:
    site.go_on()

    with site.replicas.slow(0):
        before = [site.replicas.answered(number) for number in (1, 2)]
        slowly = site.go_on(400)
        others = sum(site.replicas.answered(number) for number in (1, 2)) - sum(before)
    # An equal share would be 267 of the 400.
    assert others > 300
    assert np.median([answer.seconds for answer in slowly]) < 0.1

    site.replicas.kill(1)
    site.go_on()
    site.replicas.start(1)

    # Rolling replacement, each replica draining under load, while a new bundle comes.
    old = site.bundles()
    new = site.registry.publish(other_bundle(small_table, small_encoder, tmp_path / "new", day=2))
    for number in range(3):
        assert site.replicas.drain(number) == 0
        site.replicas.start(number)
    eventually(lambda: site.bundles() == {new})
    assert len(old) == 1
    assert old != {new}

    for client in [*site.readers, site.writer]:
        client.end()
    failed = [
        answer for answer in site.answers if answer.status != 200 and not (answer.status == 503 and answer.retry_after)
    ]
    assert failed == []
    # The proxy tries the others itself: what is left for clients are events whose answer was lost, and moments without
    # any replica, of which there was none.
    assert [answer for reader in site.readers for answer in reader.answers if answer.status == 503] == []
    given = defaultdict(set)
    for reader in site.readers:
        for answer in reader.answers:
            assert answer.body["degraded"] is None
            given[answer.asked, answer.body["bundle"]].add(tuple(item["item_id"] for item in answer.body["items"]))
    assert len(given) == 2 * len(ASKED)
    assert {len(items) for items in given.values()} == {1}, "replicas of one bundle disagree"
    counts = [len(site.history(event["user_id"])) for event in WRITTEN]
    assert max(counts) < 200  # the cap
    assert sum(counts) == len(site.writer.acknowledged) > 20, "an event was lost or stored twice"
