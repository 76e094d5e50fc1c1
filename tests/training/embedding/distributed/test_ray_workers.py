"""How many workers a cluster gets, and which share of its CPUs each reserves; without Ray itself."""

import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
from typer.testing import CliRunner

from cli.app import app
from training.embedding.distributed import ray_workers, shard_pool
from training.embedding.distributed.ray_workers import RayWorkers, cpus_of_worker
from training.embedding.distributed.shard_worker import ShardJob
from training.embedding.plan import EmbeddingPlan
from training.errors import EmbeddingsError


class RayError(Exception):
    """Root of the errors of Ray."""


class GoneCluster:
    """The module `ray` when the head is gone: every call raises, also those of actors."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, error: Exception) -> None:
        self._error = error

    def remote(self, *_: object, **__: object) -> Any:
        return self

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address="")

    def __getattr__(self, _name: str) -> Any:
        def call(*_: object, **__: object) -> None:
            raise self._error

        call.remote = call  # type: ignore[attr-defined]
        return call


@dataclass
class Cluster:
    """The part of the module `ray` that places actors; notes what each reserves."""

    exceptions: ClassVar = SimpleNamespace(RayError=RayError)
    resources: dict[str, float]
    reserved: list[dict[str, float]] = field(default_factory=list)
    head: str = ""

    def remote(self, _kind: type) -> "Cluster":
        return self

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address=self.head)

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def options(self, **options: float) -> Any:
        self.reserved.append(options)
        actor = type("Actor", (), {"prepare": type("Call", (), {"remote": staticmethod(object)})})
        return type("Class", (), {"remote": staticmethod(lambda _job: actor)})


def workers(cluster: Cluster, threads: int, most: int | None = None) -> RayWorkers:
    return RayWorkers(cluster, ShardJob(Path("data"), Path("run"), Path("plan"), {}, 4, threads), most)


@pytest.mark.parametrize(
    ("total", "count", "threads", "cpus"),
    [
        *((2, 1, 1, 1.0), (4, 3, 1, 1.0), (4, 8, 1, 0.37), (1, 1, 1, 0.5), (0, 1, 1, 0.01), (2, 1000, 1, 0.01)),
        *((100, 3, 1, 1.0), (17, 4, 4, 4.0), (17, 5, 4, 3.0), (3, 1, 4, 2.0), (9, 16, 4, 0.5)),
    ],
)
def test_workers_leave_a_cpu_free(total: float, count: int, threads: int, cpus: float) -> None:
    assert cpus_of_worker(total, count, threads) == cpus
    if count <= 100 * (total - 1):
        assert count * cpus <= total - 1


@pytest.mark.parametrize(
    ("resources", "threads", "wanted", "cpus"),
    [
        ({"CPU": 16.0}, 1, 15, 1.0),
        ({"CPU": 16.0}, 4, 3, 4.0),
        ({"CPU": 16.0, "GPU": 2.0}, 1, 2, 1.0),
        ({"CPU": 2.0}, 4, 1, 1.0),
        ({}, 1, 1, 0.01),
    ],
)
def test_the_threads_of_all_workers_have_cpus(
    resources: dict[str, float], threads: int, wanted: int, cpus: float
) -> None:
    cluster = Cluster(resources)
    found = workers(cluster, threads)
    assert found.wanted() == wanted
    found.start()
    assert cluster.reserved[0]["num_cpus"] == cpus
    assert found.wanted() * threads <= max(resources.get("CPU", 0) - 1, threads)
    assert workers(cluster, threads, most=7).wanted() == 7


@pytest.mark.parametrize(("options", "threads"), [((), 1), (("--threads", "3"), 3)])
def test_a_worker_has_one_thread_unless_more_are_asked_for(
    home: Path, monkeypatch: pytest.MonkeyPatch, options: Sequence[str], threads: int
) -> None:
    jobs: list[ShardJob] = []

    @contextmanager
    def cluster(_address: str | None) -> Iterator[Any]:
        yield Cluster({"CPU": 16.0})

    def encode(pool: Any, plan: EmbeddingPlan, numbers: Sequence[int], finished: Callable[[int], None], _: Any) -> None:
        jobs.append(pool.workers._job)
        raise KeyboardInterrupt

    monkeypatch.setattr(ray_workers, "ray_cluster", cluster)
    monkeypatch.setattr(shard_pool.ShardPool, "encode", encode)
    words = ["embed", str(home / "data"), "--run", str(home / "run"), "--engine", "ray", *options]
    assert CliRunner().invoke(app, words).exit_code == 130
    assert [job.threads for job in jobs] == [threads]


@pytest.mark.parametrize(
    "error",
    [RayError("\nRPC error: failed to connect\nTraceback …"), ConnectionError("failed"), RuntimeError("not connected")],
    ids=lambda error: type(error).__name__,
)
def test_a_cluster_that_is_gone_is_one_line_in_every_call(error: Exception) -> None:
    gone = GoneCluster(error)
    found = RayWorkers(gone, ShardJob(Path("data"), Path("run"), Path("plan"), {}, 4, 1))
    for call in (
        found.wanted,
        found.start,
        found.room,
        lambda: found.wait([object()], 1.0),
        lambda: found.encode(gone, 1, []),
    ):
        with pytest.raises(EmbeddingsError, match="the Ray cluster does not answer") as raised:
            call()
        assert f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" in str(raised.value)
        assert str(raised.value).endswith("start the same command again to go on")
        assert "\n" not in str(raised.value)
    found.end(gone)


def test_where_nothing_listens_at_the_head_ray_is_not_asked() -> None:
    """A call would wait for a minute, and Ray would then end the process."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        cluster = Cluster({"CPU": 4.0}, head=f"127.0.0.1:{head.getsockname()[1]}")
        found = workers(cluster, 1)
        assert found.wanted() == 3
    cluster.resources = {}
    for _ in range(2):
        with pytest.raises(EmbeddingsError, match="the Ray cluster does not answer"):
            found.wanted()
    with pytest.raises(EmbeddingsError, match="its head is gone"):
        found.failure(object())
    found.end(object())


