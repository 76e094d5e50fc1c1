"""How many workers a cluster gets, and which share of its CPUs each reserves; without Ray itself."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.app import app
from training.embedding.distributed import ray_workers, shard_pool
from training.embedding.distributed.ray_workers import RayWorkers, cpus_of_worker
from training.embedding.distributed.shard_worker import ShardJob
from training.embedding.plan import EmbeddingPlan


@dataclass
class Cluster:
    """The part of the module `ray` that places actors; notes what each reserves."""

    resources: dict[str, float]
    reserved: list[dict[str, float]] = field(default_factory=list)

    def remote(self, _kind: type) -> "Cluster":
        return self

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
