"""Workers in this process, in place of those of Ray; a call ends before the next begins."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.embedding.distributed import ray_workers
from training.embedding.distributed.shard_pool import Failure
from training.embedding.distributed.shard_worker import PlannedItem, ShardJob, ShardWorker
from training.errors import TrainingError


class Cluster:
    """Workers in this process, in place of those of Ray.

    Attributes:
        connected: how often a job has connected.
        jobs: of the workers that were started.
        encoded: numbers of the shards that were made.
        before_shard: called with the number of shards made before each.
        shares_no_disk: workers see neither the run nor the plan.
    """

    def __init__(self) -> None:
        self.connected = 0
        self.jobs: list[ShardJob] = []
        self.encoded: list[int] = []
        self.before_shard: Any = lambda _made: None
        self.shares_no_disk = False

    @contextmanager
    def connect(self, _address: str | None) -> Iterator["Cluster"]:
        self.connected += 1
        yield self


class InlineWorkers:
    """See `shard_pool.Workers`; a call ends before the next."""

    def __init__(self, cluster: Cluster, job: ShardJob, most: int | None) -> None:
        self._cluster, self._job, self._most = cluster, job, most
        self._results: dict[object, Failure | None] = {}

    def wanted(self) -> int:
        return self._most or 2

    def start(self) -> tuple[ShardWorker, object]:
        self._cluster.jobs.append(self._job)
        nowhere = Path("/nowhere")
        job = replace(self._job, run=nowhere, plan=nowhere) if self._cluster.shares_no_disk else self._job
        worker = ShardWorker(job)
        return worker, self._called(worker.prepare)

    def encode(self, worker: ShardWorker, number: int, planned: Sequence[PlannedItem]) -> object:
        self._cluster.before_shard(len(self._cluster.encoded))
        task = self._called(worker.encode, number, planned)
        self._cluster.encoded.append(number)
        return task

    def _called(self, call: Any, *arguments: object) -> object:
        task, failure = object(), None
        try:
            call(*arguments)
        except TrainingError as error:
            failure = Failure(str(error), lost=False)
        self._results[task] = failure
        return task

    def wait(self, tasks: Sequence[object], timeout_s: float) -> Sequence[object]:
        return tasks

    def failure(self, task: object) -> Failure | None:
        return self._results.pop(task)

    def end(self, worker: ShardWorker) -> None:
        pass

    def room(self) -> str:
        return "0 of 2 CPUs of the cluster are free"


def inline_cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster that commands connect to in place of one of Ray."""
    made = Cluster()
    monkeypatch.setattr(ray_workers, "ray_cluster", made.connect)
    monkeypatch.setattr(ray_workers, "RayWorkers", InlineWorkers)
    return made
