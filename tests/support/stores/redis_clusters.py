"""Redis Clusters and Sentinels of real server processes on ports of 127.0.0.1."""

import contextlib
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from redis import Redis

from demo.embedded_redis import find_redis_server, redis_server_of_wheel
from service.stores.deployment.cluster_histories import ClusterHistories
from service.stores.deployment.slot_map import slot_of
from tests.support.shops import eventually
from tests.support.stores.real_redis import open_histories
from tests.support.stores.redis_servers import free_port

SLOTS = 16_384


class Server:
    """A server process with lines of configuration, which must name the password.

    Attributes:
        port: on 127.0.0.1.
        process: of the server.
    """

    def __init__(
        self, folder: Path, program: str, *lines: str, sentinel: bool = False, password: str | None = None
    ) -> None:
        folder.mkdir(parents=True)
        self.port = _port_of_node()
        self._password = password
        self._log = folder / "redis.log"
        settings = [f"port {self.port}", "bind 127.0.0.1", f"dir {folder}", "logfile redis.log", *lines]
        settings += [] if sentinel else ['save ""']
        (folder / "redis.conf").write_text("\n".join(settings) + "\n")
        command = [program, str(folder / "redis.conf"), *(["--sentinel"] if sentinel else [])]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def command(self, *parts: str | int) -> Any:
        """The reply to a command, as text."""
        with Redis(port=self.port, password=self._password, decode_responses=True, socket_timeout=10) as client:
            client.response_callbacks.clear()
            return client.execute_command(*parts)  # type: ignore[no-untyped-call]

    def answers(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        with contextlib.suppress(Exception):
            return bool(self.command("PING"))
        return False

    def follows(self) -> bool:
        """Whether it is a replica that has all of its master's data."""
        return "master_link_status:up" in self.command("INFO", "replication")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


class Node(Server):
    """A server of a cluster."""

    def __init__(self, folder: Path, program: str, *lines: str) -> None:
        super().__init__(folder, program, "cluster-enabled yes", "repl-diskless-sync-delay 0", *lines)

    @property
    def name(self) -> str:
        return str(self.command("CLUSTER", "MYID"))

    def says(self, line: str) -> bool:
        """Whether a line is in its view of the cluster."""
        return f"{line}\r\n" in self.command("CLUSTER", "INFO")


class Cluster:
    """Nodes of a cluster: the masters first, then a replica of each, if there are any.

    Attributes:
        nodes: all of them.
        masters: how many own slots at the start.
    """

    def __init__(self, nodes: Sequence[Node], masters: int) -> None:
        self.nodes = nodes
        self.masters = masters

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def owner(self, key: str) -> Node:
        """The master of a key at the start."""
        return self.owner_of(slot_of(key))

    def owner_of(self, slot: int) -> Node:
        """The master of a slot at the start."""
        return self.nodes[slot * self.masters // SLOTS]

    def keys(self, pattern: str = "*") -> list[str]:
        """The keys of all masters."""
        return sorted(key for node in self.nodes[: self.masters] for key in node.command("KEYS", pattern))

    def form(self) -> None:
        """Join the nodes, divide the slots evenly, and wait until the cluster takes commands."""
        for number, node in enumerate(self.nodes, 1):
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number)
        for number, node in enumerate(self.nodes[: self.masters]):
            first, last = (-(-SLOTS * place // self.masters) for place in (number, number + 1))
            node.command("CLUSTER", "ADDSLOTS", *range(first, last))
        for node in self.nodes[1:]:
            self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port)
        size = f"cluster_known_nodes:{len(self.nodes)}"
        eventually(lambda: all(node.says(size) for node in self.nodes))
        for number, node in enumerate(self.nodes[self.masters :]):
            node.command("CLUSTER", "REPLICATE", self.nodes[number].name)
        eventually(lambda: all(node.says("cluster_state:ok") for node in self.nodes))
        eventually(lambda: all(node.follows() for node in self.nodes[self.masters :]))


def _port_of_node() -> int:
    """A free port; the bus of the cluster takes the one 10,000 above."""
    while (port := free_port()) > 55_000:
        pass
    return port


@contextlib.contextmanager
def redis_cluster(
    folder: Path, *lines: str, masters: int = 3, replicas: bool = False, program: str | None = None
) -> Iterator[Cluster]:
    """A cluster for the duration of the context; with replicas each master has one."""
    nodes: list[Node] = []
    try:
        server = program or redis_server_of_wheel() or find_redis_server()
        nodes.extend(Node(folder / f"node{number}", server, *lines) for number in range(masters * (1 + replicas)))
        eventually(lambda: all(node.answers() for node in nodes))
        cluster = Cluster(nodes, masters)
        cluster.form()
        yield cluster
    finally:
        for node in nodes:
            node.kill()


class Sentinels:
    """A master with replicas and the Sentinels that watch it.

    Attributes:
        servers: the first master, then its replicas.
        url: of the master, by its Sentinels.
    """

    name = "shop"

    def __init__(self, servers: Sequence[Server], sentinels: Sequence[Server]) -> None:
        self.servers = servers
        self.sentinels = sentinels
        self.url = "redis+sentinel://" + ",".join(f"127.0.0.1:{one.port}" for one in sentinels) + f"/{self.name}"

    def master(self) -> Server:
        """The server that the first Sentinel names."""
        _, port = self.sentinels[0].command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return next(server for server in self.servers if server.port == int(port))


@contextlib.contextmanager
def redis_sentinels(folder: Path, *, replicas: int = 1, sentinels: int = 3) -> Iterator[Sentinels]:
    """A master with replicas and Sentinels for the duration of the context; half of a second without answer is down."""
    program = redis_server_of_wheel() or find_redis_server()
    started: list[Server] = []
    try:
        master = Server(folder / "server0", program, "repl-diskless-sync-delay 0")
        started.append(master)
        follow = f"replicaof 127.0.0.1 {master.port}"
        started.extend(Server(folder / f"server{number}", program, follow) for number in range(1, replicas + 1))
        eventually(lambda: all(server.answers() for server in started))
        eventually(lambda: all(server.follows() for server in started[1:]))
        watch = (f"sentinel monitor {Sentinels.name} 127.0.0.1 {master.port} {sentinels // 2 + 1}",
                 f"sentinel down-after-milliseconds {Sentinels.name} 500",
                 f"sentinel failover-timeout {Sentinels.name} 3000")  # fmt: skip
        watchers = [Server(folder / f"sentinel{n}", program, *watch, sentinel=True) for n in range(sentinels)]
        started.extend(watchers)
        eventually(lambda: all(one.answers() for one in watchers))
        ready = f"status=ok,address=127.0.0.1:{master.port},slaves={replicas},sentinels={sentinels}"
        eventually(lambda: all(ready in one.command("INFO", "sentinel") for one in watchers))
        yield Sentinels(started[: replicas + 1], watchers)
    finally:
        for server in started:
            server.kill()


@contextlib.asynccontextmanager
async def opened(cluster: Cluster, prefix: str = "", **options: Any) -> AsyncIterator[ClusterHistories]:
    """The histories of a cluster, below a prefix of their own unless one is given."""
    store = open_histories(cluster.url, **{"prefix": prefix or f"test-{uuid.uuid4().hex}", "timeout_s": 5.0, **options})
    assert isinstance(store, ClusterHistories)
    try:
        yield store
    finally:
        await store.close()
