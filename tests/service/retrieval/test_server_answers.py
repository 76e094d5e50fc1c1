"""What a Milvus server answers where milvus-lite answers otherwise, or has nothing to wait for."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from service.errors import PushRefused, RetrieverUnavailable
from service.retrieval.milvus import push as pushing
from service.retrieval.milvus.client import MilvusAddress, MilvusClient
from service.retrieval.milvus.collection_record import CURRENT
from service.retrieval.milvus.push import BundleRows

pymilvus = pytest.importorskip("pymilvus", reason="pymilvus is not installed")

CALL_S = 30.0


class Server:
    """Aliases, loads and flushes as pymilvus gives them for a server of Milvus 2.6.

    Attributes:
        alias: the collection that the alias names; None: there is no alias.
        loads: answers to `get_load_state`, the next one first; the last one stays.
        indexes: names of the indexes of collections.
        calls: names and timeouts of the calls.
    """

    def __init__(self) -> None:
        self.alias: str | None = None
        self.loads = ["NotLoad", "Loading", "Loaded"]
        self.indexes: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, float]] = []
        self.dropped: list[str] = []

    def describe_alias(self, alias: str, timeout: float) -> dict[str, str]:
        if self.alias is None:
            raise pymilvus.MilvusException(1600, f"alias not found[database=default][alias={alias}]")
        return {"alias": alias, "collection_name": self.alias, "db_name": "default"}

    def create_alias(self, collection_name: str, alias: str, timeout: float) -> None:
        assert self.alias is None
        self.alias = collection_name

    def alter_alias(self, collection_name: str, alias: str, timeout: float) -> None:
        self.describe_alias(alias, timeout)
        self.alias = collection_name

    def drop_alias(self, alias: str, timeout: float) -> None:
        self.alias = None

    def drop_collection(self, collection_name: str, timeout: float) -> None:
        if self.alias == collection_name:
            raise pymilvus.MilvusException(65_535, f"unable to drop the collection [{collection_name}] because it has "
                                           f"associated aliases [{CURRENT}]")  # fmt: skip
        self.dropped.append(collection_name)

    def get_load_state(self, collection_name: str, timeout: float) -> dict[str, str]:
        return {"state": self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]}

    def load_collection(self, collection_name: str, timeout: float, _async: bool = False) -> None:
        self.calls.append(("load", timeout))
        if not _async:
            raise pymilvus.MilvusException(1, f"wait for loading collection timeout, collection: {collection_name}")

    def flush(self, collection_name: str, timeout: float) -> None:
        self.calls.append(("flush", timeout))

    def describe_index(
        self, collection_name: str, index_name: str, timeout: float, timestamp: int = 0
    ) -> dict[str, Any] | None:
        """The state of the rows up to that time, here those of this year."""
        found = self.indexes.get(index_name)
        return found if found is None or timestamp >> 18 > 1_750_000_000_000 else found | {"state": "Finished"}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def client(server: Server) -> MilvusClient:
    client = MilvusClient(MilvusAddress("http://nowhere:1"), CALL_S)
    client._client = server
    return client


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "_POLL_S", 0.001)


def test_the_first_push_makes_the_alias(client: MilvusClient, server: Server) -> None:
    client.make_current("vlm2rec_a")
    assert server.alias == "vlm2rec_a"
    client.make_current("vlm2rec_b")
    assert server.alias == "vlm2rec_b"


def test_another_error_of_the_alias_is_an_outage(
    client: MilvusClient, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(**_: Any) -> None:
        raise pymilvus.MilvusException(1401, "privilege not permitted")

    monkeypatch.setattr(server, "describe_alias", denied)
    with pytest.raises(RetrieverUnavailable, match="failed at describe_alias: privilege not permitted"):
        client.make_current("vlm2rec_a")
    assert server.alias is None


def test_a_collection_is_dropped_with_its_alias(client: MilvusClient, server: Server) -> None:
    client.make_current("vlm2rec_a")
    client.drop("vlm2rec_b")
    assert (server.alias, server.dropped) == ("vlm2rec_a", ["vlm2rec_b"])
    client.drop("vlm2rec_a")
    assert (server.alias, server.dropped) == (None, ["vlm2rec_b", "vlm2rec_a"])


@pytest.mark.usefixtures("short_pauses")
def test_a_load_may_take_longer_than_a_call(client: MilvusClient, server: Server) -> None:
    server.loads = ["NotLoad", *["Loading"] * 5, "Loaded"]
    pushing._load(client, "vlm2rec_a", float("inf"))
    assert server.calls == [("load", CALL_S)]
    assert server.loads == ["Loaded"]
    pushing._load(client, "vlm2rec_a", float("inf"))
    assert len(server.calls) == 1


@pytest.mark.usefixtures("short_pauses")
def test_a_load_that_does_not_end_is_refused(client: MilvusClient, server: Server) -> None:
    server.loads = ["Loading"]
    with pytest.raises(PushRefused, match="vlm2rec_a is not loaded in time; raise --wait"):
        pushing._load(client, "vlm2rec_a", 0.0)


def test_a_flush_may_take_longer_than_a_call(client: MilvusClient, server: Server) -> None:
    client.flush("vlm2rec_a", 3600.0)
    assert server.calls == [("flush", 3600.0)]


@pytest.mark.usefixtures("short_pauses")
def test_an_index_that_cannot_be_built_is_not_waited_for(client: MilvusClient, server: Server) -> None:
    server.loads, server.indexes["vector"] = ["NotLoad"], {"state": "Failed", "pending_index_rows": 7}
    with pytest.raises(RetrieverUnavailable, match="could not build the index of vlm2rec_a"):
        pushing._wait_for_index(client, "vlm2rec_a", 60.0, lambda *_: None)
    server.indexes["vector"] = {"state": "InProgress", "pending_index_rows": 7}
    with pytest.raises(PushRefused, match="indexes are not built over 7 rows in time"):
        pushing._wait_for_index(client, "vlm2rec_a", 0.0, lambda *_: None)


def test_a_batch_of_long_texts_is_small_enough_for_one_message() -> None:
    """A server takes messages of up to 64 MiB."""

    class Rows:
        layout = type("Layout", (), {"dim": 4})
        indexed = np.ones(5000, dtype=bool)
        metadata = pa.table({f"text{number}": ["x" * 1000] * 5000 for number in range(20)})

    sizes = [numbers.size for numbers, _ in BundleRows(Rows()).batches()]  # type: ignore[arg-type]
    assert sum(sizes) == 5000
    assert max(sizes) * 20_000 < 16 << 20