def test_a_call_that_waits_for_a_lost_head_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "_PROBE_S", 0.01)
    head, ended = socket.create_server(("127.0.0.1", 0)), threading.Event()
    cluster = Cluster({"CPU": 4.0}, head=f"127.0.0.1:{head.getsockname()[1]}")
    found = workers(cluster, 1)

    def waiting() -> dict[str, float]:
        head.close()
        ended.wait(60)
        return {}

    monkeypatch.setattr(cluster, "cluster_resources", waiting)
    with pytest.raises(EmbeddingsError, match="the Ray cluster does not answer"):
        found.wanted()
    ended.set()


def test_a_job_whose_cluster_is_gone_ends_with_that_line(tmp_path: Path) -> None:
    plan = cast("EmbeddingPlan", SimpleNamespace(directory=tmp_path, has=lambda _number: False))
    gone = RayWorkers(GoneCluster(RayError("no head")), ShardJob(Path("data"), Path("run"), tmp_path, {}, 4, 1))
    with pytest.raises(EmbeddingsError, match=r"RayError: no head"):
        shard_pool.ShardPool(gone).encode(plan, [0, 1], lambda _number: None)


@pytest.mark.parametrize("command", ["embed", "reindex"])
def test_torchrun_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [command, str(home / "data"), "--run", str(home / "run")]
    if command == "reindex":
        words += ["--registry", str(home / "registry")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert "torchrun started 2: leave torchrun out. Several processes and machines embed with --engine ray" in said
    assert not (home / "run" / "embeddings").exists()


def test_connecting_keeps_what_a_job_does_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(_number: int, _frame: object) -> None: ...

    def ray_s(_number: int, _frame: object) -> None: ...

    fake = ModuleType("ray")
    fake.init = lambda *_, **__: signal.signal(signal.SIGTERM, ray_s)  # type: ignore[attr-defined]
    fake.shutdown = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", fake)
    before = signal.signal(signal.SIGTERM, own)
    try:
        with ray_workers.ray_cluster(None):
            assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
