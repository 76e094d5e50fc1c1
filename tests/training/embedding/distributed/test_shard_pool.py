"""Workers that start late, fail and die: every shard is made, with the bytes of one process, or one error says why."""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.training.embedding.distributed.conftest import SHARDS, embed, vectors
from training.backbones.trained_model import TrainedModel
from training.embedding.distributed.shard_pool import MOST_ATTEMPTS, Failure, ShardPool
from training.embedding.distributed.shard_worker import PlannedItem, ShardJob, ShardWorker
from training.embedding.plan import EmbeddingPlan
from training.errors import EmbeddingsError, JobStopped, TrainingError

JobOf = Callable[[Path, EmbeddingPlan], ShardJob]


class HereWorkers:
    """Real workers in this process, of which a script says which calls fail.

    Attributes:
        most: how many are wanted.
        failing: for the next starts and shards in order, the failure of each; None: it works.
        never_starts: no start ever ends.
    """

    def __init__(self, job: ShardJob, most: int = 2) -> None:
        self.most, self._job = most, job
        self.failing_starts: deque[Failure | None] = deque()
        self.failing: deque[Failure | None] = deque()
        self.never_starts = False
        self.living: set[ShardWorker] = set()
        self.started = self.encoded = 0
        self._results: dict[object, Failure | None] = {}

    def wanted(self) -> int:
        return self.most

    def start(self) -> tuple[ShardWorker, object]:
        self.started += 1
        worker = ShardWorker(self._job)
        self.living.add(worker)
        failure = self.failing_starts.popleft() if self.failing_starts else None
        return worker, self._task(failure, worker.prepare)

    def encode(self, worker: ShardWorker, number: int, planned: Sequence[PlannedItem]) -> object:
        assert worker in self.living
        self.encoded += 1
        failure = self.failing.popleft() if self.failing else None
        return self._task(failure, lambda: worker.encode(number, planned))

    def _task(self, failure: Failure | None, call: Callable[[], object]) -> object:
        task = object()
        if failure is None:
            try:
                call()
            except TrainingError as error:
                failure = Failure(str(error), lost=False)
        self._results[task] = failure
        return task

    def wait(self, tasks: Sequence[object], timeout_s: float) -> Sequence[object]:
        return [] if self.never_starts else list(tasks)[-1:]

    def failure(self, task: object) -> Failure | None:
        return self._results.pop(task)

    def end(self, worker: ShardWorker) -> None:
        self.living.discard(worker)

    def room(self) -> str:
        return "0 of 2 CPUs of the cluster are free"


@pytest.fixture(scope="module")
def loaded(embedded_home: Path) -> Any:
    return TrainedModel.of(embedded_home / "run").load()


