"""Workers on a Ray cluster, one actor each.

Ray's ports let everybody who reaches them run code. A cluster that this module starts asks for a token, as Ray's
default is from 2.59 on; where an address is given, the cluster's own network and token protect it.
"""

import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, TypeVar

from training.embedding.distributed.shard_pool import Failure
from training.embedding.distributed.shard_worker import PlannedItem, ShardJob, ShardWorker
from training.errors import EmbeddingsError

_LEFT_FREE: Final = 1.0  # CPUs of the cluster, so that others' tasks, and Ray's own, still find room
_LEAST_CPUS: Final = 0.01
_CONNECT_S: Final = 10.0
_PROBE_S: Final = 2.0
_AGAIN: Final = "see to its head and its machines, then start the same command again to go on"
_T = TypeVar("_T")


class RayWorkers:
    """Actors of a connected cluster; see `shard_pool.Workers`.

    Every method but :meth:`end` raises EmbeddingsError: the cluster is gone, or does not answer.

    One worker a GPU where the cluster has GPUs, else as many as have a CPU for each of their threads, with one CPU
    left. A worker reserves as many CPUs as it has threads, so that workers beside each other do not slow each other
    down. Machines that join later get workers, too.

    Args:
        ray: the module, connected.
        job: of the workers; names their threads.
        most: most workers; None: as many as there is room for. More than that share the CPUs.
    """

    def __init__(self, ray: Any, job: ShardJob, most: int | None = None) -> None:  # noqa: ANN401 - a module
        self._ray, self._job, self._most = ray, job, most
        self._head: str = ray.get_runtime_context().gcs_address
        self._lost = False
        self._actor = ray.remote(ShardWorker)

    def wanted(self) -> int:
        """As many as there are GPUs, else as their threads have CPUs but one; at most ``most``."""
        if self._most is not None:
            return self._most
        total = self._resources()
        room = (float(total.get("CPU", 0)) - _LEFT_FREE) / self._job.threads
        return max(1, math.floor(float(total.get("GPU", 0))) or math.floor(room))

    def start(self) -> tuple[Any, Any]:
        """Start an actor; Ray places it when a machine has room."""
        total = self._resources()
        cpus = cpus_of_worker(total.get("CPU", 0), self.wanted(), self._job.threads)
        gpus = min(1.0, total.get("GPU", 0) / self.wanted())
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}

        def started() -> tuple[Any, Any]:
            actor = self._actor.options(**options).remote(self._job)
            return actor, actor.prepare.remote()

        return self._answer(started)

    def encode(self, worker: Any, number: int, planned: Sequence[PlannedItem]) -> Any:  # noqa: ANN401
        """Begin a shard."""
        return self._answer(partial(worker.encode.remote, number, planned))

    def wait(self, tasks: Sequence[Any], timeout_s: float) -> Sequence[Any]:
        """The calls that have ended."""
        ended, _ = self._answer(partial(self._ray.wait, list(tasks), num_returns=1, timeout=timeout_s))
        return list(ended)

    def failure(self, task: Any) -> Failure | None:  # noqa: ANN401
        """Why a call failed, in one line."""
        return self._answer(partial(self._failure, task))

    def _failure(self, task: Any) -> Failure | None:  # noqa: ANN401
        errors = self._ray.exceptions
        try:
            self._ray.get(task)
        except errors.RayTaskError as error:
            cause = error.cause or error
            return Failure(f"{type(cause).__name__}: {cause}".split("\n", 1)[0], lost=False)
        except errors.RayError as error:  # the actor or its machine is gone, or its environment cannot be made
            return Failure(f"{type(error).__name__}: {_first_line(error)}", lost=True)
        return None

    def end(self, worker: Any) -> None:  # noqa: ANN401
        """Kill an actor; nothing happens where it is dead, or the cluster is gone."""
        with suppress(EmbeddingsError):
            self._answer(lambda: self._ray.kill(worker))

    def room(self) -> str:
        """CPUs and GPUs of the cluster, and how many of them are free."""
        total, free = self._resources(), self._answer(self._ray.available_resources)
        return ", ".join(
            f"{free.get(kind, 0):g} of {total.get(kind, 0):g} {kind}s of the cluster are free"
            for kind in ("CPU", "GPU")
            if total.get(kind) or kind == "CPU"
        )

    def _resources(self) -> dict[str, float]:
        """CPUs and GPUs of the cluster."""
        return dict(self._answer(self._ray.cluster_resources))

    def _answer(self, call: Callable[[], _T]) -> _T:
        """The result of a call of Ray.

        A call waits where the head is gone, and after a minute Ray ends the whole process, with exit code 1. So it is
        made in a thread, which is left behind then.

        Raises:
            EmbeddingsError: the head is gone, or does not answer.
        """
        answer: Future[_T] = Future()

        def run() -> None:
            try:
                answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is raised where the answer is read
                answer.set_exception(error)

        try:
            self._check_head()
            threading.Thread(target=run, daemon=True).start()
            while not wait([answer], _PROBE_S).done:
                self._check_head()
            return answer.result()
        except (self._ray.exceptions.RayError, RuntimeError, OSError) as error:
            raise EmbeddingsError(
                f"the Ray cluster does not answer ({type(error).__name__}: {_first_line(error)}); {_AGAIN}"
            ) from error

    def _check_head(self) -> None:
        """Connect to the head once; after a failure it counts as gone.

        Raises:
            OSError: nothing listens there.
        """
        if self._lost:
            raise ConnectionError("its head is gone")
        try:
            _connect(self._head)
        except OSError:
            self._lost = True
            raise


def cpus_of_worker(total: float, workers: int, threads: int = 1) -> float:
    """CPUs that one of several workers reserves: one a thread, but so little that one CPU of the cluster stays free.

    Args:
        total: CPUs of the cluster.
        workers: how many there are to be.
        threads: of a worker.

    Returns:
        A whole number, as Ray wants it, or less than 1.
    """
    room = total - _LEFT_FREE if total > _LEFT_FREE else total / 2
    share = min(float(threads), room / workers)
    return float(math.floor(share)) if share >= 1 else max(_LEAST_CPUS, math.floor(100 * share) / 100)


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """Connect to a cluster for the duration of the block.

    Args:
        address: ``host:port`` of the head, or ``auto``; None: start a cluster on this machine, which ends with the
            block.

    Yields:
        The module ``ray``.

    Raises:
        EmbeddingsError: ray is not installed, or no cluster answers at the address.
    """
    was = signal.getsignal(signal.SIGTERM)
    try:
        import ray
    except ImportError as error:
        raise EmbeddingsError("--engine ray needs Ray; install it with `pip install 'vlm2rec[ray]'`") from error
    _check_listens(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    try:
        if address is None:
            ray.init("local", include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise EmbeddingsError(
            f"no Ray cluster {where} ({_first_line(error)}); start one with `ray start --head`, and set RAY_AUTH_MODE "
            "and the token as the cluster has them"
        ) from error
    if callable(was) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, was)  # Ray's own would end the process at once, also after the block
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_listens(address: str | None) -> None:
    """Connect to an address of the form ``host:port`` once, as Ray itself would try for minutes.

    Raises:
        EmbeddingsError: nothing listens there.
    """
    try:
        _connect(address or "")
    except (OSError, OverflowError) as error:
        raise EmbeddingsError(
            f"no Ray cluster at {address} ({error}); start one with `ray start --head`, or correct --ray-address"
        ) from error


def _connect(address: str) -> None:
    """Connect to ``host:port`` and close; nothing for an address of another form.

    Raises:
        OSError: nothing listens there.
        OverflowError: there is no such port.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
