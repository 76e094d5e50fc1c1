"""Sentinels and their master over TLS, each with a password of its own."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.errors import HistoriesUnavailable
from service.stores.protocols import Event
from service.stores.redis_histories import RedisHistories
from tests.support.shops import eventually
from tests.support.stores.item_ids import item_ids
from tests.support.stores.real_redis import open_histories
from tests.support.stores.redis_clusters import Server
from tests.support.stores.redis_servers import Certificates, free_port, program_with_tls

OF_MASTER, OF_SENTINELS = "m@ster", "s@ntinel"
NAME = "shop"


@dataclass(frozen=True)
class Encrypted:
    """A master and its Sentinel.

    Attributes:
        url: with both passwords and the authority.
        master: to ask it directly.
    """

    url: str
    master: Server


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    """For the tests each also listens without TLS; the Sentinel itself uses the encrypted port of the master."""
    program, folder = program_with_tls(), tmp_path_factory.mktemp("encrypted")
    certificates = Certificates(folder)
    certificate, key = certificates.issue("127.0.0.1")
    tls = (f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {certificates.authority}",
           "tls-auth-clients no", "tls-replication yes")  # fmt: skip
    ports = free_port(), free_port()
    with contextlib.ExitStack() as stack:
        lines = (*tls, f"tls-port {ports[0]}", f"requirepass {OF_MASTER}")
        master = Server(folder / "master", program, *lines, password=OF_MASTER)
        stack.callback(master.kill)
        eventually(master.answers)
        watch = (f"sentinel monitor {NAME} 127.0.0.1 {ports[0]} 1", f"sentinel auth-pass {NAME} {OF_MASTER}")
        lines = (*tls, f"tls-port {ports[1]}", f"requirepass {OF_SENTINELS}", *watch)
        sentinel = Server(folder / "sentinel", program, *lines, sentinel=True, password=OF_SENTINELS)
        stack.callback(sentinel.kill)
        eventually(sentinel.answers)
        eventually(lambda: "status=ok" in sentinel.command("INFO", "sentinel"))
        url = (
            f"rediss+sentinel://:{OF_MASTER.replace('@', '%40')}@127.0.0.1:{ports[1]}/{NAME}"
            f"?ssl_ca_certs={certificates.authority}&sentinel_password={OF_SENTINELS.replace('@', '%40')}"
        )
        yield Encrypted(url, master)


async def closed(store: RedisHistories) -> None:
    """Close a store, and let the transports of redis-py end before their loop does."""
    await store.close()
    await asyncio.sleep(0.2)


def test_the_master_is_used(encrypted: Encrypted) -> None:
    async def check() -> None:
        store = open_histories(encrypted.url, timeout_s=5.0)
        assert len(await store.append([Event("u", "a", 1.0)])) == 1
        assert await item_ids(store, "u") == ["a"]
        assert encrypted.master.command("LLEN", "vlm2rec:{b062}:history:u") == 1
        assert await store.alive()
        await closed(store)

    asyncio.run(check())


@pytest.mark.parametrize(
    ("right", "wrong", "reason"),
    [
        ("s%40ntinel", "wrong", "no Sentinel that answers names a master"),
        ("&sentinel_password=s%40ntinel", "", "no Sentinel that answers names a master"),
        ("m%40ster", "wrong", "WRONGPASS: it refuses user or password"),
        (":m%40ster@", "", "NOAUTH: it requires a user or password"),
        ("rediss+", "redis+", "no Sentinel that answers names a master"),
    ],
    ids=["Sentinel's", "none of the Sentinel", "master's", "none of the master", "no TLS"],
)
def test_a_wrong_url_names_the_part(encrypted: Encrypted, right: str, wrong: str, reason: str) -> None:
    assert right in encrypted.url
    url = encrypted.url.replace(right, wrong)
    if url.startswith("redis+"):
        url = url.partition("ssl_ca_certs")[0] + "sentinel_password=s%40ntinel"

    async def check() -> None:
        store = open_histories(url, timeout_s=5.0)
        with pytest.raises(HistoriesUnavailable, match=reason) as refused:
            await store.entries("u")
        assert not any(secret in str(refused.value) for secret in ("m@ster", "s@ntinel", "m%40ster", "s%40ntinel"))
        await closed(store)

    asyncio.run(check())


def test_another_authority_is_refused(encrypted: Encrypted, tmp_path: Path) -> None:
    other = Certificates(tmp_path).authority
    head, _, tail = encrypted.url.partition("ssl_ca_certs=")
    url = f"{head}ssl_ca_certs={other}&{tail.partition('&')[2]}"

    async def check() -> None:
        store = open_histories(url, timeout_s=5.0)
        with pytest.raises(HistoriesUnavailable, match="no Sentinel that answers names a master"):
            await store.entries("u")
        await closed(store)

    asyncio.run(check())