@pytest.fixture(autouse=True)
def loaded_once(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading takes a second; test_shard_worker.py and the tests of Ray load the model in every worker."""
    monkeypatch.setattr(TrainedModel, "load", lambda _self: loaded)


class Pools:
    """Runs the job with workers that a test prepares."""

    def __init__(self, home: Path, job_of: JobOf) -> None:
        self.home, self._job_of = home, job_of
        self.prepare: Callable[[HereWorkers], None] = lambda _workers: None
        self.options: dict[str, object] = {}
        self.done: list[int] = []

    def __call__(
        self, plan: EmbeddingPlan, numbers: Sequence[int], finished: Callable[[int], None], stopped: Callable[[], bool]
    ) -> None:
        self.workers = HereWorkers(self._job_of(self.home, plan))
        self.prepare(self.workers)

        def both(number: int) -> None:
            self.done.append(number)
            finished(number)

        try:
            ShardPool(self.workers, **self.options).encode(plan, numbers, both, stopped)
        finally:
            assert self.workers.living == set()  # none is left behind


@pytest.fixture
def pools(home: Path, job_of: JobOf) -> Pools:
    return Pools(home, job_of)


LOST = Failure("ActorDiedError: the machine is gone", lost=True)
FAILED = Failure("OSError: no space", lost=False)


def test_workers_make_the_bytes_of_one_process(pools: Pools, expected: dict[str, bytes]) -> None:
    assert embed(pools.home, encode_shards=pools) == 30
    assert vectors(pools.home) == expected
    assert sorted(pools.done) == list(range(SHARDS))
    assert pools.workers.started == 2


def test_shards_of_dead_and_failing_workers_are_made_again(pools: Pools, expected: dict[str, bytes]) -> None:
    def prepare(workers: HereWorkers) -> None:
        workers.failing_starts.extend([None, LOST, FAILED])
        workers.failing.extend([LOST, FAILED, None, LOST])

    pools.prepare = prepare
    embed(pools.home, encode_shards=pools)
    assert vectors(pools.home) == expected
    assert pools.workers.encoded == SHARDS + 3


def test_a_job_whose_workers_never_start_ends_with_the_last_reason(pools: Pools) -> None:
    pools.prepare = lambda workers: workers.failing_starts.extend([FAILED] * 20)
    with pytest.raises(
        EmbeddingsError, match=r"\d workers in a row could not start, .* OSError: no space\. Fix the cau"
    ):
        embed(pools.home, encode_shards=pools)
    assert pools.workers.started <= 4


def test_a_job_without_room_ends_and_says_what_is_free(pools: Pools) -> None:
    now = iter(range(0, 10_000, 60))
    pools.options = {"clock": lambda: float(next(now))}
    pools.prepare = lambda workers: setattr(workers, "never_starts", True)
    with pytest.raises(
        EmbeddingsError, match=r"no worker has started for 300 s \(0 of 2 CPUs of the cluster are free\)"
    ):
        embed(pools.home, encode_shards=pools)


def test_a_shard_that_always_fails_ends_the_job_and_the_next_goes_on(pools: Pools, expected: dict[str, bytes]) -> None:
    def prepare(workers: HereWorkers) -> None:
        workers.most = 1
        workers.failing.extend([None, None, *[FAILED] * 40])

    pools.prepare = prepare
    with pytest.raises(EmbeddingsError, match=rf"shard \d failed {MOST_ATTEMPTS} times, .* OSError: no space"):
        embed(pools.home, encode_shards=pools)
    assert len(pools.done) == 2
    pools.prepare = lambda _workers: None
    assert embed(pools.home, encode_shards=pools) == 30 - 8
    assert vectors(pools.home) == expected


def test_it_stops_when_asked_and_ends_its_workers(home: Path, job_of: JobOf) -> None:
    def stopping(
        plan: EmbeddingPlan, numbers: Sequence[int], finished: Callable[[int], None], _stopped: object
    ) -> None:
        workers = HereWorkers(job_of(home, plan))
        with pytest.raises(JobStopped, match="start the same command again"):
            ShardPool(workers).encode(plan, numbers, finished, lambda: workers.encoded >= 3)
        assert workers.living == set()
        raise JobStopped

    with pytest.raises(JobStopped):
        embed(home, encode_shards=stopping)


def test_a_worker_with_another_disk_is_found_out(pools: Pools, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()

    def prepare(workers: HereWorkers) -> None:
        object.__setattr__(workers._job, "plan", tmp_path / "elsewhere")

    pools.prepare = prepare
    with pytest.raises(EmbeddingsError, match="has no such shard here: it must be on a shared disk"):
        embed(pools.home, encode_shards=pools)


def test_a_job_that_was_killed_after_its_last_shard_cleans_up_elsewhere(pools: Pools) -> None:
    """Objects of a store through which the shards passed may be left."""

    def killed(
        plan: EmbeddingPlan, numbers: Sequence[int], finished: Callable[[int], None], stopped: Callable[[], bool]
    ) -> None:
        pools(plan, numbers, finished, stopped)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(pools.home, encode_shards=killed)
    asked: list[list[int]] = []
    assert embed(pools.home, encode_shards=lambda _plan, numbers, *_: asked.append(list(numbers))) == 0
    assert asked == [[]]
